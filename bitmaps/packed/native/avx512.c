/* AVX-512 with VNNI (int8 products), VPOPCNTDQ and VBMI: Ice Lake, Zen 4 and later. With AMX, Sapphire Rapids and later, at the end. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq,avx512vbmi,avx2,fma,bmi,bmi2,popcnt")
#include <immintrin.h>

#include "rowwise.h"

#define INLINE static inline __attribute__((always_inline))
enum { COLUMNS = 64, VECTORS = COLUMNS / 16, TILE = 6, FEW = 5 };

/* acc + u s, over four bytes a lane: u unsigned, s signed. By hand, because gcc 12 spills arrays of accumulators that it may
 * combine with the intrinsic, which halves the speed; tests/test_packed_native.py looks for such traffic in the hot loops. */
INLINE __m512i dot4(__m512i acc, __m512i u, __m512i s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
    return acc;
}

INLINE __m512 load_f32(const float *x, int64_t left) { return _mm512_maskz_loadu_ps(_bzhi_u32(0xffff, left > 16 ? 16 : left), x); }

/* Sixteen rows of 64 bytes -> sixteen vectors, of which the j-th holds the j-th four bytes of every row. */
INLINE void transpose(__m512i r[16])
{
    __m512i t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) { /* four by four within 128 bits */
        __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
        t[i] = _mm512_unpacklo_epi64(a, c);
        t[i + 1] = _mm512_unpackhi_epi64(a, c);
        t[i + 2] = _mm512_unpacklo_epi64(b, d);
        t[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* then the blocks of 128 bits */
        __m512i a = _mm512_shuffle_i32x4(t[j], t[j + 4], 0x44), b = _mm512_shuffle_i32x4(t[j], t[j + 4], 0xee);
        __m512i c = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0x44), d = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0xee);
        r[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[j + 4] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[j + 8] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[j + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

/* Four bytes a column, of the inputs 4 i to 4 i + 3: 1 where lane's bit 4 i + byte is set, i = 0..7. */
INLINE __m512i expand(__m512i words, int i)
{
    const __m512i spread = _mm512_add_epi8(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0), _mm512_set1_epi8(i / 2));
    const __m512i bit = _mm512_set1_epi32(i % 2 ? (int)0x80402010 : 0x08040201);
    return _mm512_min_epu8(_mm512_and_si512(_mm512_shuffle_epi8(words, spread), bit), _mm512_set1_epi8(1));
}

/* What is multiplied with what: a bit and a byte, a byte and a byte, a bit and a sign. */
enum product { BIT, BYTE, SIGN };

/* The weights of up to 16 `vectors` rows, column by column of the output: for every four inputs (SIGN: 32) as many lanes of four
 * bytes. They are `bytes` of each row, from byte `start` on; what is beyond the matrix is 0. Adds to `correction` what has to be taken
 * off the products: see `finish`. */
INLINE void panel(const struct matrix *w, int64_t n0, int64_t n1, int64_t start, int64_t bytes, const int vectors,
                  const enum product product, __m512i *out, int32_t *correction)
{
    const int64_t row = row_bytes(w), expanded = product == BIT ? 8 : 1;
    for (int v = 0; v < vectors; v++) {
        __m512i total[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            total[i] = _mm512_setzero_si512();
        for (int64_t b = 0; b < bytes; b += 64) {
            const int64_t left = bytes - b;
            const __mmask64 mask = left >= 64 ? ~0ull : _bzhi_u64(~0ull, left);
            const uint8_t *from = w->weight + (n0 + 16 * v) * row + start + b;
            __m512i r[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                r[i] = _mm512_maskz_loadu_epi8(n0 + 16 * v + i < n1 ? mask : 0, from + i * row);
            transpose(r);
            __m512i *to = out + b / 4 * expanded * vectors + v;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                if (4 * i >= left)
                    break;
                if (product == BIT) {
#pragma GCC unroll 8
                    for (int j = 0; j < 8; j++)
                        to[(8 * i + j) * vectors] = expand(r[i], j);
                } else {
                    to[i * vectors] = r[i];
                    if (product == BYTE)
                        total[i % 4] = dot4(total[i % 4], _mm512_set1_epi8(1), r[i]);
                }
            }
        }
        if (product == BYTE) {
            const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(total[0], total[1]), _mm512_add_epi32(total[2], total[3]));
            const __m512i before = _mm512_loadu_si512(correction + 16 * v);
            _mm512_storeu_si512(correction + 16 * v, _mm512_add_epi32(before, _mm512_slli_epi32(sum, 7)));
        }
    }
}

/* What 16 columns of the output need. */
struct columns {
    __mmask16 mask;
    __m512 high, low, bias;
};

INLINE struct columns columns_of(const struct matrix *w, int64_t n, int64_t n1)
{
    struct columns c;
    c.mask = n < n1 ? _bzhi_u32(0xffff, n1 - n > 16 ? 16 : n1 - n) : 0;
    c.high = _mm512_maskz_loadu_ps(c.mask, w->high + n);
    c.low = w->low ? _mm512_maskz_loadu_ps(c.mask, w->low + n) : _mm512_setzero_ps();
    c.bias = w->bias ? _mm512_maskz_loadu_ps(c.mask, w->bias + n) : _mm512_setzero_ps();
    return c;
}

/* From 16 products of row m to outputs. BYTE: the activations come as q + 128, so 128 sum(w) is taken off. SIGN: the products are
 * popcount(bits xor signs), and dot(bits, signs) is popcount(signs) less that. */
INLINE void finish(__m512i acc, enum product product, const struct matrix *w, struct columns c, const struct rows *x, int64_t m,
                   __m512i correction, float *y)
{
    if (product == SIGN)
        acc = _mm512_sub_epi32(_mm512_set1_epi32(((int32_t)x->sum[m] + (int32_t)x->k) / 2), acc);
    if (product == BYTE)
        acc = _mm512_sub_epi32(acc, correction);
    const __m512 sum = _mm512_set1_ps(x->sum[m]);
    __m512 value = _mm512_cvtepi32_ps(acc);
    if (w->low) {
        value = _mm512_fmadd_ps(c.low, sum, _mm512_mul_ps(_mm512_sub_ps(c.high, c.low), value));
    } else {
        if (product != BYTE) /* low is -high: whole numbers, so that what cancels is 0 */
            value = _mm512_fmsub_ps(_mm512_set1_ps(2.0f), value, sum);
        value = _mm512_mul_ps(c.high, value);
    }
    _mm512_mask_storeu_ps(y, c.mask, _mm512_fmadd_ps(value, _mm512_set1_ps(x->scale[m]), c.bias));
}

INLINE __m512i broadcast(const uint8_t *bytes)
{
    int32_t word;
    memcpy(&word, bytes, 4);
    return _mm512_set1_epi32(word);
}

/* `height` rows by 64 columns. With six, 24 accumulators, four weight vectors and one broadcast fill the 32 registers. */
INLINE void tile_bytes(const uint8_t *const a[TILE], const struct rows *x, const __m512i *weights, int64_t steps,
                       const int height, const int int8, __m512i c[TILE][VECTORS])
{
#pragma GCC unroll 6
    for (int i = 0; i < height; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            c[i][v] = _mm512_setzero_si512();
    for (int plane = 0; plane < x->planes; plane++) {
        if (plane)
#pragma GCC unroll 6
            for (int i = 0; i < height; i++)
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++)
                    c[i][v] = _mm512_slli_epi32(c[i][v], 8);
        const __m512i *b = weights;
        for (int64_t s = plane * x->plane, end = s + 4 * steps; s < end; s += 4, b += VECTORS) {
            const __m512i b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
#pragma GCC unroll 6
            for (int i = 0; i < height; i++) {
                const __m512i q = broadcast(a[i] + s);
                c[i][0] = int8 ? dot4(c[i][0], q, b0) : dot4(c[i][0], b0, q);
                c[i][1] = int8 ? dot4(c[i][1], q, b1) : dot4(c[i][1], b1, q);
                c[i][2] = int8 ? dot4(c[i][2], q, b2) : dot4(c[i][2], b2, q);
                c[i][3] = int8 ? dot4(c[i][3], q, b3) : dot4(c[i][3], b3, q);
            }
        }
    }
}

/* The same by popcount, 32 inputs a step: at most four rows, because the differences need registers too. */
INLINE void tile_signs(const uint8_t *const a[TILE], const __m512i *weights, int64_t steps, const int height,
                       __m512i c[TILE][VECTORS])
{
#pragma GCC unroll 4
    for (int i = 0; i < height; i++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            c[i][v] = _mm512_setzero_si512();
    for (int64_t s = 0; s < steps; s++, weights += VECTORS) {
        const __m512i b0 = weights[0], b1 = weights[1], b2 = weights[2], b3 = weights[3];
#pragma GCC unroll 4
        for (int i = 0; i < height; i++) {
            const __m512i q = broadcast(a[i] + 4 * s);
            c[i][0] = _mm512_add_epi32(c[i][0], _mm512_popcnt_epi32(_mm512_xor_si512(b0, q)));
            c[i][1] = _mm512_add_epi32(c[i][1], _mm512_popcnt_epi32(_mm512_xor_si512(b1, q)));
            c[i][2] = _mm512_add_epi32(c[i][2], _mm512_popcnt_epi32(_mm512_xor_si512(b2, q)));
            c[i][3] = _mm512_add_epi32(c[i][3], _mm512_popcnt_epi32(_mm512_xor_si512(b3, q)));
        }
    }
}

/* Rows m to m + HEIGHT, of which those from m1 on are not there. Not inlined, because gcc 12 then spills accumulators after all.
 * The lines of the output are fetched while the products are added up, or the stores would wait for them. */
#define TILE_OF(NAME, HEIGHT, PRODUCT)                                                                                           \
    static __attribute__((noinline)) void NAME(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,  \
                                               int64_t m1, float *y, int64_t ldy, const __m512i *weights,                        \
                                               const int32_t *correction, int64_t steps)                                         \
    {                                                                                                                            \
        const uint8_t *a[TILE];                                                                                                  \
        __m512i c[TILE][VECTORS];                                                                                                \
        for (int i = 0; i < HEIGHT; i++) {                                                                                       \
            const int64_t row = m + i < m1 ? m + i : m1 - 1;                                                                     \
            a[i] = x->q + row * x->stride;                                                                                       \
            for (int64_t n = n0; n < n1; n += 16)                                                                                \
                __builtin_prefetch(y + row * ldy + n, 1);                                                                        \
        }                                                                                                                        \
        if (PRODUCT == SIGN)                                                                                                     \
            tile_signs(a, weights, steps, HEIGHT, c);                                                                            \
        else                                                                                                                     \
            tile_bytes(a, x, weights, steps, HEIGHT, PRODUCT == BYTE, c);                                                        \
        _Pragma("GCC unroll 4") for (int v = 0; v < VECTORS; v++)                                                                \
        {                                                                                                                        \
            const int64_t n = n0 + 16 * v;                                                                                       \
            const struct columns columns = columns_of(w, n, n1);                                                                 \
            const __m512i off = PRODUCT == BYTE ? _mm512_loadu_si512(correction + 16 * v) : _mm512_setzero_si512();              \
            _Pragma("GCC unroll 6") for (int i = 0; i < HEIGHT; i++)                                                             \
                if (m + i < m1)                                                                                                  \
                    finish(c[i][v], PRODUCT, w, columns, x, m + i, off, y + (m + i) * ldy + n);                                  \
        }                                                                                                                        \
    }
TILE_OF(six_bit, TILE, BIT)
TILE_OF(four_bit, 4, BIT)
TILE_OF(two_bit, 2, BIT)
TILE_OF(six_byte, TILE, BYTE)
TILE_OF(four_byte, 4, BYTE)
TILE_OF(two_byte, 2, BYTE)
TILE_OF(four_sign, 4, SIGN)

/* The sums of four vectors' lanes. */
INLINE __m128i reduce(__m512i a, __m512i b, __m512i c, __m512i d)
{
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* The next weights of a row: 64 of them as bytes, or 512 bits; `left` bytes are there, or more. */
INLINE __m512i next_weights(const uint8_t *at, int64_t left, enum product product)
{
    if (product != BIT)
        return left >= 64 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, left), at);
    uint64_t bits = 0;
    if (left >= 8)
        memcpy(&bits, at, 8);
    else
        for (int64_t i = 0; i < left; i++)
            bits |= (uint64_t)at[i] << 8 * i;
    return _mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(1));
}

