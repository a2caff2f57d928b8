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

/* A8: x ~ s q with q in -127..127 and s = max|x| / 127. A16: x ~ s (256 q0 + q1) with int8 q0
 * and q1 and s = max|x| / 32639. A row with an infinity or a NaN gets the scale NaN, so that all
 * of its outputs are NaN. */
static inline void round_row(const float *x, const struct rows *rows, int offset, uint8_t *q,
                             float *scale, float *sum)
{
    const int64_t k = rows->k;
    const float most = largest(x, k), top = rows->planes == 2 ? 32639.0f : 127.0f;
    const float inverse = top / most; /* infinite if all numbers are 0, or too small to matter */
    const uint8_t zero = offset ? 128 : 0;
    int32_t total = 0;
    if (!isfinite(most) || !isfinite(inverse)) {
        for (int plane = 0; plane < rows->planes; plane++)
            memset(q + plane * rows->plane, zero, rows->stride);
        *scale = isfinite(most) ? 0.0f : NAN;
        *sum = 0.0f;
        return;
    }
    if (rows->planes == 2) {
        uint8_t *low = q + rows->plane;
        for (int64_t j = 0; j < k; j++) {
            int32_t value = (int32_t)rintf(x[j] * inverse), upper = (value + 128) >> 8;
            total += value;
            q[j] = (uint8_t)upper;
            low[j] = (uint8_t)(value - upper * 256);
        }
        memset(low + k, 0, rows->stride - k);
    } else {
        for (int64_t j = 0; j < k; j++) {
            int32_t value = (int32_t)rintf(x[j] * inverse);
            total += value;
            q[j] = (uint8_t)(value + zero);
        }
    }
    memset(q + k, zero, rows->stride - k);
    *scale = most / top;
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
