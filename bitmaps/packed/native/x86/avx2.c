/* AVX2 without VNNI: x86 since 2013. Which kernel multiplies what.
 *
 * This file has no AVX2 instruction itself, so that it may ask any processor whether it has
 * them. */
#if defined(__x86_64__)
#include "avx2.h"

#include "../tables.h"

#include <stddef.h>

enum { FEW = 5 }; /* tokens for which unpacking the weights first does not pay */

static int runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
           && __builtin_cpu_supports("bmi2");
}

/* Of avx2_many, which needs most: k rounded up, for each output a byte. */
static int64_t scratch(int64_t k) { return (k + 63) / 32 * 32 * AVX2_COLUMNS + ALIGN; }

static void multiply(const struct block *b, void *memory)
{
    const enum act act = b->x->act;
    if (act == F32)
        avx2_floats(b, memory);
    else if (b->w->kind == INT8)
        avx2_int8(b);
    else if (b->m1 - b->m0 > FEW)
        avx2_many(b, memory);
    else
        for (int64_t m = b->m0; m < b->m1; m++)
            if (act == A1)
                avx2_single_signs(b, m);
            else
                avx2_single_bits(b, m, memory);
}

static void multiply_or_look_up(const struct block *b, void *memory)
{
    if (has_tables(b->x->act, b->x->kind)) {
        avx2_lookup(b, memory);
        return;
    }
    struct block part = *b; /* with many tokens, of so many outputs as `multiply` takes */
    const int64_t columns = b->m1 - b->m0 > FEW ? AVX2_COLUMNS : b->n1 - b->n0;
    for (part.n0 = b->n0; part.n0 < b->n1; part.n0 += columns) {
        part.n1 = part.n0 + columns < b->n1 ? part.n0 + columns : b->n1;
        multiply(&part, memory);
    }
}

const struct isa bitmaps_avx2_lookup = {
    .name = "avx2_lookup",
    .runs = runs,
    .columns = AVX2_LOOKUP_COLUMNS,
    .few = FEW,
    .signs = 1,
    .offsets_int8 = 0,
    .layout = layout_of_tables,
    .scratch = scratch,
    .multiply = multiply_or_look_up,
    .rows = &avx2_lookup_row_operations,
    .attention = NULL,
};

const struct isa bitmaps_avx2 = {
    .name = "avx2",
    .runs = runs,
    .columns = AVX2_COLUMNS,
    .few = FEW,
    .signs = 1,
    .offsets_int8 = 0,
    .layout = layout_of_bytes,
    .scratch = scratch,
    .multiply = multiply,
    .rows = &avx2_row_operations,
    .attention = NULL,
};
#endif