/* A few rows of activations: straight from the rows of the matrix, for which a panel would not pay. The lanes are inputs, so each
 * output ends in a sum over lanes. */
INLINE void few(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, float *y, int64_t ldy,
                const int count, const enum product product)
{
    const int64_t bytes = row_bytes(w), step = product == BIT ? 8 : 64, whole = bytes / step * step;
    for (int64_t n = n0; n < n1; n += 16) {
        __m512i sums[FEW], correction = _mm512_setzero_si512();
        for (int m = 0; m < FEW; m++)
            sums[m] = _mm512_setzero_si512();
        for (int group = 0; group < 4; group++) { /* of four outputs */
            const uint8_t *row[4];
            for (int i = 0; i < 4; i++) {
                const int64_t r = n + 4 * group + i;
                row[i] = w->weight + (r < n1 ? r : n1 - 1) * bytes;
            }
            __m512i c[FEW][4], total[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                total[i] = _mm512_setzero_si512();
#pragma GCC unroll 5
                for (int m = 0; m < count; m++)
                    c[m][i] = _mm512_setzero_si512();
            }
            for (int plane = 0; plane < (product == BIT ? x->planes : 1); plane++) {
                const uint8_t *q = x->q + m0 * x->stride + plane * x->plane;
                if (plane)
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
#pragma GCC unroll 5
                        for (int m = 0; m < count; m++)
                            c[m][i] = _mm512_slli_epi32(c[m][i], 8);
#define ADD(LEFT)                                                                                                                \
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)                                                                          \
    {                                                                                                                            \
        const __m512i weight = next_weights(row[i] + b, LEFT, product);                                                          \
        if (product == BYTE)                                                                                                     \
            total[i] = dot4(total[i], _mm512_set1_epi8(1), weight);                                                              \
        _Pragma("GCC unroll 5") for (int m = 0; m < count; m++)                                                                  \
        {                                                                                                                        \
            const __m512i a = _mm512_loadu_si512(q + m * x->stride);                                                             \
            if (product == SIGN)                                                                                                 \
                c[m][i] = _mm512_add_epi32(c[m][i], _mm512_popcnt_epi32(_mm512_xor_si512(weight, a)));                           \
            else                                                                                                                 \
                c[m][i] = product == BYTE ? dot4(c[m][i], a, weight) : dot4(c[m][i], weight, a);                                 \
        }                                                                                                                        \
    }
                int64_t b = 0;
                for (; b < whole; b += step, q += 64)
                    ADD(step)
                if (b < bytes)
                    ADD(bytes - b)
#undef ADD
            }
            const __mmask16 lanes = (__mmask16)(15 << 4 * group);
            if (product == BYTE)
                correction = _mm512_mask_broadcast_i32x4(correction, lanes,
                                                         _mm_slli_epi32(reduce(total[0], total[1], total[2], total[3]), 7));
#pragma GCC unroll 5
            for (int m = 0; m < count; m++)
                sums[m] = _mm512_mask_broadcast_i32x4(sums[m], lanes, reduce(c[m][0], c[m][1], c[m][2], c[m][3]));
        }
        const struct columns columns = columns_of(w, n, n1);
        for (int m = 0; m < count; m++)
            finish(sums[m], product, w, columns, x, m0 + m, correction, y + (m0 + m) * ldy + n);
    }
}

