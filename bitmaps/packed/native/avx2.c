/* AVX2 without VNNI: x86 since 2013. Bits are unsigned bytes and activations signed ones, and as bits are at most 1, a pair of
 * products lies in -256..254 and 16 bits hold the sum of 128 pairs. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#include <immintrin.h>

#include "plain.h"

#define INLINE static inline __attribute__((always_inline))
enum { COLUMNS = 16, VECTORS = COLUMNS / 8, TILE = 4, FEW = 5, PAIRS = 128, NIBBLES = 31 };

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
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(u), "xm"(s));
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

/* From eight dot products of row m, with the columns n to n + 7, to outputs: `output`, eight at a time if there are as many. */
INLINE void outputs(const struct matrix *w, int64_t n, int64_t n1, const struct rows *x, int64_t m, __m256i dots, float *y,
                    int64_t ldy)
{
    if (n1 - n < 8) {
        int32_t each[8];
        memcpy(each, &dots, sizeof each);
        for (int64_t i = n; i < n1; i++)
            output(w, i, x, m, (float)each[i - n], y, ldy);
        return;
    }
    const __m256 dot = _mm256_cvtepi32_ps(dots), high = _mm256_loadu_ps(w->high + n), sum = _mm256_set1_ps(x->sum[m]);
    __m256 value;
    if (w->low) {
        const __m256 low = _mm256_loadu_ps(w->low + n);
        value = _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(high, low), dot), _mm256_mul_ps(low, sum));
    } else if (w->kind == BITS) {
        value = _mm256_mul_ps(high, _mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(2.0f), dot), sum));
    } else {
        value = _mm256_mul_ps(high, dot);
    }
    value = _mm256_mul_ps(value, _mm256_set1_ps(x->scale[m]));
    if (w->bias)
        value = _mm256_add_ps(value, _mm256_loadu_ps(w->bias + n));
    _mm256_storeu_ps(y + m * ldy + n, value);
}

/* -- a few rows of activations, for which a panel would not pay -- */

/* Bit b of each byte of the weights, as it stands, is the unsigned byte 0 or 2^b: so 32 bytes of weights are 256 inputs. The upper
 * four bits are shifted down first, so that 2^b is at most 8 and 16 bits hold the sums of 2,048 inputs, with an accumulator for each
 * b. The activations are put into the order in which the bits come: first inputs 0, 8, 16, ... of the 256, then 1, 9, 17, ... */
enum { PLANES = 8, SPAN = 256, SPANS = 8 };

static void by_bit(const uint8_t *q, int64_t stride, uint8_t *out)
{
    for (int64_t s = 0; s < stride; s += SPAN, out += SPAN) {
        const int64_t groups = stride - s < SPAN ? (stride - s) / PLANES : SPAN / PLANES;
        memset(out, 0, SPAN);
        for (int64_t j = 0; j < groups; j++)
            for (int b = 0; b < PLANES; b++)
                out[b * (SPAN / PLANES) + j] = q[s + PLANES * j + b];
    }
}

INLINE void add_bits(__m256i bits, const __m256i *q, __m256i c[4])
{
#pragma GCC unroll 8
    for (int b = 0; b < PLANES; b++) {
        if (b == 4)
            bits = _mm256_srli_epi16(bits, 4);
        c[b % 4] = add_pairs(c[b % 4], _mm256_and_si256(bits, _mm256_set1_epi8((char)(1 << b % 4))), q[b]);
    }
}

/* The last bytes of a row, fewer than 32, and zeros. What is beyond the matrix must not be read. */
static __m256i last_weights(const uint8_t *at, int64_t left, const uint8_t *end)
{
    static const uint8_t kept[64] = {[0 ... 31] = 0xff};
    uint8_t padded[32] = {0};
    if (end - at < 32)
        at = memcpy(padded, at, left);
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)at), _mm256_loadu_si256((const __m256i *)(kept + 32 - left)));
}

