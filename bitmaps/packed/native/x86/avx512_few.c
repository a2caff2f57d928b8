/* AVX-512, a few tokens: the weights are read from the rows of the matrix, because unpacking
 * them into a panel would not pay. Lanes are inputs, so each output ends in a sum over lanes. */
#if defined(__x86_64__)
#include "avx512_vectors.h"

enum { FEW = AVX512_FEW, GROUP = 4 }; /* tokens; outputs at a time */

/* The sums over the lanes of each of four vectors. */
INLINE __m128i reduce(const __m512i v[GROUP])
{
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
                                        _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
                                        _mm512_unpackhi_epi32(v[2], v[3]));
    const __m512i all
        = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half
        = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* The next weights of a row: 64 as bytes, or 512 bits. `left` bytes are there, or more. */
INLINE __m512i next_weights(const uint8_t *at, int64_t left, const enum product product)
{
    if (product != BIT)
        return left >= 64 ? _mm512_loadu_si512(at)
                          : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, left), at);
    uint64_t bits = 0;
    if (left >= 8)
        memcpy(&bits, at, 8);
    else
        for (int64_t i = 0; i < left; i++)
            bits |= (uint64_t)at[i] << 8 * i;
    return _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(1));
}

/* Add the products of the next inputs: weights from byte b of each row, activations from q.
 * BYTE: add the weights to `total`. */
INLINE void add_products(const uint8_t *const row[GROUP], int64_t b, int64_t left, const uint8_t *q,
                         int64_t stride, const int count, const enum product product,
                         __m512i c[FEW][GROUP], __m512i total[GROUP])
{
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; i++) {
        const __m512i weight = next_weights(row[i] + b, left, product);
        if (product == BYTE)
            total[i] = dot4(total[i], _mm512_set1_epi8(1), weight);
#pragma GCC unroll 5
        for (int m = 0; m < count; m++) {
            const __m512i a = _mm512_loadu_si512(q + m * stride);
            if (product == SIGN)
                c[m][i] = _mm512_add_epi32(c[m][i], differences(weight, a));
            else if (product == BYTE)
                c[m][i] = dot4(c[m][i], a, weight);
            else
                c[m][i] = dot4(c[m][i], weight, a);
        }
    }
}

/* The products of four rows of weights with tokens m0 to m0 + count - 1. */
INLINE void four_outputs(const struct block *b, const uint8_t *const row[GROUP], const int count,
                         const enum product product, __m512i c[FEW][GROUP],
                         __m512i total[GROUP])
{
    const struct rows *x = b->x;
    const int64_t bytes = row_bytes(b->w), step = product == BIT ? 8 : 64;
    const int64_t whole = bytes / step * step;
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; i++) {
        total[i] = _mm512_setzero_si512();
#pragma GCC unroll 5
        for (int m = 0; m < count; m++)
            c[m][i] = _mm512_setzero_si512();
    }
    for (int plane = 0; plane < (product == BIT ? x->planes : 1); plane++) {
        const uint8_t *q = x->q + b->m0 * x->stride + plane * x->plane;
        if (plane)
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 5
                for (int m = 0; m < count; m++)
                    c[m][i] = _mm512_slli_epi32(c[m][i], 8);
        int64_t at = 0;
        for (; at < whole; at += step, q += 64)
            add_products(row, at, step, q, x->stride, count, product, c, total);
        if (at < bytes)
            add_products(row, at, bytes - at, q, x->stride, count, product, c, total);
    }
}

INLINE void few(const struct block *block, const int count, const enum product product)
{
    const struct block b = *block;
    for (int64_t n = b.n0; n < b.n1; n += 16) {
        __m512i sums[FEW], correction = _mm512_setzero_si512();
        for (int m = 0; m < FEW; m++)
            sums[m] = _mm512_setzero_si512();
        for (int group = 0; group < 16 / GROUP; group++) {
            const uint8_t *row[GROUP];
            rows_of_weights(&b, n + GROUP * group, GROUP, row);
            __m512i c[FEW][GROUP], total[GROUP];
            four_outputs(&b, row, count, product, c, total);
            const __mmask16 lanes = (__mmask16)(15 << GROUP * group);
            if (product == BYTE)
                correction = _mm512_mask_broadcast_i32x4(correction, lanes,
                                                         _mm_slli_epi32(reduce(total), 7));
#pragma GCC unroll 5
            for (int m = 0; m < count; m++)
                sums[m] = _mm512_mask_broadcast_i32x4(sums[m], lanes, reduce(c[m]));
        }
        const struct epilogue e = epilogue_of(b.w, n, b.n1);
        for (int m = 0; m < count; m++)
            finish(sums[m], product, b.w, e, b.x, b.m0 + m, correction,
                   b.y + (b.m0 + m) * b.ldy + n);
    }
}

/* The loops have to know the number of tokens. A function for each, because gcc 12 spills
 * accumulators if one function has several. One token with one-bit weights has kernels of its
 * own (avx512_single.c). */
static void few_bits_2(const struct block *b) { few(b, 2, BIT); }
static void few_bits_3(const struct block *b) { few(b, 3, BIT); }
static void few_bits_4(const struct block *b) { few(b, 4, BIT); }
static void few_bits_5(const struct block *b) { few(b, 5, BIT); }
static void few_bytes_1(const struct block *b) { few(b, 1, BYTE); }
static void few_bytes_2(const struct block *b) { few(b, 2, BYTE); }
static void few_bytes_3(const struct block *b) { few(b, 3, BYTE); }
static void few_bytes_4(const struct block *b) { few(b, 4, BYTE); }
static void few_bytes_5(const struct block *b) { few(b, 5, BYTE); }
static void few_signs_2(const struct block *b) { few(b, 2, SIGN); }
static void few_signs_3(const struct block *b) { few(b, 3, SIGN); }
static void few_signs_4(const struct block *b) { few(b, 4, SIGN); }
static void few_signs_5(const struct block *b) { few(b, 5, SIGN); }

void avx512_few(const struct block *b, enum product product)
{
    static void (*const kernels[][FEW + 1])(const struct block *) = {
        [BIT] = {NULL, NULL, few_bits_2, few_bits_3, few_bits_4, few_bits_5},
        [BYTE] = {NULL, few_bytes_1, few_bytes_2, few_bytes_3, few_bytes_4, few_bytes_5},
        [SIGN] = {NULL, NULL, few_signs_2, few_signs_3, few_signs_4, few_signs_5},
    };
    kernels[product][b->m1 - b->m0](b);
}
END_TARGET
#endif