/* -- a single row of activations -- */

/* Sixteen sums over lanes: t[j] has those of row 2 j in its lower half and of row 2 j + 1 in its upper. */
INLINE __m512i reduce_halves(const __m512i t[8])
{
    __m512i u[4], v[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        u[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(t[2 * i], t[2 * i + 1]), _mm512_unpackhi_epi32(t[2 * i], t[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(u[2 * i], u[2 * i + 1]), _mm512_unpackhi_epi64(u[2 * i], u[2 * i + 1]));
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), sums);
}

/* 32 bytes of each of two rows. */
INLINE __m512i halves(const uint8_t *low, const uint8_t *high, __mmask32 mask, const int whole)
{
    const __m256i a = whole ? _mm256_loadu_si256((const __m256i *)low) : _mm256_maskz_loadu_epi8(mask, low);
    const __m256i b = whole ? _mm256_loadu_si256((const __m256i *)high) : _mm256_maskz_loadu_epi8(mask, high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* The matrix has rows up to n1; those beyond are the last one again. */
INLINE void eight_rows(const struct matrix *w, int64_t n, int64_t n1, const uint8_t *row[8])
{
    for (int i = 0; i < 8; i++)
        row[i] = w->weight + (n + i < n1 ? n + i : n1 - 1) * row_bytes(w);
}

INLINE void add_signs(const uint8_t *const row[8], int64_t s, __mmask32 mask, const int whole, const uint8_t *q, __m512i t[4])
{
    const __m512i a = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(q + s)));
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        t[r] = _mm512_add_epi32(
            t[r], _mm512_popcnt_epi32(_mm512_xor_si512(halves(row[2 * r] + s, row[2 * r + 1] + s, mask, whole), a)));
}

/* Vectors of one row each, and what is left of the rows, or all if they are short, in vectors of two. */
static __attribute__((noinline)) void single_sign(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,
                                                  float *y)
{
    const int64_t bytes = row_bytes(w), wide = bytes < 128 ? 0 : bytes / 64 * 64;
    const __mmask32 rest = _bzhi_u32(~0u, (uint32_t)(bytes % 32));
    const uint8_t *q = x->q + m * x->stride, *row[8];
    for (int64_t n = n0; n < n1; n += 16) {
        __m512i total[8];
        for (int half = 0; half < 2; half++) {
            __m512i t[4];
            eight_rows(w, n + 8 * half, n1, row);
            int64_t s = 0;
            if (wide) {
                __m512i c[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++)
                    c[i] = _mm512_setzero_si512();
                for (; s < wide; s += 64) {
                    const __m512i a = _mm512_loadu_si512(q + s);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; i++)
                        c[i] = _mm512_add_epi32(c[i], _mm512_popcnt_epi32(_mm512_xor_si512(_mm512_loadu_si512(row[i] + s), a)));
                }
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
                    t[r] = _mm512_add_epi32(_mm512_shuffle_i64x2(c[2 * r], c[2 * r + 1], 0x44),
                                            _mm512_shuffle_i64x2(c[2 * r], c[2 * r + 1], 0xee));
            } else {
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
                    t[r] = _mm512_setzero_si512();
            }
            for (; s + 32 <= bytes; s += 32)
                add_signs(row, s, 0, 1, q, t);
            if (s < bytes)
                add_signs(row, s, rest, 0, q, t);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
                total[4 * half + r] = t[r];
        }
        finish(reduce_halves(total), SIGN, w, columns_of(w, n, n1), x, m, _mm512_setzero_si512(), y + n);
    }
}

