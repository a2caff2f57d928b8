/* AVX2: what several kernels need. Compiles the including file for AVX2 up to END_TARGET. */
#ifndef BITMAPS_AVX2_VECTORS_H
#define BITMAPS_AVX2_VECTORS_H

#include "avx2.h"
#include "avx2_target.h"

INLINE __m256i load_256(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

/* acc + u s over pairs of bytes, u unsigned and s signed, in 16 bits. A weight is at most 1, so a
 * pair of products is in -256..254, and the sum of 128 pairs fits.
 * In assembly, because gcc 12 computes all products first and then runs out of registers for the
 * sums. tests/packed/test_machine_code.py checks that the sums stay in registers. */
INLINE __m256i add_pairs(__m256i acc, __m256i u, __m256i s)
{
    __m256i product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(acc), "=&x"(product)
            : "x"(u), "xm"(s));
    return acc;
}

/* How many bits of each byte are set. */
INLINE __m256i popcount(__m256i v)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_and_si256(v, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
    return _mm256_add_epi8(_mm256_shuffle_epi8(counts, low), _mm256_shuffle_epi8(counts, high));
}

enum { NIBBLES = 31 }; /* results of `popcount` that a byte can add up */

/* Add bytes to lanes of four bytes each. */
INLINE __m256i add_bytes(__m256i to, __m256i bytes)
{
    const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
    return _mm256_add_epi32(to, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* The sums over the lanes of each of eight vectors. */
INLINE __m256i reduce(const __m256i t[8])
{
    const __m256i a
        = _mm256_hadd_epi32(_mm256_hadd_epi32(t[0], t[1]), _mm256_hadd_epi32(t[2], t[3]));
    const __m256i b
        = _mm256_hadd_epi32(_mm256_hadd_epi32(t[4], t[5]), _mm256_hadd_epi32(t[6], t[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                            _mm256_permute2x128_si256(a, b, 0x31));
}

/* The last `left` < 32 bytes of a row, then zeros. Reads nothing beyond `end`, the matrix's. */
static inline __m256i last_weights(const uint8_t *at, int64_t left, const uint8_t *end)
{
    static const uint8_t kept[64] = {[0 ... 31] = 0xff};
    uint8_t padded[32] = {0};
    if (end - at < 32)
        at = memcpy(padded, at, left);
    return _mm256_and_si256(load_256(at), load_256(kept + 32 - left));
}

/* Floats of outputs n to n + 7, of which those are read that are there. */
INLINE __m256 load_floats(const float *of, int64_t n, __m256i there, const int whole)
{
    return whole ? _mm256_loadu_ps(of + n) : _mm256_maskload_ps(of + n, there);
}

/* `output_of` in a vector. The barrier keeps -fassociative-math from multiplying in another order,
 * which it may choose differently for each caller. */
INLINE void write_vector(const struct block *b, int64_t m, int64_t n, __m256i dots, const int whole)
{
    const struct matrix *w = b->w;
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(b->n1 - n)), place);
    const __m256 dot = _mm256_cvtepi32_ps(dots), sum = _mm256_set1_ps(b->x->sum[m]);
    const __m256 high = load_floats(w->high, n, there, whole);
    float *y = b->y + m * b->ldy + n;
    __m256 value;
    if (w->low) {
        const __m256 low = load_floats(w->low, n, there, whole);
        value = _mm256_mul_ps(_mm256_sub_ps(high, low), dot);
        value = _mm256_add_ps(value, _mm256_mul_ps(low, sum));
    } else if (w->kind == BITS) {
        value = _mm256_sub_ps(_mm256_mul_ps(_mm256_set1_ps(2.0f), dot), sum);
        value = _mm256_mul_ps(high, value);
    } else {
        value = _mm256_mul_ps(high, dot);
    }
    __asm__("" : "+x"(value));
    value = _mm256_mul_ps(value, _mm256_set1_ps(b->x->scale[m]));
    if (w->bias)
        value = _mm256_add_ps(value, load_floats(w->bias, n, there, whole));
    if (whole)
        _mm256_storeu_ps(y, value);
    else
        _mm256_maskstore_ps(y, there, value);
}

/* Write outputs n to n + 7 of token m, from their dot products; fewer at the end of a block. */
INLINE void write_outputs(const struct block *b, int64_t m, int64_t n, __m256i dots)
{
    if (b->n1 - n >= 8)
        write_vector(b, m, n, dots, 1);
    else
        write_vector(b, m, n, dots, 0);
}

#endif
