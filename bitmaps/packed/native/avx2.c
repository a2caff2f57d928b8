/* AVX2 without VNNI: x86 since 2013. Bits are unsigned bytes and activations signed ones, and as bits are at most 1, a pair of
 * products lies in -256..254 and 16 bits hold the sum of 128 pairs. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#include <immintrin.h>

#include "plain.h"

#define INLINE static inline __attribute__((always_inline))
enum { COLUMNS = 16, VECTORS = COLUMNS / 8, TILE = 4, PAIRS = 128, NIBBLES = 31 };

/* Eight rows of 32 bytes -> eight vectors, of which the j-th holds the j-th four bytes of every row. */
INLINE void transpose(__m256i r[8])
{
    __m256i t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        __m256i a = _mm256_unpacklo_epi32(r[i], r[i + 1]), b = _mm256_unpackhi_epi32(r[i], r[i + 1]);
        __m256i c = _mm256_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm256_unpackhi_epi32(r[i + 2], r[i + 3]);
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

/* As in avx512.c: four bytes a column, 1 where the lane's bit 4 i + byte is set. */
INLINE __m256i expand(__m256i words, int i)
{
    const __m256i lanes = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    const __m256i bit = _mm256_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201);
    const __m256i bytes = _mm256_shuffle_epi8(words, _mm256_add_epi8(lanes, _mm256_set1_epi8((char)(i / 2))));
    return _mm256_min_epu8(_mm256_and_si256(bytes, bit), _mm256_set1_epi8(1));
}

static void panel(const struct matrix *w, int64_t n0, int64_t n1, int signs, __m256i *out)
{
    const int64_t bytes = row_bytes(w);
    for (int v = 0; v < VECTORS; v++)
        for (int64_t b = 0; b < bytes; b += 32) {
            const int64_t left = bytes - b > 32 ? 32 : bytes - b;
            __m256i r[8];
            for (int i = 0; i < 8; i++) {
                const int64_t row = n0 + 8 * v + i;
                uint8_t padded[32] = {0};
                if (row < n1)
                    memcpy(padded, w->weight + row * bytes + b, left);
                r[i] = _mm256_loadu_si256((const __m256i *)padded);
            }
            transpose(r);
            __m256i *to = out + (signs ? b / 4 : 2 * b) * VECTORS + v;
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

/* acc + u s, over pairs of bytes: u unsigned, s signed. By hand, because gcc 12 makes all products first, and then has no register
 * left for one of the sums; tests/test_packed_native.py looks for that. */
INLINE __m256i add_pairs(__m256i acc, __m256i u, __m256i s)
{
    __m256i product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(u), "x"(s));
    return acc;
}

/* Four rows by sixteen columns. */
INLINE void tile_bits(const uint8_t *const a[TILE], const struct rows *x, const __m256i *panel, int64_t steps,
                      __m256i c[TILE][VECTORS])
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < TILE; i++)
        for (int v = 0; v < VECTORS; v++)
            c[i][v] = _mm256_setzero_si256();
    for (int plane = 0; plane < x->planes; plane++) {
        for (int i = 0; i < TILE && plane; i++)
            for (int v = 0; v < VECTORS; v++)
                c[i][v] = _mm256_slli_epi32(c[i][v], 8);
        for (int64_t start = 0; start < steps; start += PAIRS) {
            const int64_t stop = start + PAIRS < steps ? start + PAIRS : steps;
            const __m256i *b = panel + start * VECTORS;
            const int64_t offset = plane * x->plane;
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
                    const __m256i q = broadcast(a[i] + offset + 4 * j);
                    s[i][0] = add_pairs(s[i][0], b0, q);
                    s[i][1] = add_pairs(s[i][1], b1, q);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < TILE; i++)
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++)
                    c[i][v] = _mm256_add_epi32(c[i][v], _mm256_madd_epi16(s[i][v], ones));
        }
    }
}

/* How many bits of each byte are set. */
INLINE __m256i popcount(__m256i v)
{
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble)),
                           _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
}

INLINE __m256i add_bytes(__m256i to, __m256i counts) /* of four each, below 256 */
{
    return _mm256_add_epi32(to, _mm256_madd_epi16(_mm256_maddubs_epi16(counts, _mm256_set1_epi8(1)), _mm256_set1_epi16(1)));
}

/* popcount(bits xor signs). A byte holds the counts of 31 steps. */
INLINE void tile_signs(const uint8_t *const a[TILE], const __m256i *panel, int64_t steps, __m256i c[TILE][VECTORS])
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
                for (int i = 0; i < TILE; i++)
                    s[i] = _mm256_add_epi8(s[i], popcount(_mm256_xor_si256(panel[j * VECTORS + v], broadcast(a[i] + 4 * j))));
            for (int i = 0; i < TILE; i++)
                c[i][v] = add_bytes(c[i][v], s[i]);
        }
    }
}

static int64_t scratch(int64_t k)
{
    const int64_t panels = (k + 63) / 32 * 32 * COLUMNS + 64, plain = plain_scratch(k);
    return panels > plain ? panels : plain;
}

static void block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                  int64_t ldy, void *memory)
{
    if (x->act == F32 || w->kind == INT8 || (x->act == A1 && m1 - m0 < TILE)) {
        plain_block(w, n0, n1, x, m0, m1, y, ldy, memory);
        return;
    }
    __m256i *weights = memory;
    panel(w, n0, n1, x->act == A1, weights);
    for (int64_t m = m0; m < m1; m += TILE) {
        const uint8_t *a[TILE];
        for (int i = 0; i < TILE; i++)
            a[i] = x->q + (m + i < m1 ? m + i : m1 - 1) * x->stride;
        __m256i c[TILE][VECTORS];
        if (x->act == A1)
            tile_signs(a, weights, (w->k + 31) / 32, c);
        else
            tile_bits(a, x, weights, (w->k + 3) / 4, c);
        for (int i = 0; i < TILE && m + i < m1; i++) {
            int32_t dots[COLUMNS];
            memcpy(dots, c[i], sizeof dots);
            for (int64_t n = n0; n < n1; n++)
                output(w, n, x, m + i, (float)(x->act == A1 ? signs_set(x, m + i) - dots[n - n0] : dots[n - n0]), y, ldy);
        }
    }
}

const struct isa bitmaps_avx2 = {"avx2", COLUMNS, 0, 0, scratch, block, round_row, plain_sign_row, gelu, add_norm};
#endif