/* Sixteen rows of 96 bytes, those of 768 inputs, at a time: two of them are three whole vectors, which take two thirds of the time of
 * six halves. Gives the first row that is left. */
static __attribute__((noinline)) int64_t single_sign_96(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,
                                                        float *y)
{
    const uint8_t *q = x->q + m * x->stride;
    const __m512i first = _mm512_loadu_si512(q), last = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(q + 64)));
    const __m512i between = _mm512_inserti64x4(last, _mm512_castsi512_si256(first), 1); /* the end of a row, and the start of the next */
    const __m512i second = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_extracti64x4_epi64(first, 1)), _mm512_castsi512_si256(last), 1);
    int64_t n = n0;
    for (; n + 16 <= n1; n += 16) {
        const uint8_t *from = w->weight + n * 96;
        __m512i total[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++, from += 192) {
            const __m512i a = _mm512_popcnt_epi32(_mm512_xor_si512(_mm512_loadu_si512(from), first));
            const __m512i b = _mm512_popcnt_epi32(_mm512_xor_si512(_mm512_loadu_si512(from + 64), between));
            const __m512i c = _mm512_popcnt_epi32(_mm512_xor_si512(_mm512_loadu_si512(from + 128), second));
            const __m512i inner = _mm512_shuffle_i64x2(a, c, 0x4e); /* the upper half of a, the lower of c */
            total[r] = _mm512_add_epi32(_mm512_add_epi32(b, inner), _mm512_mask_blend_epi64(0xf0, a, c));
        }
        finish(reduce_halves(total), SIGN, w, columns_of(w, n, n1), x, m, _mm512_setzero_si512(), y + n);
    }
    return n;
}

/* Bit b of each byte of the weights, as it stands, is the unsigned byte 0 or 2^b: so 32 bytes of weights are 256 inputs, and each b
 * has an accumulator, that is shifted right by b in the end. The upper four bits are shifted down first, so that four of them do. It
 * takes the activations in the order in which the bits come: first inputs 0, 8, 16, ... of the 256, then 1, 9, 17, ..., each of these
 * vectors twice, for two rows: to broadcast 32 bytes costs a vector operation, which are what this is short of. */
enum { PLANES = 8, SPAN = 256 };

static void by_bit(const uint8_t *q, int64_t stride, uint64_t *out)
{
    const __m512i order = _mm512_set_epi8(
        63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 60, 52, 44, 36, 28, 20, 12, 4,
        59, 51, 43, 35, 27, 19, 11, 3, 58, 50, 42, 34, 26, 18, 10, 2, 57, 49, 41, 33, 25, 17, 9, 1, 56, 48, 40, 32, 24, 16, 8, 0);
    for (int64_t s = 0; s < stride; s += SPAN, out += SPAN / 4)
        for (int i = 0; i < SPAN / 64; i++) {
            uint64_t eight[PLANES] = {0};
            if (s + 64 * i < stride)
                _mm512_storeu_si512(eight, _mm512_permutexvar_epi8(order, _mm512_loadu_si512(q + s + 64 * i)));
            for (int b = 0; b < PLANES; b++)
                out[8 * b + i] = out[8 * b + 4 + i] = eight[b];
        }
}

INLINE void add_bits(const uint8_t *const row[8], int64_t s, __mmask32 mask, const int whole, const __m512i *q, __m512i c[4][4])
{
    __m512i bits[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        bits[r] = halves(row[2 * r] + s, row[2 * r + 1] + s, mask, whole);
#pragma GCC unroll 8
    for (int b = 0; b < PLANES; b++) {
        const __m512i a = _mm512_load_si512(q + b), bit = _mm512_set1_epi8((char)(1 << b % 4));
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            if (b == 4)
                bits[r] = _mm512_srli_epi16(bits[r], 4);
            c[r][b % 4] = dot4(c[r][b % 4], _mm512_and_si512(bits[r], bit), a);
        }
    }
}

