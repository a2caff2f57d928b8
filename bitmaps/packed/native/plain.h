/* Products in plain loops, compiled for the target of the including file: all products of
 * generic.c, and those for which AVX2 needs nothing better. */
#ifndef BITMAPS_PLAIN_H
#define BITMAPS_PLAIN_H

#include "rowwise.h"

enum { ABREAST = 4 }; /* tokens for which a row of weights is read once */

/* Enough for a row of weights as floats. */
static inline int64_t plain_scratch(int64_t k) { return (k + ALIGN) * (int64_t)sizeof(float); }

static inline int bit_of(const uint8_t *bits, int64_t j) { return bits[j >> 3] >> (j & 7) & 1; }

static inline int32_t differences(const uint8_t *a, const uint8_t *b, int64_t bytes)
{
    int64_t i = 0;
    int32_t different = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t u, v;
        memcpy(&u, a + i, 8);
        memcpy(&v, b + i, 8);
        different += __builtin_popcountll(u ^ v);
    }
    for (; i < bytes; i++)
        different += __builtin_popcount(a[i] ^ b[i]);
    return different;
}

static inline void plain_signs(const struct block *b)
{
    const struct rows *x = b->x;
    const int64_t bytes = row_bytes(b->w);
    for (int64_t n = b->n0; n < b->n1; n++)
        for (int64_t m = b->m0; m < b->m1; m++) {
            const uint8_t *row = b->w->weight + n * bytes, *q = x->q + m * x->stride;
            write_output(b, m, n, (float)(positive_signs(x, m) - differences(row, q, bytes)));
        }
}

static inline void plain_floats(const struct block *b, float *weight)
{
    const int64_t k = b->x->k, bytes = row_bytes(b->w), m1 = b->m1;
    for (int64_t n = b->n0; n < b->n1; n++) {
        const uint8_t *row = b->w->weight + n * bytes;
        for (int64_t j = 0; j < k; j++)
            weight[j] = (float)bit_of(row, j);
        for (int64_t m = b->m0; m < m1; m += ABREAST) {
            const float *a[ABREAST];
            float dot[ABREAST] = {0};
            for (int i = 0; i < ABREAST; i++)
                a[i] = b->x->x + (m + i < m1 ? m + i : m1 - 1) * k;
            for (int64_t j = 0; j < k; j++) {
                dot[0] += a[0][j] * weight[j];
                dot[1] += a[1][j] * weight[j];
                dot[2] += a[2][j] * weight[j];
                dot[3] += a[3][j] * weight[j];
            }
            for (int i = 0; i < ABREAST && m + i < m1; i++)
                write_output(b, m + i, n, dot[i]);
        }
    }
}

static inline int32_t dot_of(const int8_t *weight, const int8_t *q, int64_t k)
{
    int32_t dot = 0;
    for (int64_t j = 0; j < k; j++)
        dot += weight[j] * q[j];
    return dot;
}

static inline void plain_integers(const struct block *b, int8_t *spread)
{
    const struct rows *x = b->x;
    const int64_t k = x->k, bytes = row_bytes(b->w);
    for (int64_t n = b->n0; n < b->n1; n++) {
        const uint8_t *row = b->w->weight + n * bytes;
        const int8_t *weight = (const int8_t *)row;
        if (b->w->kind == BITS) {
            for (int64_t j = 0; j < k; j++)
                spread[j] = (int8_t)bit_of(row, j);
            weight = spread;
        }
        for (int64_t m = b->m0; m < b->m1; m++) {
            const int8_t *q = (const int8_t *)x->q + m * x->stride;
            int32_t dot = dot_of(weight, q, k);
            if (x->planes == 2)
                dot = dot * 256 + dot_of(weight, q + x->plane, k);
            write_output(b, m, n, (float)dot);
        }
    }
}

/* q = the bits of x >= 0, scale = mean(|x|). */
static inline void plain_sign_row(const float *x, const struct rows *rows, int64_t m)
{
    const int64_t k = rows->k;
    uint8_t *q = rows->q + m * rows->stride;
    double total = 0.0;
    int32_t set = 0;
    memset(q, 0, rows->stride);
    for (int64_t j = 0; j < k; j++)
        total += fabsf(x[j]);
    for (int64_t j = 0; j < k; j++) {
        const int bit = x[j] >= 0.0f;
        q[j >> 3] |= (uint8_t)(bit << (j & 7));
        set += bit;
    }
    const float mean = (float)(total / (double)k);
    rows->scale[m] = isfinite(mean) ? mean : NAN;
    rows->sum[m] = (float)(2 * set - k);
}

/* GELU as rowwise.h describes it. */
static inline void plain_gelu(float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        const float v = x[j], t = v * v;
        float p = GELU_P[0], q = GELU_Q[0];
        for (int i = 1; i < GELU_TERMS; i++) {
            p = p * t + GELU_P[i];
            q = q * t + GELU_Q[i];
        }
        const float inside = 0.5f * v * (1.0f + v * p / q);
        const float y = v > GELU_END ? v : v < -GELU_END ? 0.0f : inside;
        const float below = y < -GELU_LEAST ? y : -GELU_LEAST;
        x[j] = v < 0.0f ? below : y;
    }
}

#endif
