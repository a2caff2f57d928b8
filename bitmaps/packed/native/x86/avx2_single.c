/* AVX2, one token at a time and one-bit weights. Unpacking the weights would not pay, so they are
 * used as they are.
 *
 * Bit b of each byte of the weights, left where it is, is the unsigned byte 0 or 2^b. So 32
 * bytes of weights are 256 inputs, with an accumulator for each b. The upper four bits are
 * shifted down first: then 2^b is at most 8, and 16 bits hold the sums of 2,048 inputs. The
 * activations are put into the order of the bits: inputs 0, 8, 16, ... of the 256 first, then 1,
 * 9, 17, ... */
#if defined(__x86_64__)
#include "avx2_vectors.h"

enum { PLANES = 8, SPAN = 256, SPANS = 8 };

static void order_by_bit(const uint8_t *q, int64_t stride, uint8_t *out)
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
        const __m256i one = _mm256_and_si256(bits, _mm256_set1_epi8((char)(1 << b % 4)));
        c[b % 4] = add_pairs(c[b % 4], one, q[b]);
    }
}

/* Eight times the dot product of a row with activations, spread over eight lanes. */
INLINE __m256i row_of_bits(const uint8_t *row, int64_t bytes, const uint8_t *end, const __m256i *q)
{
    __m256i total = _mm256_setzero_si256();
    for (int64_t s = 0; s < bytes;) {
        const int64_t stop = s + 32 * SPANS < bytes ? s + 32 * SPANS : bytes;
        __m256i c[4];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
            c[b] = _mm256_setzero_si256();
        for (; s + 32 <= stop; s += 32, q += PLANES)
            add_bits(load_256(row + s), q, c);
        if (s < stop) {
            add_bits(last_weights(row + s, stop - s, end), q, c);
            s = stop;
        }
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            const __m256i weight = _mm256_set1_epi16((short)(8 >> b));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(c[b], weight));
        }
    }
    return total;
}

/* popcount(row xor signs), spread over eight lanes. A row of signs is padded to 64 bytes, so the
 * last vector of it can be read whole. */
INLINE __m256i row_of_signs(const uint8_t *row, int64_t bytes, const uint8_t *end, const uint8_t *q)
{
    __m256i total = _mm256_setzero_si256();
    for (int64_t s = 0; s < bytes;) {
        const int64_t stop = s + 32 * NIBBLES < bytes ? s + 32 * NIBBLES : bytes;
        __m256i c = _mm256_setzero_si256();
        for (; s + 32 <= stop; s += 32) {
            const __m256i different = _mm256_xor_si256(load_256(row + s), load_256(q + s));
            c = _mm256_add_epi8(c, popcount(different));
        }
        if (s < stop) {
            const __m256i last = last_weights(row + s, stop - s, end);
            c = _mm256_add_epi8(c, popcount(_mm256_xor_si256(last, load_256(q + s))));
            s = stop;
        }
        total = add_bytes(total, c);
    }
    return total;
}

void avx2_single_bits(const struct block *block, int64_t m, uint8_t *ordered)
{
    const struct block b = *block;
    const struct rows *x = b.x;
    const int64_t bytes = row_bytes(b.w), plane = (x->stride + SPAN - 1) / SPAN * SPAN;
    const uint8_t *q = x->q + m * x->stride, *end = b.w->weight + b.w->n * bytes, *row[8];
    for (int p = 0; p < x->planes; p++)
        order_by_bit(q + p * x->plane, x->stride, ordered + p * plane);
    for (int64_t n = b.n0; n < b.n1; n += 8) {
        __m256i t[8], dots = _mm256_setzero_si256();
        rows_of_weights(&b, n, 8, row);
        for (int p = 0; p < x->planes; p++) {
            const __m256i *in_order = (const __m256i *)(ordered + p * plane);
            for (int i = 0; i < 8; i++)
                t[i] = row_of_bits(row[i], bytes, end, in_order);
            dots = _mm256_slli_epi32(dots, 8);
            dots = _mm256_add_epi32(dots, _mm256_srai_epi32(reduce(t), 3));
        }
        write_outputs(&b, m, n, dots);
    }
}

void avx2_single_signs(const struct block *block, int64_t m)
{
    const struct block b = *block;
    const int64_t bytes = row_bytes(b.w);
    const uint8_t *q = b.x->q + m * b.x->stride, *end = b.w->weight + b.w->n * bytes, *row[8];
    for (int64_t n = b.n0; n < b.n1; n += 8) {
        __m256i t[8];
        rows_of_weights(&b, n, 8, row);
        for (int i = 0; i < 8; i++)
            t[i] = row_of_signs(row[i], bytes, end, q);
        const __m256i positive = _mm256_set1_epi32(positive_signs(b.x, m));
        write_outputs(&b, m, n, _mm256_sub_epi32(positive, reduce(t)));
    }
}
END_TARGET
#endif