INLINE void single_bits(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m, float *y,
                        uint64_t *ordered, const int planes)
{
    const int64_t bytes = row_bytes(w), whole = bytes / 32 * 32, plane = (x->stride + SPAN - 1) / SPAN * SPAN / 4;
    const __mmask32 rest = _bzhi_u32(~0u, (uint32_t)(bytes - whole));
    for (int p = 0; p < planes; p++)
        by_bit(x->q + m * x->stride + p * x->plane, x->stride, ordered + p * plane);
    for (int64_t n = n0; n < n1; n += 16) {
        __m512i total[8];
        for (int half = 0; half < 2; half++) {
            const uint8_t *row[8];
            eight_rows(w, n + 8 * half, n1, row);
            for (int p = 0; p < planes; p++) {
                const __m512i *q = (const __m512i *)(ordered + p * plane);
                __m512i c[4][4];
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        c[r][b] = _mm512_setzero_si512();
                int64_t s = 0;
                for (; s < whole; s += 32, q += PLANES)
                    add_bits(row, s, rest, 1, q, c);
                if (s < bytes)
                    add_bits(row, s, rest, 0, q, c);
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++) {
                    __m512i *t = total + 4 * half + r;
                    *t = p ? _mm512_add_epi32(_mm512_slli_epi32(*t, 8), c[r][0]) : c[r][0];
#pragma GCC unroll 4
                    for (int b = 1; b < 4; b++)
                        *t = _mm512_add_epi32(*t, _mm512_srai_epi32(c[r][b], b));
                }
            }
        }
        finish(reduce_halves(total), BIT, w, columns_of(w, n, n1), x, m, _mm512_setzero_si512(), y + n);
    }
}

static __attribute__((noinline)) void single_bit(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,
                                                 float *y, uint64_t *ordered)
{
    if (x->planes == 1)
        single_bits(w, n0, n1, x, m, y, ordered, 1);
    else
        single_bits(w, n0, n1, x, m, y, ordered, 2);
}

typedef void some(const struct matrix *, int64_t, int64_t, const struct rows *, int64_t, float *, int64_t);
#define SOME(NAME, COUNT, PRODUCT)                                                                                               \
    static void NAME(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m, float *y, int64_t ldy)     \
    {                                                                                                                            \
        few(w, n0, n1, x, m, y, ldy, COUNT, PRODUCT);                                                                            \
    }
#define TWO_TO_FIVE(NAME, PRODUCT)                                                                                               \
    SOME(NAME##2, 2, PRODUCT)                                                                                                    \
    SOME(NAME##3, 3, PRODUCT)                                                                                                    \
    SOME(NAME##4, 4, PRODUCT)                                                                                                    \
    SOME(NAME##5, 5, PRODUCT)
TWO_TO_FIVE(few_bit, BIT)
TWO_TO_FIVE(few_byte, BYTE)
TWO_TO_FIVE(few_sign, SIGN)
SOME(few_byte1, 1, BYTE)
static some *const FEW_OF[][FEW] = {
    [BIT] = {NULL, few_bit2, few_bit3, few_bit4, few_bit5},
    [BYTE] = {few_byte1, few_byte2, few_byte3, few_byte4, few_byte5},
    [SIGN] = {NULL, few_sign2, few_sign3, few_sign4, few_sign5},
};

/* Float activations: sixteen inputs at a time, added where the weight's bit is set. Up to four rows by four columns. */
enum { FLOAT_TILE = 4 };
INLINE void tile_floats(const uint8_t *const b[FLOAT_TILE], const float *const a[FLOAT_TILE], int64_t k, const int count,
                        __m512 c[FLOAT_TILE][FLOAT_TILE])
{
    const int64_t whole = k / 16 * 16;
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < FLOAT_TILE; j++)
            c[i][j] = _mm512_setzero_ps();
    for (int64_t s = 0; s < whole; s += 16)
#pragma GCC unroll 4
        for (int j = 0; j < FLOAT_TILE; j++) {
            uint16_t set;
            memcpy(&set, b[j] + s / 8, 2);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++)
                c[i][j] = _mm512_mask_add_ps(c[i][j], set, c[i][j], _mm512_loadu_ps(a[i] + s));
        }
    if (whole < k)
        for (int j = 0; j < FLOAT_TILE; j++) { /* the last bytes may be a single one */
            const uint16_t set = (uint16_t)(b[j][whole / 8] | (k - whole > 8 ? b[j][whole / 8 + 1] << 8 : 0));
#pragma GCC unroll 4
            for (int i = 0; i < count; i++)
                c[i][j] = _mm512_mask_add_ps(c[i][j], set, c[i][j], load_f32(a[i] + whole, k - whole));
        }
}

static void floats(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                   int64_t ldy)
{
    const int64_t bytes = row_bytes(w), k = x->k;
    for (int64_t m = m0; m < m1; m += FLOAT_TILE)
        for (int64_t n = n0; n < n1; n += FLOAT_TILE) {
            const uint8_t *b[FLOAT_TILE];
            const float *a[FLOAT_TILE];
            for (int i = 0; i < FLOAT_TILE; i++) {
                b[i] = w->weight + (n + i < n1 ? n + i : n1 - 1) * bytes;
                a[i] = x->x + (m + i < m1 ? m + i : m1 - 1) * k;
            }
            __m512 c[FLOAT_TILE][FLOAT_TILE];
            if (m1 - m == 1)
                tile_floats(b, a, k, 1, c);
            else
                tile_floats(b, a, k, FLOAT_TILE, c);
            for (int i = 0; i < FLOAT_TILE && m + i < m1; i++)
                for (int j = 0; j < FLOAT_TILE && n + j < n1; j++) {
                    y[(m + i) * ldy + n + j] = output_of(w, n + j, x, m + i, _mm512_reduce_add_ps(c[i][j]));
                }
        }
}

static int64_t scratch(int64_t k) { return (k + 63) / 64 * 64 * COLUMNS + COLUMNS * (int64_t)sizeof(int32_t) + 64; }

static void block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                  int64_t ldy, void *memory)
{
    const enum product product = x->act == A1 ? SIGN : w->kind == INT8 ? BYTE : BIT;
    int32_t *correction = memory;
    __m512i *weights = (__m512i *)((char *)memory + COLUMNS * sizeof(int32_t));
    const int64_t rows = m1 - m0;
    if (x->act == F32) {
        floats(w, n0, n1, x, m0, m1, y, ldy);
    } else if (rows == 1 && product == BIT) {
        single_bit(w, n0, n1, x, m0, y + m0 * ldy, memory);
    } else if (rows == 1 && product == SIGN) {
        const int64_t left = row_bytes(w) == 96 ? single_sign_96(w, n0, n1, x, m0, y + m0 * ldy) : n0;
        single_sign(w, left, n1, x, m0, y + m0 * ldy);
    } else if (rows <= FEW) {
        FEW_OF[product][rows - 1](w, n0, n1, x, m0, y, ldy);
    } else if (product == SIGN) {
        panel(w, n0, n1, 0, row_bytes(w), VECTORS, SIGN, weights, correction);
        for (int64_t m = m0; m < m1; m += 4)
            four_sign(w, n0, n1, x, m, m1, y, ldy, weights, correction, (w->k + 31) / 32);
    } else if (product == BYTE) {
        memset(correction, 0, COLUMNS * sizeof *correction);
        panel(w, n0, n1, 0, row_bytes(w), VECTORS, BYTE, weights, correction);
        for (int64_t m = m0; m < m1; m += TILE)
            (m1 - m > 4 ? six_byte : m1 - m > 2 ? four_byte : two_byte)(w, n0, n1, x, m, m1, y, ldy, weights, correction,
                                                                        (w->k + 3) / 4);
    } else {
        panel(w, n0, n1, 0, row_bytes(w), VECTORS, BIT, weights, correction);
        for (int64_t m = m0; m < m1; m += TILE)
            (m1 - m > 4 ? six_bit : m1 - m > 2 ? four_bit : two_bit)(w, n0, n1, x, m, m1, y, ldy, weights, correction,
                                                                     (w->k + 3) / 4);
    }
}

/* Four vectors of a row, of which `left` numbers or more are there. */
INLINE void load_64(const float *x, int64_t left, const int whole, __m512 v[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        v[i] = whole ? _mm512_loadu_ps(x + 16 * i) : left > 16 * i ? load_f32(x + 16 * i, left - 16 * i) : _mm512_setzero_ps();
}

INLINE void larger(const float *x, int64_t left, const int whole, __m512i most[4])
{
    __m512 v[4];
    load_64(x, left, whole, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        most[i] = _mm512_max_epi32(most[i], _mm512_and_si512(_mm512_castps_si512(v[i]), _mm512_set1_epi32(0x7fffffff)));
}

INLINE __m512i to_bytes(const float *x, int64_t left, const int whole, __m512 inverse)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 v[4];
    __m512i q[4];
    load_64(x, left, whole, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])));
}

