/* AVX-512: what the tiles of bytes and of sums that are looked up share. */
#ifndef BITMAPS_AVX512_TILES_H
#define BITMAPS_AVX512_TILES_H

#include "avx512_panel.h"

enum { VECTORS = AVX512_COLUMNS / 16 };

INLINE void clear_sums(const int height, __m512i c[][VECTORS])
{
#pragma GCC unroll 6
    for (int i = 0; i < height; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            c[i][v] = _mm512_setzero_si512();
}

/* Before the next plane of activations. */
INLINE void shift_sums(const int bits, const int height, __m512i c[][VECTORS])
{
#pragma GCC unroll 6
    for (int i = 0; i < height; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            c[i][v] = _mm512_slli_epi32(c[i][v], bits);
}

/* The rows of tokens m to m + height - 1; from m1 on, the last row there is. The output's cache
 * lines are fetched while the products are added up; otherwise the stores would wait for them. */
INLINE void find_rows(const struct block *b, int64_t m, const int height, const uint8_t **a)
{
    for (int i = 0; i < height; i++) {
        const int64_t row = m + i < b->m1 ? m + i : b->m1 - 1;
        a[i] = b->x->q + row * b->x->stride;
        for (int64_t n = b->n0; n < b->n1; n += 16)
            __builtin_prefetch(b->y + row * b->ldy + n, 1);
    }
}

#endif
