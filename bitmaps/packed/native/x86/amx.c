/* AMX, Sapphire Rapids and later: which kernel multiplies what. What the tiles do not do is left to
 * AVX-512, which these processors have too.
 *
 * This file has no AMX instruction itself, so that it may ask any processor whether it has them. */
#include "../kernels.h"
#if defined(HAVE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx.h"

/* The registers of tiles are 8 KiB a thread, which Linux gives a process on request. */
static int runs(void)
{
    enum {
        FEATURES = 7,
        TILE_AND_INT8 = 1 << 24 | 1 << 25,
        REQUEST_PERMISSION = 0x1023,
        TILE_DATA = 18,
    };
    unsigned a, b, c, d;
    return avx512_runs() && __get_cpuid_count(FEATURES, 0, &a, &b, &c, &d)
           && (d & TILE_AND_INT8) == TILE_AND_INT8
           && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static void multiply(const struct block *b, void *scratch)
{
    if (b->m1 - b->m0 <= AVX512_FEW || b->x->act == F32 || b->x->act == A1)
        avx512_multiply(b, scratch);
    else if (b->w->kind == INT8)
        amx_panels(b, BYTE, scratch);
    else
        amx_panels(b, BIT, scratch);
}

const struct isa bitmaps_amx = {
    .name = "amx",
    .runs = runs,
    .columns = AVX512_COLUMNS,
    .few = AVX512_FEW,
    .signs = AVX512_SIGNS,
    .offsets_int8 = 1,
    .layout = layout_of_bytes,
    .scratch = amx_scratch,
    .multiply = multiply,
    .rows = &avx512_row_operations,
    .attention = &avx512_attention,
};
#endif
