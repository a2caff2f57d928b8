/* AVX-512, fp32 activations and one-bit weights: sixteen inputs at a time, added where the bit
 * is set. Lanes are inputs. */
#if defined(__x86_64__)
#include "avx512_vectors.h"

enum { TILE = 4 }; /* tokens, and outputs */

INLINE void add_where(uint16_t set, const int count, const __m512 x[TILE], __m512 c[TILE][TILE],
                      int j)
{
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        c[i][j] = _mm512_mask_add_ps(c[i][j], set, c[i][j], x[i]);
}

/* `count` rows a of activations by four rows b of weights. */
INLINE void tile(const float *const a[TILE], const uint8_t *const b[TILE], int64_t k,
                 const int count, __m512 c[TILE][TILE])
{
    const int64_t whole = k / 16 * 16;
    __m512 x[TILE];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++)
            c[i][j] = _mm512_setzero_ps();
    for (int64_t s = 0; s < whole; s += 16) {
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            x[i] = _mm512_loadu_ps(a[i] + s);
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) {
            uint16_t set;
            memcpy(&set, b[j] + s / 8, 2);
            add_where(set, count, x, c, j);
        }
    }
    if (whole == k)
        return;
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        x[i] = load_floats(a[i] + whole, k - whole);
#pragma GCC unroll 4
    for (int j = 0; j < TILE; j++) { /* there may be a single byte left */
        const int second = k - whole > 8 ? b[j][whole / 8 + 1] << 8 : 0;
        add_where((uint16_t)(b[j][whole / 8] | second), count, x, c, j);
    }
}

void avx512_floats(const struct block *block)
{
    const int64_t m1 = block->m1, n1 = block->n1, k = block->x->k;
    for (int64_t m = block->m0; m < m1; m += TILE)
        for (int64_t n = block->n0; n < n1; n += TILE) {
            const float *a[TILE];
            const uint8_t *b[TILE];
            for (int i = 0; i < TILE; i++)
                a[i] = block->x->x + (m + i < m1 ? m + i : m1 - 1) * k;
            rows_of_weights(block, n, TILE, b);
            __m512 c[TILE][TILE];
            if (m1 - m == 1)
                tile(a, b, k, 1, c);
            else
                tile(a, b, k, TILE, c);
            for (int i = 0; i < TILE && m + i < m1; i++)
                for (int j = 0; j < TILE && n + j < n1; j++)
                    write_output(block, m + i, n + j, _mm512_reduce_add_ps(c[i][j]));
        }
}
END_TARGET
#endif
