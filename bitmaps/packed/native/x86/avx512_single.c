/* AVX-512, one token and one-bit weights, used as they are: unpacking them would not pay. Lanes are
 * inputs. Outputs come in sixteens, of two halves with eight rows of weights each. */
#if defined(__x86_64__)
#include "avx512_vectors.h"

enum { HALF = 8 };

/* Sixteen sums over lanes: t[j] has those of row 2 j in its lower half, of row 2 j + 1 in its
 * upper. */
INLINE __m512i reduce_halves(const __m512i t[8])
{
    __m512i u[4], v[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        u[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(t[2 * i], t[2 * i + 1]),
                                _mm512_unpackhi_epi32(t[2 * i], t[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(u[2 * i], u[2 * i + 1]),
                                _mm512_unpackhi_epi64(u[2 * i], u[2 * i + 1]));
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x88),
                                          _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
    const __m512i order
        = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_epi32(order, sums);
}

/* A vector of 32 bytes of one row and 32 of another. If they are not `whole`, `mask` tells which of
 * them are there. */
INLINE __m512i two_rows(const uint8_t *low, const uint8_t *high, __mmask32 mask, const int whole)
{
    const __m256i a = whole ? _mm256_loadu_si256((const __m256i *)low)
                            : _mm256_maskz_loadu_epi8(mask, low);
    const __m256i b = whole ? _mm256_loadu_si256((const __m256i *)high)
                            : _mm256_maskz_loadu_epi8(mask, high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

INLINE void finish_sixteen(const struct block *b, int64_t n, const __m512i total[8],
                           enum product product)
{
    finish(reduce_halves(total), product, b->w, epilogue_of(b->w, n, b->n1), b->x, b->m0,
           _mm512_setzero_si512(), b->y + b->m0 * b->ldy + n);
}

/* -- signs -- */

INLINE void add_signs(const uint8_t *const row[HALF], int64_t s, __mmask32 mask, const int whole,
                      const uint8_t *q, __m512i t[4])
{
    const __m512i a = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(q + s)));
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        const __m512i weights = two_rows(row[2 * r] + s, row[2 * r + 1] + s, mask, whole);
        t[r] = _mm512_add_epi32(t[r], differences(weights, a));
    }
}

/* The first `wide` bytes of each row, a multiple of 64, with a vector for each row. */
INLINE void add_wide_signs(const uint8_t *const row[HALF], int64_t wide, const uint8_t *q,
                           __m512i t[4])
{
    __m512i c[HALF];
#pragma GCC unroll 8
    for (int i = 0; i < HALF; i++)
        c[i] = _mm512_setzero_si512();
    for (int64_t s = 0; s < wide; s += 64) {
        const __m512i a = _mm512_loadu_si512(q + s);
#pragma GCC unroll 8
        for (int i = 0; i < HALF; i++)
            c[i] = _mm512_add_epi32(c[i], differences(_mm512_loadu_si512(row[i] + s), a));
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        t[r] = _mm512_add_epi32(_mm512_shuffle_i64x2(c[2 * r], c[2 * r + 1], 0x44),
                                _mm512_shuffle_i64x2(c[2 * r], c[2 * r + 1], 0xee));
}

/* Outputs n0 to n1 - 1. Vectors have 64 bytes of one row; what remains of the rows, or all of short
 * rows, is read in vectors of two rows. */
static NOINLINE void single_signs(const struct block *block, int64_t n0)
{
    const struct block b = *block;
    const int64_t bytes = row_bytes(b.w), wide = bytes < 128 ? 0 : bytes / 64 * 64;
    const __mmask32 rest = _bzhi_u32(~0u, (uint32_t)(bytes % 32));
    const uint8_t *q = b.x->q + b.m0 * b.x->stride, *row[HALF];
    for (int64_t n = n0; n < b.n1; n += 2 * HALF) {
        __m512i total[8];
        for (int half = 0; half < 2; half++) {
            __m512i t[4];
            rows_of_weights(&b, n + HALF * half, HALF, row);
            if (wide)
                add_wide_signs(row, wide, q, t);
            else
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
                    t[r] = _mm512_setzero_si512();
            int64_t s = wide;
            for (; s + 32 <= bytes; s += 32)
                add_signs(row, s, 0, 1, q, t);
            if (s < bytes)
                add_signs(row, s, rest, 0, q, t);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
                total[4 * half + r] = t[r];
        }
        finish_sixteen(&b, n, total, SIGN);
    }
}

/* Rows of 96 bytes (768 inputs), sixteen at a time: two rows are three whole vectors, which take
 * two thirds of the time of six halves. Returns the first output that remains. */
static NOINLINE int64_t single_signs_96(const struct block *b)
{
    const uint8_t *q = b->x->q + b->m0 * b->x->stride;
    const __m512i first = _mm512_loadu_si512(q);
    const __m256i last = _mm256_loadu_si256((const __m256i *)(q + 64));
    /* the last 32 bytes of a row and the first of the next; then the rest of the next */
    const __m512i between = _mm512_inserti64x4(_mm512_castsi256_si512(last),
                                               _mm512_castsi512_si256(first), 1);
    const __m512i second = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_extracti64x4_epi64(first, 1)), last, 1);
    int64_t n = b->n0;
    for (; n + 16 <= b->n1; n += 16) {
        const uint8_t *from = b->w->weight + n * 96;
        __m512i total[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++, from += 192) {
            const __m512i a = differences(_mm512_loadu_si512(from), first);
            const __m512i middle = differences(_mm512_loadu_si512(from + 64), between);
            const __m512i c = differences(_mm512_loadu_si512(from + 128), second);
            /* the upper half of a, and the lower half of c */
            const __m512i inner = _mm512_shuffle_i64x2(a, c, 0x4e);
            const __m512i outer = _mm512_mask_blend_epi64(0xf0, a, c);
            total[r] = _mm512_add_epi32(_mm512_add_epi32(middle, inner), outer);
        }
        finish_sixteen(b, n, total, SIGN);
    }
    return n;
}

