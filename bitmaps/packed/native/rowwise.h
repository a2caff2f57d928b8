/* What every instruction set does to a row in the same plain loops, which the compiler
 * vectorizes for the target of the including file. */
#ifndef BITMAPS_ROWWISE_H
#define BITMAPS_ROWWISE_H

#include <math.h>
#include <string.h>

#include "kernels.h"

typedef int32_t __attribute__((may_alias)) pattern; /* the bits of a float */

/* The least and the largest number of a row and zero. If any number is infinite or NaN, one of the
 * two is. */
struct range {
    float low, high;
};

/* The bit patterns of floats. As signed integers, they have the order of the positive numbers; as
 * unsigned ones, the largest belongs to the least number, if any is negative. */
static inline struct range range_of_patterns(int32_t largest_signed, uint32_t largest_unsigned)
{
    struct range range;
    memcpy(&range.high, &largest_signed, sizeof range.high);
    memcpy(&range.low, &largest_unsigned, sizeof range.low);
    return range;
}

enum { NEGATIVE_ZERO = INT32_MIN }; /* the least pattern of a number that is not positive */

static inline struct range range_of(const float *x, int64_t k)
{
    const pattern *bits = (const pattern *)x;
    int32_t high = 0;
    uint32_t low = (uint32_t)NEGATIVE_ZERO;
    for (int64_t j = 0; j < k; j++) {
        high = bits[j] > high ? bits[j] : high;
        low = (uint32_t)bits[j] > low ? (uint32_t)bits[j] : low;
    }
    return range_of_patterns(high, low);
}

/* The scale and the reciprocal by which a row is rounded to whole numbers, and the least of them.
 * A row with an infinity or a NaN gets the scale NaN, so that all of its outputs are NaN, and the
 * reciprocal 0. A row of zeros, or of numbers too small for a reciprocal, gets 0 and 0. */
struct rounding {
    float scale, inverse;
    int32_t least;
};

static inline struct rounding rounding_of(struct range of, enum act act)
{
    const float top = act == A16 ? 32639.0f : act == A11 ? 1023.0f : act == A8 ? 127.0f : 31.0f;
    const float half = in_order(0.5f * of.high) - in_order(0.5f * of.low); /* of the range */
    const float most = act == A6 ? half : of.high > -of.low ? of.high : -of.low;
    const float inverse = top / most;
    if (!isfinite(of.high) || !isfinite(of.low))
        return (struct rounding){NAN, 0.0f, 0};
    if (!isfinite(inverse))
        return (struct rounding){0.0f, 0.0f, 0};
    return (struct rounding){most / top, inverse, (int32_t)rintf(of.low * inverse)};
}

/* q = x / s, rounded; with two planes, q = 256 q0 + q1 with int8 q0 and q1. */
static inline void round_row(const float *x, const struct rows *rows, int64_t m)
{
    const int64_t k = rows->k;
    const struct rounding rounding = rounding_of(range_of(x, k), rows->act);
    uint8_t *q = rows->q + m * rows->stride, *low = q + rows->plane;
    int32_t total = 0;
    for (int plane = 0; plane < rows->planes; plane++)
        memset(q + plane * rows->plane, rows->zero, rows->stride);
    rows->scale[m] = rounding.scale;
    rows->sum[m] = 0.0f;
    if (!(rounding.inverse > 0.0f))
        return;
    for (int64_t j = 0; j < k; j++) {
        const int32_t value = (int32_t)rintf(x[j] * rounding.inverse);
        const int32_t upper = (value + 128) >> 8;
        total += value;
        if (rows->planes == 2) {
            q[j] = (uint8_t)upper;
            low[j] = (uint8_t)(value - upper * 256);
        } else {
            q[j] = (uint8_t)(value + rows->zero);
        }
    }
    rows->sum[m] = (float)total;
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
