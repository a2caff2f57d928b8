/* AVX-512: softmax(q k^T / sqrt(size)) v of one head, in fp32, for eight queries at a time. */
#if defined(__x86_64__)
#include "avx512_vectors.h"

#include <math.h>

enum { QUERIES = 8, WIDE = 32 }; /* keys are padded to a multiple of WIDE */

/* The scratch memory, in floats. */
struct arrays {
    int64_t padded; /* tokens */
    float *keys;    /* (size, padded): the keys, transposed */
    float *hidden;  /* (padded): 0, or -infinity for keys that are not attended to */
    float *scores;  /* (QUERIES, padded) */
};

static int64_t padded_length(int64_t length) { return (length + WIDE - 1) / WIDE * WIDE; }

static int64_t scratch_bytes(int64_t length, int64_t size)
{
    return padded_length(length) * (size + 1 + QUERIES) * (int64_t)sizeof(float);
}

INLINE struct arrays lay_out(const struct head *h, float *memory)
{
    const int64_t padded = padded_length(h->length);
    float *hidden = memory + h->size * padded;
    return (struct arrays){padded, memory, hidden, hidden + padded};
}

/* e^x for x <= 0, and 0 below -110: 2^n e^f with |f| <= ln 2 / 2, where e^f is its Taylor series
 * to the seventh degree. NaN stays NaN: the maximum returns its second operand then. */
INLINE __m512 exponential(__m512 x)
{
    static const float terms[]
        = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
    const __m512 quotient = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n
        = _mm512_roundscale_ps(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts */
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 e = _mm512_set1_ps(terms[0]);
#pragma GCC unroll 7
    for (int i = 1; i < 8; i++)
        e = _mm512_fmadd_ps(e, f, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(e, n);
}

/* acc + a b, in assembly for the same reason as `dot4`. */
INLINE __m512 add_product(__m512 acc, __m512 a, __m512 b)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

/* c = a b, of eight rows of n numbers and n rows of 32. */
INLINE void multiply(const float *const a[QUERIES], const float *b, int64_t row, int64_t n,
                     __m512 c[QUERIES][2])
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

INLINE void prepare_keys(const struct head *h, const struct arrays *l)
{
    for (int64_t i = 0; i < l->padded; i += 16)
        for (int64_t j = 0; j < h->size; j += 16) {
            const float *from = h->key + i * h->row + j;
            __m512i r[16];
#pragma GCC unroll 16
            for (int t = 0; t < 16; t++)
                r[t] = i + t < h->length ? _mm512_loadu_si512(from + t * h->row)
                                         : _mm512_setzero_si512();
            transpose(r);
#pragma GCC unroll 16
            for (int t = 0; t < 16; t++)
                _mm512_storeu_si512(l->keys + (j + t) * l->padded + i, r[t]);
        }
    for (int64_t i = 0; i < l->padded; i++)
        l->hidden[i] = i < h->length && (!h->mask || h->mask[i]) ? 0.0f : -INFINITY;
}

/* scores = queries keys^T / sqrt(size), or -infinity */
INLINE void score(const float *const query[QUERIES], const struct arrays *l, int64_t size,
                  __m512 scale)
{
    for (int64_t n = 0; n < l->padded; n += WIDE) {
        __m512 c[QUERIES][2];
        multiply(query, l->keys + n, l->padded, size, c);
        const __m512 h0 = _mm512_loadu_ps(l->hidden + n);
        const __m512 h1 = _mm512_loadu_ps(l->hidden + n + 16);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++) {
            float *to = l->scores + i * l->padded + n;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(c[i][0], scale, h0));
            _mm512_storeu_ps(to + 16, _mm512_fmadd_ps(c[i][1], scale, h1));
        }
    }
}

/* Replace scores by exponentials, and return what to multiply them with to get softmax: 0 if
 * nothing may be attended to, as in PyTorch. */
INLINE float softmax(float *of, int64_t padded)
{
    __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t n = 0; n < padded; n += 16)
        top = _mm512_max_ps(top, _mm512_loadu_ps(of + n));
    const float most = _mm512_reduce_max_ps(top);
    const int none = most == -INFINITY;
    const __m512 shift = _mm512_set1_ps(none ? 0.0f : most);
    for (int64_t n = 0; n < padded; n += 16) {
        const __m512 e = exponential(_mm512_sub_ps(_mm512_loadu_ps(of + n), shift));
        total = _mm512_add_ps(total, e);
        _mm512_storeu_ps(of + n, e);
    }
    return none ? 0.0f : 1.0f / _mm512_reduce_add_ps(total);
}

/* Queries m to m + 7 = share * exponentials values */
INLINE void weigh_values(const struct head *h, int64_t m, const float *const weights[QUERIES],
                         const float share[QUERIES])
{
    for (int64_t n = 0; n < h->size; n += WIDE) {
        __m512 c[QUERIES][2];
        multiply(weights, h->value + n, h->row, h->length, c);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; i++)
            if (m + i < h->length) {
                float *to = h->query + (m + i) * h->row + n;
                _mm512_storeu_ps(to, _mm512_mul_ps(c[i][0], _mm512_set1_ps(share[i])));
                _mm512_storeu_ps(to + 16, _mm512_mul_ps(c[i][1], _mm512_set1_ps(share[i])));
            }
    }
}

static void attend(const struct head *h, void *memory)
{
    const struct arrays l = lay_out(h, memory);
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf((float)h->size));
    prepare_keys(h, &l);
    for (int64_t m = 0; m < h->length; m += QUERIES) {
        const float *query[QUERIES], *weights[QUERIES];
        float share[QUERIES];
        for (int i = 0; i < QUERIES; i++) {
            query[i] = h->query + (m + i < h->length ? m + i : h->length - 1) * h->row;
            weights[i] = l.scores + i * l.padded;
        }
        score(query, &l, h->size, scale);
        for (int i = 0; i < QUERIES; i++)
            share[i] = softmax(l.scores + i * l.padded, l.padded);
        weigh_values(h, m, weights, share);
    }
}

const struct attention avx512_attention = {.scratch = scratch_bytes, .attend = attend};
END_TARGET
#endif