void avx512_single_signs(const struct block *b)
{
    single_signs(b, row_bytes(b->w) == 96 ? single_signs_96(b) : b->n0);
}

/* -- bytes -- */

/* Bit b of each byte of the weights, left where it is, is the unsigned byte 0 or 2^b. So 32 bytes
 * of weights are 256 inputs. Each b has an accumulator, which is shifted right by b in the end. The
 * upper four bits are shifted down first, so that four accumulators suffice.
 *
 * The activations are put into the order of the bits: inputs 0, 8, 16, ... of the 256 first,
 * then 1, 9, 17, ... Each of these vectors of 32 bytes is stored twice, for two rows of weights:
 * broadcasting it would take a vector operation, and those are the bottleneck. */
enum { PLANES = 8, SPAN = 256 };

static void order_by_bit(const uint8_t *q, int64_t stride, uint64_t *out)
{
    const __m512i order = _mm512_set_epi8(
        63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5,
        60, 52, 44, 36, 28, 20, 12, 4, 59, 51, 43, 35, 27, 19, 11, 3, 58, 50, 42, 34, 26, 18, 10, 2,
        57, 49, 41, 33, 25, 17, 9, 1, 56, 48, 40, 32, 24, 16, 8, 0);
    for (int64_t s = 0; s < stride; s += SPAN, out += SPAN / 4)
        for (int i = 0; i < SPAN / 64; i++) {
            uint64_t eight[PLANES] = {0};
            if (s + 64 * i < stride) {
                const __m512i bytes = _mm512_loadu_si512(q + s + 64 * i);
                _mm512_storeu_si512(eight, _mm512_permutexvar_epi8(order, bytes));
            }
            for (int b = 0; b < PLANES; b++)
                out[8 * b + i] = out[8 * b + 4 + i] = eight[b];
        }
}

INLINE void add_bits(const uint8_t *const row[HALF], int64_t s, __mmask32 mask, const int whole,
                     const __m512i *q, __m512i c[4][4])
{
    __m512i bits[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        bits[r] = two_rows(row[2 * r] + s, row[2 * r + 1] + s, mask, whole);
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

/* One plane of activations, for eight rows of weights: adds to 256 t if there are `more` in it. */
INLINE void add_plane(const uint8_t *const row[HALF], int64_t bytes, const __m512i *q, int more,
                      __m512i t[4])
{
    const int64_t whole = bytes / 32 * 32;
    const __mmask32 rest = _bzhi_u32(~0u, (uint32_t)(bytes - whole));
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
        t[r] = more ? _mm512_add_epi32(_mm512_slli_epi32(t[r], 8), c[r][0]) : c[r][0];
#pragma GCC unroll 4
        for (int b = 1; b < 4; b++)
            t[r] = _mm512_add_epi32(t[r], _mm512_srai_epi32(c[r][b], b));
    }
}

INLINE void single_bits(const struct block *block, uint64_t *ordered, const int planes)
{
    const struct block b = *block;
    const struct rows *x = b.x;
    const int64_t bytes = row_bytes(b.w), plane = (x->stride + SPAN - 1) / SPAN * SPAN / 4;
    for (int p = 0; p < planes; p++)
        order_by_bit(x->q + b.m0 * x->stride + p * x->plane, x->stride, ordered + p * plane);
    for (int64_t n = b.n0; n < b.n1; n += 2 * HALF) {
        __m512i total[8];
        for (int half = 0; half < 2; half++) {
            const uint8_t *row[HALF];
            rows_of_weights(&b, n + HALF * half, HALF, row);
            for (int p = 0; p < planes; p++)
                add_plane(row, bytes, (const __m512i *)(ordered + p * plane), p, total + 4 * half);
        }
        finish_sixteen(&b, n, total, BIT);
    }
}

/* Apart, because gcc 12 spills accumulators if one function has both. */
static NOINLINE void single_plane(const struct block *b, uint64_t *ordered)
{
    single_bits(b, ordered, 1);
}

static NOINLINE void two_planes(const struct block *b, uint64_t *ordered)
{
    single_bits(b, ordered, 2);
}

void avx512_single_bits(const struct block *b, void *scratch)
{
    (b->x->planes == 1 ? single_plane : two_planes)(b, scratch);
}
END_TARGET
#endif
