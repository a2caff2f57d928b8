/* AVX-512 with VNNI (int8 products), VPOPCNTDQ and VBMI: Ice Lake, Zen 4 and later. Which kernel
 * multiplies what.
 *
 * This file has no such instruction itself, so that it may ask any processor whether it has
 * them. */
#if defined(__x86_64__)
#include "avx512.h"

#include <stddef.h>

int avx512_runs(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
           && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq")
           && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
}

/* Of avx512_many, which needs most: k rounded up, for each output a byte; and four bytes of
 * each. */
int64_t avx512_scratch(int64_t k)
{
    return aligned(k) * AVX512_COLUMNS + AVX512_COLUMNS * (int64_t)sizeof(int32_t) + ALIGN;
}

void avx512_multiply(const struct block *b, void *scratch)
{
    const enum product product = b->x->act == A1 ? SIGN : b->w->kind == INT8 ? BYTE : BIT;
    const int64_t tokens = b->m1 - b->m0;
    if (b->x->act == F32)
        avx512_floats(b);
    else if (tokens == 1 && product == BIT)
        avx512_single_bits(b, scratch);
    else if (tokens == 1 && product == SIGN)
        avx512_single_signs(b);
    else if (tokens <= AVX512_FEW)
        avx512_few(b, product);
    else
        avx512_many(b, product, scratch);
}

const struct isa bitmaps_avx512 = {
    .name = "avx512",
    .runs = avx512_runs,
    .columns = AVX512_COLUMNS,
    .few = AVX512_FEW,
    .signs = AVX512_SIGNS,
    .offsets_int8 = 1,
    .layout = layout_of_bytes,
    .scratch = avx512_scratch,
    .multiply = avx512_multiply,
    .rows = &avx512_row_operations,
    .attention = &avx512_attention,
};
#endif