/* Eight times the dot product of a row with activations, in eight lanes. */
INLINE __m256i single_row(const uint8_t *row, int64_t bytes, const uint8_t *end, const __m256i *q)
{
    __m256i total = _mm256_setzero_si256();
    for (int64_t s = 0; s < bytes;) {
        const int64_t stop = s + 32 * SPANS < bytes ? s + 32 * SPANS : bytes;
        __m256i c[4];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
            c[b] = _mm256_setzero_si256();
        for (; s + 32 <= stop; s += 32, q += PLANES)
            add_bits(_mm256_loadu_si256((const __m256i *)(row + s)), q, c);
        if (s < stop) {
            add_bits(last_weights(row + s, stop - s, end), q, c);
            s = stop;
        }
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
            total = _mm256_add_epi32(total, _mm256_madd_epi16(c[b], _mm256_set1_epi16((short)(8 >> b))));
    }
    return total;
}

/* popcount(row xor signs), in eight lanes. */
INLINE __m256i single_row_of_signs(const uint8_t *row, int64_t bytes, const uint8_t *end, const uint8_t *q)
{
    __m256i total = _mm256_setzero_si256();
    for (int64_t s = 0; s < bytes;) {
        const int64_t stop = s + 32 * NIBBLES < bytes ? s + 32 * NIBBLES : bytes;
        __m256i c = _mm256_setzero_si256();
        for (; s + 32 <= stop; s += 32)
            c = _mm256_add_epi8(c, popcount(_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(row + s)),
                                                             _mm256_loadu_si256((const __m256i *)(q + s)))));
        if (s < stop) { /* a row of activations has 64 bytes or a multiple of that */
            c = _mm256_add_epi8(c, popcount(_mm256_xor_si256(last_weights(row + s, stop - s, end),
                                                             _mm256_loadu_si256((const __m256i *)(q + s)))));
            s = stop;
        }
        total = add_bytes(total, c);
    }
    return total;
}

