/* AVX2, many tokens and one-bit weights: sixteen rows of weights are unpacked into a panel,
 * which is then multiplied with four tokens at a time. */
#if defined(__x86_64__)
#include "avx2_vectors.h"

enum { VECTORS = AVX2_COLUMNS / 8, TILE = 4, PAIRS = 128 };

/* Eight rows of 32 bytes -> eight vectors; the j-th has the j-th four bytes of every row. */
INLINE void transpose(__m256i r[8])
{
    __m256i t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        const __m256i a = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        const __m256i b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        const __m256i c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]);
        const __m256i d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm256_unpacklo_epi64(a, c);
        t[i + 1] = _mm256_unpackhi_epi64(a, c);
        t[i + 2] = _mm256_unpacklo_epi64(b, d);
        t[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        r[j] = _mm256_permute2x128_si256(t[j], t[j + 4], 0x20);
        r[j + 4] = _mm256_permute2x128_si256(t[j], t[j + 4], 0x31);
    }
}

/* Bits 4 i to 4 i + 3 of each lane, a byte each: 1 where the bit is set; i = 0..7. */
INLINE __m256i expand(__m256i words, int i)
{
    const __m256i lanes = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c,
                                           0x08080808, 0x04040404, 0);
    const __m256i bit = _mm256_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201);
    const __m256i from = _mm256_add_epi8(lanes, _mm256_set1_epi8((char)(i / 2)));
    const __m256i bytes = _mm256_shuffle_epi8(words, from);
    return _mm256_min_epu8(_mm256_and_si256(bytes, bit), _mm256_set1_epi8(1));
}

/* Bytes b to b + left - 1 of eight rows from n on, padded with zeros, as are rows that are not
 * there. */
INLINE void load_rows(const struct block *b, int64_t n, int64_t start, int64_t left, __m256i r[8])
{
    const int64_t bytes = row_bytes(b->w);
    for (int i = 0; i < 8; i++) {
        uint8_t padded[32] = {0};
        if (n + i < b->n1)
            memcpy(padded, b->w->weight + (n + i) * bytes + start, left);
        r[i] = load_256(padded);
    }
}

/* For every four inputs (signs: 32), four bytes of each of the sixteen outputs. */
static void fill_panel(const struct block *b, int signs, __m256i *panel)
{
    const int64_t bytes = row_bytes(b->w);
    for (int v = 0; v < VECTORS; v++)
        for (int64_t s = 0; s < bytes; s += 32) {
            const int64_t left = bytes - s > 32 ? 32 : bytes - s;
            __m256i r[8];
            load_rows(b, b->n0 + 8 * v, s, left, r);
            transpose(r);
            __m256i *to = panel + (signs ? s / 4 : 2 * s) * VECTORS + v;
            for (int i = 0; i < (left + 3) / 4; i++) {
                if (signs)
                    to[i * VECTORS] = r[i];
                else
#pragma GCC unroll 8
                    for (int j = 0; j < 8; j++)
                        to[(8 * i + j) * VECTORS] = expand(r[i], j);
            }
        }
}

INLINE __m256i broadcast(const uint8_t *bytes)
{
    int32_t word;
    memcpy(&word, bytes, 4);
    return _mm256_set1_epi32(word);
}

/* Add the products of inputs 4 start to 4 stop - 1, which are at most PAIRS steps, to c. */
INLINE void add_steps(const uint8_t *const a[TILE], const __m256i *panel, int64_t start,
                      int64_t stop, __m256i c[TILE][VECTORS])
{
    const __m256i *b = panel + start * VECTORS;
    __m256i s[TILE][VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            s[i][v] = _mm256_setzero_si256();
    for (int64_t j = start; j < stop; j++, b += VECTORS) {
        const __m256i b0 = b[0], b1 = b[1];
#pragma GCC unroll 4
        for (int i = 0; i < TILE; i++) {
            const __m256i q = broadcast(a[i] + 4 * j);
            s[i][0] = add_pairs(s[i][0], b0, q);
            s[i][1] = add_pairs(s[i][1], b1, q);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            const __m256i wide = _mm256_madd_epi16(s[i][v], _mm256_set1_epi16(1));
            c[i][v] = _mm256_add_epi32(c[i][v], wide);
        }
}

/* Four tokens by sixteen outputs, four inputs a step. */
INLINE void tile_bits(const uint8_t *const a[TILE], const struct rows *x, const __m256i *panel,
                      int64_t steps, __m256i c[TILE][VECTORS])
{
    for (int plane = 0; plane < x->planes; plane++) {
        const uint8_t *q[TILE];
        for (int i = 0; i < TILE; i++) {
            q[i] = a[i] + plane * x->plane;
            for (int v = 0; v < VECTORS; v++)
                c[i][v] = plane ? _mm256_slli_epi32(c[i][v], 8) : _mm256_setzero_si256();
        }
        for (int64_t start = 0; start < steps; start += PAIRS)
            add_steps(q, panel, start, start + PAIRS < steps ? start + PAIRS : steps, c);
    }
}

/* popcount(bits xor signs), 32 inputs a step. */
INLINE void tile_signs(const uint8_t *const a[TILE], const __m256i *panel, int64_t steps,
                       __m256i c[TILE][VECTORS])
{
    for (int v = 0; v < VECTORS; v++) {
        for (int i = 0; i < TILE; i++)
            c[i][v] = _mm256_setzero_si256();
        for (int64_t start = 0; start < steps; start += NIBBLES) {
            const int64_t stop = start + NIBBLES < steps ? start + NIBBLES : steps;
            __m256i s[TILE];
#pragma GCC unroll 4
            for (int i = 0; i < TILE; i++)
                s[i] = _mm256_setzero_si256();
            for (int64_t j = start; j < stop; j++)
#pragma GCC unroll 4
                for (int i = 0; i < TILE; i++) {
                    const __m256i q = broadcast(a[i] + 4 * j);
                    const __m256i different = _mm256_xor_si256(panel[j * VECTORS + v], q);
                    s[i] = _mm256_add_epi8(s[i], popcount(different));
                }
            for (int i = 0; i < TILE; i++)
                c[i][v] = add_bytes(c[i][v], s[i]);
        }
    }
}

void avx2_many(const struct block *b, void *scratch)
{
    const struct rows *x = b->x;
    const int signs = x->act == A1;
    __m256i *panel = scratch;
    fill_panel(b, signs, panel);
    for (int64_t m = b->m0; m < b->m1; m += TILE) {
        const uint8_t *a[TILE];
        for (int i = 0; i < TILE; i++)
            a[i] = x->q + (m + i < b->m1 ? m + i : b->m1 - 1) * x->stride;
        __m256i c[TILE][VECTORS];
        if (signs)
            tile_signs(a, panel, (b->w->k + 31) / 32, c);
        else
            tile_bits(a, x, panel, (b->w->k + 3) / 4, c);
        for (int i = 0; i < TILE && m + i < b->m1; i++)
            for (int v = 0; v < VECTORS && b->n0 + 8 * v < b->n1; v++) {
                const __m256i positive = _mm256_set1_epi32(positive_signs(x, m + i));
                const __m256i dots = signs ? _mm256_sub_epi32(positive, c[i][v]) : c[i][v];
                write_outputs(b, m + i, b->n0 + 8 * v, dots);
            }
    }
}
END_TARGET
#endif
