/* What every instruction set does to a row in the same plain loops, which the compiler
 * vectorizes for the target of the including file. */
#ifndef BITMAPS_ROWWISE_H
#define BITMAPS_ROWWISE_H

#include <math.h>
#include <string.h>

#include "kernels.h"

typedef int32_t __attribute__((may_alias)) pattern; /* the bits of a float */

/* The largest magnitude of a row; infinite or NaN if any number is. Magnitudes have the order of
 * their bit patterns. */
static inline float largest(const float *x, int64_t k)
{
    const pattern *bits = (const pattern *)x;
    int32_t most = 0;
    for (int64_t j = 0; j < k; j++) {
        int32_t magnitude = bits[j] & 0x7fffffff;
        most = most > magnitude ? most : magnitude;
    }
    float value;
    memcpy(&value, &most, sizeof value);
    return value;
}

/* The scale and the reciprocal by which a row is rounded to whole numbers. */
struct rounding {
    float scale, inverse;
};

/* `most` is the largest magnitude; with A6, half the range of the numbers and zero. A row with an
 * infinity or a NaN gets the scale NaN, so that all of its outputs are NaN. A row of zeros, or of
 * numbers too small for a reciprocal, gets the scale 0 and the reciprocal 0. */
static inline struct rounding rounding_of(float most, enum act act)
{
    const float top = act == A16 ? 32639.0f : act == A11 ? 1023.0f : act == A8 ? 127.0f : 31.0f;
    const float inverse = top / most;
    if (!isfinite(most))
        return (struct rounding){NAN, 0.0f};
    return isfinite(inverse) ? (struct rounding){most / top, inverse} : (struct rounding){0, 0};
}

/* Half the range of a row and zero; infinite or NaN if any number is. */
static inline float half_range(const float *x, int64_t k)
{
    float high = 0.0f, low = 0.0f;
    if (!isfinite(largest(x, k)))
        return NAN;
    for (int64_t j = 0; j < k; j++) {
        high = x[j] > high ? x[j] : high;
        low = x[j] < low ? x[j] : low;
    }
    return 0.5f * high - 0.5f * low;
}

/* q = x / s, rounded; with two planes, q = 256 q0 + q1 with int8 q0 and q1. */
static inline void round_row(const float *x, const struct rows *rows, int offset, uint8_t *q,
                             float *scale, float *sum)
{
    const int64_t k = rows->k;
    const struct rounding rounding
        = rounding_of(rows->act == A6 ? half_range(x, k) : largest(x, k), rows->act);
    const uint8_t zero = offset ? 128 : 0;
    int32_t total = 0;
    *scale = rounding.scale;
    *sum = 0.0f;
    for (int plane = 0; plane < rows->planes; plane++)
        memset(q + plane * rows->plane, zero, rows->stride);
    if (!(rounding.inverse > 0.0f))
        return;
    for (int64_t j = 0; j < k; j++) {
        const int32_t value = (int32_t)rintf(x[j] * rounding.inverse);
        total += value;
        if (rows->planes == 2) {
            const int32_t upper = (value + 128) >> 8;
            q[j] = (uint8_t)upper;
            q[rows->plane + j] = (uint8_t)(value - upper * 256);
        } else {
            q[j] = (uint8_t)(value + zero);
        }
    }
    *sum = (float)total;
}

/* GELU is x Phi(x), where Phi is the normal distribution function. On |x| <= 5.2, erf(x / sqrt
 * 2) is approximated by x P(x^2) / Q(x^2), fitted to minimize the largest error of x Phi(x):
 * 2e-8 before rounding. Beyond, Phi is 0 or 1 to float precision. Coefficients of the highest
 * power first.
 *
 * The result has the sign of x for every x, because the next matrix may take only that (A1): a
 * negative x gives at most -GELU_LEAST. It lies far below any error and far above the least float,
 * so that a factor of the inputs does not make it 0. */
enum { GELU_TERMS = 6 };
#define GELU_END 5.2f
#define GELU_LEAST 0x1p-100f
static const float GELU_P[GELU_TERMS] = {
    4.80782393e-08f, 1.29250874e-05f, 3.30301293e-04f,
    9.31509574e-03f, 6.67142242e-02f, 7.97884309e-01f,
};
static const float GELU_Q[GELU_TERMS] = {
    1.24298501e-06f, 7.31658374e-05f, 1.86339110e-03f,
    2.83899229e-02f, 2.50279192e-01f, 1.0f,
};

/* y = LayerNorm(y + residual) */
static inline void add_norm(float *y, const float *residual, const float *gain, const float *shift,
                            float epsilon, int64_t n)
{
    float mean = 0.0f, variance = 0.0f;
    for (int64_t j = 0; j < n; j++) {
        y[j] += residual[j];
        mean += y[j];
    }
    mean /= (float)n;
    for (int64_t j = 0; j < n; j++)
        variance += (y[j] - mean) * (y[j] - mean);
    const float inverse = 1.0f / sqrtf(variance / (float)n + epsilon);
    for (int64_t j = 0; j < n; j++)
        y[j] = (y[j] - mean) * inverse * gain[j] + shift[j];
}

#endif
