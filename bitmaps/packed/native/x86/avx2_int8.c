/* AVX2, int8 weights and any number of tokens. Lanes are inputs.
 *
 * `vpmaddubsw` needs one operand without signs. It gets the weights' magnitudes, and the
 * weights' signs are applied to the activations. A pair of products is at most 2 * 128 * 127. 16
 * bits hold one such pair but not two, so it is widened at once. */
#if defined(__x86_64__)
#include "avx2_vectors.h"

enum { PAIR = 2, GROUP = 4 }; /* tokens; rows of weights */

INLINE void add_products(const __m256i w, const uint8_t *const q[PAIR], int64_t s, const int count,
                         __m256i c[PAIR])
{
    const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 2
    for (int m = 0; m < count; m++) {
        const __m256i a = load_256(q[m] + s);
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
        c[m] = _mm256_add_epi32(c[m], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
}

/* Tokens m to m + count - 1 by outputs n to n + 7, four outputs at a time. */
INLINE void eight_outputs(const struct block *b, int64_t m, int64_t n, const int count)
{
    const int64_t bytes = row_bytes(b->w), whole = bytes / 32 * 32;
    const uint8_t *end = b->w->weight + b->w->n * bytes, *q[PAIR];
    __m256i t[PAIR][2 * GROUP];
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
        q[i] = b->x->q + (m + i) * b->x->stride;
    for (int group = 0; group < 2 * GROUP; group += GROUP) {
        const uint8_t *row[GROUP];
        rows_of_weights(b, n + group, GROUP, row);
        __m256i c[GROUP][PAIR];
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++)
            c[i][0] = c[i][1] = _mm256_setzero_si256();
        for (int64_t s = 0; s < whole; s += 32)
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++)
                add_products(load_256(row[i] + s), q, s, count, c[i]);
        if (whole < bytes)
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++) {
                const __m256i last = last_weights(row[i] + whole, bytes - whole, end);
                add_products(last, q, whole, count, c[i]);
            }
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < count; j++)
                t[j][group + i] = c[i][j];
    }
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
        write_outputs(b, m + i, n, reduce(t[i]));
}

void avx2_int8(const struct block *b)
{
    for (int64_t n = b->n0; n < b->n1; n += 2 * GROUP) {
        int64_t m = b->m0;
        for (; m + PAIR <= b->m1; m += PAIR)
            eight_outputs(b, m, n, PAIR);
        if (m < b->m1)
            eight_outputs(b, m, n, 1);
    }
}
END_TARGET
#endif