/* The sums over the lanes of each of eight vectors. */
INLINE __m256i reduce(const __m256i t[8])
{
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(t[0], t[1]), _mm256_hadd_epi32(t[2], t[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(t[4], t[5]), _mm256_hadd_epi32(t[6], t[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Row m of the activations. */
INLINE void single(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m, float *y, int64_t ldy,
                   uint8_t *ordered, const int signs)
{
    const int64_t bytes = row_bytes(w), plane = (x->stride + SPAN - 1) / SPAN * SPAN;
    const uint8_t *q = x->q + m * x->stride, *end = w->weight + w->n * bytes;
    if (!signs)
        for (int p = 0; p < x->planes; p++)
            by_bit(q + p * x->plane, x->stride, ordered + p * plane);
    for (int64_t n = n0; n < n1; n += 8) {
        __m256i t[8], dots = _mm256_setzero_si256();
        for (int p = 0; p < (signs ? 1 : x->planes); p++) {
            for (int i = 0; i < 8; i++) {
                const uint8_t *row = w->weight + (n + i < n1 ? n + i : n1 - 1) * bytes;
                t[i] = signs ? single_row_of_signs(row, bytes, end, q)
                             : single_row(row, bytes, end, (const __m256i *)(ordered + p * plane));
            }
            dots = signs ? _mm256_sub_epi32(_mm256_set1_epi32(signs_set(x, m)), reduce(t))
                         : _mm256_add_epi32(_mm256_slli_epi32(dots, 8), _mm256_srai_epi32(reduce(t), 3));
        }
        outputs(w, n, n1, x, m, dots, y, ldy);
    }
}

static __attribute__((noinline)) void single_bit(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,
                                                 float *y, int64_t ldy, uint8_t *ordered)
{
    single(w, n0, n1, x, m, y, ldy, ordered, 0);
}

static __attribute__((noinline)) void single_sign(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m,
                                                  float *y, int64_t ldy)
{
    single(w, n0, n1, x, m, y, ldy, NULL, 1);
}

/* -- int8 weights -- */

/* `vpmaddubsw` wants one operand without signs: the weights' magnitudes, and to the activations go the weights' signs. A pair of
 * products is at most 2 * 128 * 127, which 16 bits hold, and no second pair: so it is widened at once. The lanes are inputs. */
enum { PAIR = 2, GROUP = 4 };

INLINE void add_bytes_of(const __m256i w, const uint8_t *const q[PAIR], int64_t s, const int count, __m256i c[PAIR])
{
    const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 2
    for (int m = 0; m < count; m++) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(q[m] + s));
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
        c[m] = _mm256_add_epi32(c[m], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
}

/* Rows m to m + count - 1 of the activations by eight columns, four at a time. */
INLINE void eight_columns(const struct matrix *w, int64_t n, int64_t n1, const struct rows *x, int64_t m, const int count, float *y,
                          int64_t ldy)
{
    const int64_t bytes = row_bytes(w), whole = bytes / 32 * 32;
    const uint8_t *end = w->weight + w->n * bytes, *q[PAIR];
    __m256i t[PAIR][2 * GROUP];
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
        q[i] = x->q + (m + i) * x->stride;
    for (int group = 0; group < 2 * GROUP; group += GROUP) {
        const uint8_t *row[GROUP];
        __m256i c[GROUP][PAIR];
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++) {
            row[i] = w->weight + (n + group + i < n1 ? n + group + i : n1 - 1) * bytes;
            c[i][0] = c[i][1] = _mm256_setzero_si256();
        }
        for (int64_t s = 0; s < whole; s += 32)
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++)
                add_bytes_of(_mm256_loadu_si256((const __m256i *)(row[i] + s)), q, s, count, c[i]);
        if (whole < bytes)
#pragma GCC unroll 4
            for (int i = 0; i < GROUP; i++)
                add_bytes_of(last_weights(row[i] + whole, bytes - whole, end), q, whole, count, c[i]);
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++)
#pragma GCC unroll 2
            for (int j = 0; j < count; j++)
                t[j][group + i] = c[i][j];
    }
#pragma GCC unroll 2
    for (int i = 0; i < count; i++)
        outputs(w, n, n1, x, m + i, reduce(t[i]), y, ldy);
}

static __attribute__((noinline)) void bytes_block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0,
                                                  int64_t m1, float *y, int64_t ldy)
{
    for (int64_t n = n0; n < n1; n += 2 * GROUP) {
        int64_t m = m0;
        for (; m + PAIR <= m1; m += PAIR)
            eight_columns(w, n, n1, x, m, PAIR, y, ldy);
        if (m < m1)
            eight_columns(w, n, n1, x, m, 1, y, ldy);
    }
}

static int64_t scratch(int64_t k)
{
    const int64_t panels = (k + 63) / 32 * 32 * COLUMNS + 64, plain = plain_scratch(k);
    return panels > plain ? panels : plain;
}

/* Any number of rows by sixteen columns. */
static __attribute__((noinline)) void panel_block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0,
                                                  int64_t m1, float *y, int64_t ldy, void *memory)
{
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

static void block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                  int64_t ldy, void *memory)
{
    if (x->act == F32) {
        plain_block(w, n0, n1, x, m0, m1, y, ldy, memory);
        return;
    }
    if (w->kind == INT8) {
        bytes_block(w, n0, n1, x, m0, m1, y, ldy);
        return;
    }
    if (m1 - m0 <= FEW) {
        for (int64_t m = m0; m < m1; m++)
            if (x->act == A1)
                single_sign(w, n0, n1, x, m, y, ldy);
            else
                single_bit(w, n0, n1, x, m, y, ldy, memory);
        return;
    }
    panel_block(w, n0, n1, x, m0, m1, y, ldy, memory);
}

const struct isa bitmaps_avx2 = {"avx2", COLUMNS, FEW, 0, 1, scratch, block, round_row, plain_sign_row, gelu, add_norm, NULL, NULL};
#endif