/* `round_row` of rowwise.h, 64 numbers at a time. */
static void round_row_64(const float *x, const struct rows *rows, int flip, uint8_t *q, float *scale, float *sum)
{
    const int64_t k = rows->k, whole = k / 64 * 64;
    __m512i four[4], total = _mm512_setzero_si512();
    int64_t j = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        four[i] = _mm512_setzero_si512();
    for (; j < whole; j += 64)
        larger(x + j, 64, 1, four);
    if (j < k)
        larger(x + j, k - j, 0, four);
    const __m512i two = _mm512_max_epi32(_mm512_max_epi32(four[0], four[1]), _mm512_max_epi32(four[2], four[3]));
    const float most = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(two)))), inverse = 127.0f / most;
    if (rows->planes == 2 || !isfinite(most) || !isfinite(inverse)) {
        round_row(x, rows, flip, q, scale, sum);
        return;
    }
    const __m512 times = _mm512_set1_ps(inverse);
    const __m512i offset = _mm512_set1_epi8(flip ? -128 : 0), ones = _mm512_set1_epi8(1);
    for (j = 0; j < k; j += 64) { /* a row is padded to whole vectors */
        const __m512i bytes = j < whole ? to_bytes(x + j, 64, 1, times) : to_bytes(x + j, k - j, 0, times);
        total = dot4(total, ones, bytes);
        _mm512_storeu_si512(q + j, _mm512_xor_si512(bytes, offset));
    }
    *scale = most / 127.0f;
    *sum = (float)_mm512_reduce_add_epi32(total);
}

static void sign_row(const float *x, const struct rows *rows, uint8_t *q, float *scale, float *sum)
{
    const int64_t k = rows->k;
    __m512 total = _mm512_setzero_ps();
    int64_t set = 0;
    memset(q, 0, rows->stride);
    for (int64_t j = 0; j < k; j += 16) {
        const __m512 v = load_f32(x + j, k - j);
        const uint16_t bits = _mm512_mask_cmp_ps_mask(_bzhi_u32(0xffff, k - j > 16 ? 16 : k - j), v, _mm512_setzero_ps(), _CMP_GE_OQ);
        memcpy(q + j / 8, &bits, 2);
        set += __builtin_popcount(bits);
        total = _mm512_add_ps(total, _mm512_abs_ps(v));
    }
    const float mean = _mm512_reduce_add_ps(total) / (float)k;
    *scale = isfinite(mean) ? mean : NAN;
    *sum = (float)(2 * set - k);
}

/* `gelu` of rowwise.h, by a reciprocal, because a division takes as long as all the rest. */
static void gelu_16(float *x, int64_t n)
{
    const __m512 one = _mm512_set1_ps(1.0f), far = _mm512_set1_ps(5.2f);
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 there = _bzhi_u32(0xffff, n - j > 16 ? 16 : n - j);
        const __m512 v = _mm512_maskz_loadu_ps(there, x + j), t = _mm512_mul_ps(v, v);
        __m512 p = _mm512_set1_ps(GELU_P[0]), q = _mm512_set1_ps(GELU_Q[0]);
#pragma GCC unroll 5
        for (int i = 1; i < GELU_TERMS; i++) {
            p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(GELU_P[i]));
            q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(GELU_Q[i]));
        }
        __m512 r = _mm512_rcp14_ps(q);
        r = _mm512_fmadd_ps(r, _mm512_fnmadd_ps(q, r, one), r); /* Newton: 14 bits become 28 */
        const __m512 erf = _mm512_mul_ps(_mm512_mul_ps(v, p), r), half = _mm512_mul_ps(v, _mm512_set1_ps(0.5f));
        __m512 y = _mm512_fmadd_ps(half, erf, half);
        y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(v, far, _CMP_GT_OQ), v);
        y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(v, _mm512_sub_ps(_mm512_setzero_ps(), far), _CMP_LT_OQ), _mm512_setzero_ps());
        _mm512_mask_storeu_ps(x + j, there, y);
    }
}

