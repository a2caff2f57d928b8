/* AVX-512: what is done to one row of numbers at a time. */
#if defined(__x86_64__)
#include "avx512_vectors.h"

#include "../rowwise.h"

INLINE void extend(const __m512 v[4], __m512i high[4], __m512i low[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512i bits = _mm512_castps_si512(v[i]);
        high[i] = _mm512_max_epi32(high[i], bits);
        low[i] = _mm512_max_epu32(low[i], bits);
    }
}

/* `range_of` of rowwise.h. */
static struct range range_of_row(const float *x, int64_t k)
{
    const int64_t whole = k / 64 * 64;
    __m512i high[4], low[4];
    __m512 v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        high[i] = _mm512_setzero_si512(), low[i] = _mm512_set1_epi32(NEGATIVE_ZERO);
    for (int64_t j = 0; j < whole; j += 64) {
        load_64(x + j, 64, 1, v);
        extend(v, high, low);
    }
    if (whole < k) {
        load_64(x + whole, k - whole, 0, v);
        extend(v, high, low);
    }
    const __m512i a = _mm512_max_epi32(high[0], high[1]), b = _mm512_max_epi32(high[2], high[3]);
    const __m512i c = _mm512_max_epu32(low[0], low[1]), d = _mm512_max_epu32(low[2], low[3]);
    return range_of_patterns(_mm512_reduce_max_epi32(_mm512_max_epi32(a, b)),
                             _mm512_reduce_max_epu32(_mm512_max_epu32(c, d)));
}

struct rounding avx512_rounding(const float *x, int64_t k, enum act act)
{
    return rounding_of(range_of_row(x, k), act);
}

INLINE __m512i to_bytes(const float *x, int64_t left, const int whole, __m512 inverse)
{
    __m512 v[4];
    __m512i q[4];
    load_64(x, left, whole, v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
    return bytes_of(q);
}

/* `round_row` of rowwise.h, 64 numbers at a time. */
static void round_row_64(const float *x, const struct rows *rows, int64_t m)
{
    if (rows->planes == 2) {
        round_row(x, rows, m);
        return;
    }
    const int64_t k = rows->k, whole = k / 64 * 64;
    const struct rounding rounding = avx512_rounding(x, k, rows->act);
    const __m512 times = _mm512_set1_ps(rounding.inverse);
    const __m512i zero = _mm512_set1_epi8((char)rows->zero), ones = _mm512_set1_epi8(1);
    uint8_t *q = rows->q + m * rows->stride;
    __m512i total = _mm512_setzero_si512();
    for (int64_t j = 0; j < k; j += 64) { /* a row is padded to whole vectors */
        const __m512i bytes
            = j < whole ? to_bytes(x + j, 64, 1, times) : to_bytes(x + j, k - j, 0, times);
        total = dot4(total, ones, bytes);
        _mm512_storeu_si512(q + j, _mm512_xor_si512(bytes, zero));
    }
    rows->scale[m] = rounding.scale;
    rows->sum[m] = (float)_mm512_reduce_add_epi32(total);
}

/* q = the bits of x >= 0, scale = mean(|x|). */
void avx512_sign(const float *x, const struct rows *rows, int64_t m)
{
    const int64_t k = rows->k;
    uint8_t *q = rows->q + m * rows->stride;
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    int64_t set = 0;
    memset(q, 0, rows->stride);
    for (int64_t j = 0; j < k; j += 16) {
        const __mmask16 there = lanes_of(k - j);
        const __m512 v = _mm512_maskz_loadu_ps(there, x + j);
        const uint16_t bits
            = _mm512_mask_cmp_ps_mask(there, v, _mm512_setzero_ps(), _CMP_GE_OQ);
        memcpy(q + j / 8, &bits, 2);
        set += __builtin_popcount(bits);
        const __m512 magnitude = _mm512_abs_ps(v);
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(magnitude)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(magnitude, 1)));
    }
    const double total = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    const float mean = (float)(total / (double)k);
    rows->scale[m] = isfinite(mean) ? mean : NAN;
    rows->sum[m] = (float)(2 * set - k);
}

/* GELU as rowwise.h describes it, with a reciprocal, because a division takes as long as the
 * rest. */
void avx512_gelu(float *x, int64_t n)
{
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    const __m512 end = _mm512_set1_ps(GELU_END), least = _mm512_set1_ps(-GELU_LEAST);
    for (int64_t j = 0; j < n; j += 16) {
        const __mmask16 there = lanes_of(n - j);
        const __m512 v = _mm512_maskz_loadu_ps(there, x + j), t = _mm512_mul_ps(v, v);
        __m512 p = _mm512_set1_ps(GELU_P[0]), q = _mm512_set1_ps(GELU_Q[0]);
#pragma GCC unroll 5
        for (int i = 1; i < GELU_TERMS; i++) {
            p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(GELU_P[i]));
            q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(GELU_Q[i]));
        }
        __m512 r = _mm512_rcp14_ps(q);
        r = _mm512_fmadd_ps(r, _mm512_fnmadd_ps(q, r, one), r); /* Newton: 14 bits become 28 */
        const __m512 erf = _mm512_mul_ps(_mm512_mul_ps(v, p), r);
        const __m512 half = _mm512_mul_ps(v, _mm512_set1_ps(0.5f));
        const __mmask16 above = _mm512_cmp_ps_mask(v, end, _CMP_GT_OQ);
        const __mmask16 below = _mm512_cmp_ps_mask(v, _mm512_sub_ps(zero, end), _CMP_LT_OQ);
        const __mmask16 negative = _mm512_cmp_ps_mask(v, zero, _CMP_LT_OQ);
        __m512 y = _mm512_fmadd_ps(half, erf, half);
        y = _mm512_mask_mov_ps(y, above, v);
        y = _mm512_mask_mov_ps(y, below, least);
        y = _mm512_mask_min_ps(y, negative, y, least);
        _mm512_mask_storeu_ps(x + j, there, y);
    }
}

const struct row_operations avx512_row_operations = {
    .round = round_row_64,
    .sign = avx512_sign,
    .gelu = avx512_gelu,
    .add_norm = add_norm,
};
END_TARGET
#endif