/* -- attention, in fp32 -- */

enum { QUERIES = 8, WIDE = 32 };

/* e^x for x <= 0, 0 from -110 on: 2^n e^f with |f| <= ln 2 / 2, and the Taylor series of e^f to the seventh degree. */
INLINE __m512 exponential(__m512 x)
{
    static const float terms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x); /* NaN stays: of two operands it is the second that is returned */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x), e = _mm512_set1_ps(terms[0]); /* ln 2 in two parts */
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
#pragma GCC unroll 7
    for (int i = 1; i < 8; i++)
        e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(e, n);
}

/* acc + a b, by hand for the same reason as `dot4`. */
INLINE __m512 add_product(__m512 acc, __m512 a, __m512 b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

/* c = a b, of eight rows of n numbers and n rows of 32. */
INLINE void times(const float *const a[QUERIES], const float *b, int64_t row, int64_t n, __m512 c[QUERIES][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < QUERIES; i++)
        c[i][0] = c[i][1] = _mm512_setzero_ps();
    for (int64_t s = 0; s < n; s++, b += row) {
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            const __m512 one = _mm512_set1_ps(a[i][s]);
            c[i][0] = add_product(c[i][0], one, b0);
            c[i][1] = add_product(c[i][1], one, b1);
        }
    }
}

/* Numbers: the keys, column by column; 0 or -infinity for each; the scores of eight queries. */
static int64_t attend_scratch(int64_t length, int64_t size)
{
    return (length + WIDE - 1) / WIDE * WIDE * (size + 1 + QUERIES) * (int64_t)sizeof(float);
}

static void attend(const struct head *h, void *scratch)
{
    const int64_t length = h->length, size = h->size, row = h->row, padded = (length + WIDE - 1) / WIDE * WIDE;
    float *keys = scratch, *hidden = keys + size * padded, *scores = hidden + padded;
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf((float)size));
    for (int64_t i = 0; i < padded; i += 16)
        for (int64_t j = 0; j < size; j += 16) {
            __m512i r[16];
#pragma GCC unroll 16
            for (int t = 0; t < 16; t++)
                r[t] = i + t < length ? _mm512_loadu_si512(h->key + (i + t) * row + j) : _mm512_setzero_si512();
            transpose(r);
#pragma GCC unroll 16
            for (int t = 0; t < 16; t++)
                _mm512_storeu_si512(keys + (j + t) * padded + i, r[t]);
        }
    for (int64_t i = 0; i < padded; i++)
        hidden[i] = i < length && (!h->mask || h->mask[i]) ? 0.0f : -INFINITY;
    for (int64_t m = 0; m < length; m += QUERIES) {
        const float *a[QUERIES], *weights[QUERIES];
        __m512 c[QUERIES][2];
        float share[QUERIES];
        for (int i = 0; i < QUERIES; i++) {
            a[i] = h->query + (m + i < length ? m + i : length - 1) * row;
            weights[i] = scores + i * padded;
        }
        for (int64_t n = 0; n < padded; n += WIDE) {
            times(a, keys + n, padded, size, c);
            const __m512 h0 = _mm512_loadu_ps(hidden + n), h1 = _mm512_loadu_ps(hidden + n + 16);
#pragma GCC unroll 8
            for (int i = 0; i < QUERIES; i++) {
                _mm512_storeu_ps(scores + i * padded + n, _mm512_fmadd_ps(c[i][0], scale, h0));
                _mm512_storeu_ps(scores + i * padded + n + 16, _mm512_fmadd_ps(c[i][1], scale, h1));
            }
        }
        for (int i = 0; i < QUERIES; i++) {
            float *of = scores + i * padded;
            __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
            for (int64_t n = 0; n < padded; n += 16)
                top = _mm512_max_ps(top, _mm512_loadu_ps(of + n));
            const float most = _mm512_reduce_max_ps(top);
            const int none = most == -INFINITY; /* nothing may be attended to: zeros, as with PyTorch */
            const __m512 shift = _mm512_set1_ps(none ? 0.0f : most);
            for (int64_t n = 0; n < padded; n += 16) {
                const __m512 e = exponential(_mm512_sub_ps(_mm512_loadu_ps(of + n), shift));
                total = _mm512_add_ps(total, e);
                _mm512_storeu_ps(of + n, e);
            }
            share[i] = none ? 0.0f : 1.0f / _mm512_reduce_add_ps(total);
        }
        for (int64_t n = 0; n < size; n += WIDE) {
            times(weights, h->value + n, row, length, c);
#pragma GCC unroll 8
            for (int i = 0; i < QUERIES; i++)
                if (m + i < length) {
                    float *to = h->query + (m + i) * row + n;
                    _mm512_storeu_ps(to, _mm512_mul_ps(c[i][0], _mm512_set1_ps(share[i])));
                    _mm512_storeu_ps(to + 16, _mm512_mul_ps(c[i][1], _mm512_set1_ps(share[i])));
                }
        }
    }
}

const struct isa bitmaps_avx512 = {"avx512", COLUMNS, FEW, 1, 2, scratch, block, round_row_64, sign_row, gelu_16, add_norm, attend_scratch, attend};

/* -- AMX: products of tiles of 16 by 64 bytes -- */

#if defined(HAVE_AMX)
#pragma GCC target("amx-tile,amx-int8")

/* A tile's rows; inputs of a product; tokens and outputs of four sums; inputs of a panel, which stays in the first cache. */
enum { SIDE = 16, STEP = 64, STRIP = 2 * SIDE, CHUNK = 1024 };

struct tiles {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* For `count` tokens, at most 32. Tiles 0 to 3 are sums, of the first 16 tokens by both halves of the outputs, then of the others; 4
 * and 5 the activations of these and those; 6 and 7 the weights of both halves. */
static void configure(int64_t count)
{
    const uint8_t first = count < SIDE ? count : SIDE, second = count > SIDE ? count - SIDE : 1;
    const struct tiles tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {first, first, second, second, first, second, SIDE, SIDE}};
    __asm__ volatile("ldtilecfg %0" : : "m"(tiles)); /* gcc 12's intrinsic tells that eight bytes are read */
}

/* `count` tokens by 32 outputs and k inputs, added to the sums if there are `some`. A panel has the weights as a tile wants them:
 * four inputs of sixteen outputs are a row. Activations are signed bytes and bits unsigned, or activations + 128 unsigned and weights
 * signed bytes. */
INLINE void tile_sums(const uint8_t *a, int64_t stride, const __m512i *b, int64_t k, int64_t count, const int int8, int some,
                      int32_t sums[][STRIP])
{
    const int64_t row = sizeof sums[0], panel = STRIP * 4;
    const int two = count > SIDE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (some) {
        _tile_loadd(0, sums[0], row);
        _tile_loadd(1, sums[0] + SIDE, row);
        if (two) {
            _tile_loadd(2, sums[SIDE], row);
            _tile_loadd(3, sums[SIDE] + SIDE, row);
        }
    }
#define ADD(SUM, A, B)                                                                                                           \
    if (int8)                                                                                                                    \
        _tile_dpbusd(SUM, A, B);                                                                                                 \
    else                                                                                                                         \
        _tile_dpbsud(SUM, A, B)
    for (int64_t s = 0; s < k; s += STEP, b += STEP / 4 * (STRIP / 16)) {
        _tile_loadd(4, a + s, stride);
        _tile_loadd(6, b, panel);
        ADD(0, 4, 6);
        _tile_loadd(7, b + 1, panel);
        ADD(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + SIDE * stride + s, stride);
            ADD(2, 5, 6);
            ADD(3, 5, 7);
        }
    }
#undef ADD
    _tile_stored(0, sums[0], row);
    _tile_stored(1, sums[0] + SIDE, row);
    if (two) {
        _tile_stored(2, sums[SIDE], row);
        _tile_stored(3, sums[SIDE] + SIDE, row);
    }
}

/* What a block needs beside the activations. */
struct tile_scratch {
    int32_t sums[2][ROWS][STRIP]; /* of both planes */
    __m512i weights[STRIP / 16 * CHUNK / 4];
    int32_t correction[STRIP];
};

static int64_t tile_scratch(int64_t k)
{
    const int64_t vectors = scratch(k), tiles = sizeof(struct tile_scratch);
    return vectors > tiles ? vectors : tiles;
}

/* From the sums of `count` tokens from m on to outputs n to `end`. */
INLINE void tile_outputs(const struct matrix *w, int64_t n, int64_t end, const struct rows *x, int64_t m0, int64_t m, int64_t count,
                         float *y, int64_t ldy, const struct tile_scratch *s, const enum product product)
{
    for (int64_t v = n; v < end; v += SIDE) {
        const struct columns columns = columns_of(w, v, end);
        const __m512i off = _mm512_loadu_si512(s->correction + (v - n));
        for (int64_t i = m; i < m + count; i++) {
            __m512i sum = _mm512_loadu_si512(s->sums[0][i - m0] + (v - n));
            if (x->planes == 2)
                sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), _mm512_loadu_si512(s->sums[1][i - m0] + (v - n)));
            finish(sum, product, w, columns, x, i, off, y + i * ldy + v);
        }
    }
}

/* Tokens m0 to m1 by outputs n0 to n1: a panel of weights at a time, for all of the tokens. */
INLINE void tile_panels(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                        int64_t ldy, struct tile_scratch *s, const enum product product)
{
    int64_t configured = 0;
    for (int64_t n = n0; n < n1; n += STRIP) {
        const int64_t end = n + STRIP < n1 ? n + STRIP : n1;
        memset(s->correction, 0, sizeof s->correction);
        for (int64_t k0 = 0; k0 < x->k; k0 += CHUNK) {
            const int64_t k = x->k - k0 < CHUNK ? x->k - k0 : CHUNK, inputs = product == BIT ? 8 : 1, bytes = (k + inputs - 1) / inputs;
            const int64_t there = (bytes + 3) / 4 * inputs, wanted = (k + STEP - 1) / STEP * (STEP / 4);
            const int last = k0 + k == x->k;
            panel(w, n, end, k0 / inputs, bytes, STRIP / 16, product, s->weights, s->correction);
            memset(s->weights + there * (STRIP / 16), 0, (wanted - there) * (STRIP / 16) * sizeof *s->weights);
            __asm__ volatile("" : : : "memory"); /* nor does it tell that loading a tile reads memory */
            for (int64_t m = m0, count; m < m1; m += count) {
                count = m1 - m < STRIP ? m1 - m : STRIP;
                if (count != configured)
                    configure(configured = count);
                if (last)
                    for (int64_t i = m; i < m + count; i++) { /* or the stores would wait for the lines of the output */
                        __builtin_prefetch(y + i * ldy + n, 1);
                        __builtin_prefetch(y + i * ldy + n + SIDE, 1);
                    }
                for (int plane = 0; plane < x->planes; plane++)
                    tile_sums(x->q + m * x->stride + plane * x->plane + k0, x->stride, s->weights, k, count, product == BYTE, k0 > 0,
                              s->sums[plane] + (m - m0));
                if (last)
                    tile_outputs(w, n, end, x, m0, m, count, y, ldy, s, product);
            }
        }
    }
    _tile_release();
}

static void tile_block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                       int64_t ldy, void *memory)
{
    if (m1 - m0 <= FEW || x->act == F32 || x->act == A1)
        block(w, n0, n1, x, m0, m1, y, ldy, memory);
    else if (w->kind == INT8)
        tile_panels(w, n0, n1, x, m0, m1, y, ldy, memory, BYTE);
    else
        tile_panels(w, n0, n1, x, m0, m1, y, ldy, memory, BIT);
}

const struct isa bitmaps_amx = {"amx", COLUMNS, FEW, 1, 2, tile_scratch, tile_block, round_row_64, sign_row, gelu_16, add_norm, attend_scratch, attend};
#endif
#endif
