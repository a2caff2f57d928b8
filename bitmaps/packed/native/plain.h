/* Products row by row in plain loops, for whichever instruction set the including file is compiled for: all that generic.c does,
 * and what is not worth more in avx2.c. */
#include "rowwise.h"

enum { ABREAST = 4 };

static void spread_bits(const uint8_t *bits, int64_t k, int8_t *out)
{
    for (int64_t j = 0; j < k; j++)
        out[j] = bits[j >> 3] >> (j & 7) & 1;
}

static void output(const struct matrix *w, int64_t n, const struct rows *x, int64_t m, float dot, float *y, int64_t ldy)
{
    y[m * ldy + n] = output_of(w, n, x, m, dot);
}

/* dot(bits, signs) is this less popcount(bits xor signs). */
static int32_t signs_set(const struct rows *x, int64_t m) { return ((int32_t)x->sum[m] + (int32_t)x->k) / 2; }

static int64_t plain_scratch(int64_t k) { return (k + ALIGN) * (int64_t)sizeof(float); }

static void plain_block(const struct matrix *w, int64_t n0, int64_t n1, const struct rows *x, int64_t m0, int64_t m1, float *y,
                        int64_t ldy, void *scratch)
{
    const int64_t k = x->k, bytes = row_bytes(w);
    for (int64_t n = n0; n < n1; n++) {
        const uint8_t *row = w->weight + n * bytes;
        if (x->act == A1) {
            for (int64_t m = m0; m < m1; m++) {
                const uint8_t *q = x->q + m * x->stride;
                int64_t b = 0;
                int32_t different = 0;
                for (; b + 8 <= bytes; b += 8) {
                    uint64_t u, v;
                    memcpy(&u, row + b, 8);
                    memcpy(&v, q + b, 8);
                    different += __builtin_popcountll(u ^ v);
                }
                for (; b < bytes; b++)
                    different += __builtin_popcount(row[b] ^ q[b]);
                output(w, n, x, m, (float)(signs_set(x, m) - different), y, ldy);
            }
            continue;
        }
        const int8_t *weight = (const int8_t *)row;
        if (w->kind == BITS) {
            spread_bits(row, k, scratch);
            weight = scratch;
        }
        if (x->act == F32) {
            float *set = scratch;
            for (int64_t j = k - 1; j >= 0; j--) /* in place, from the end */
                set[j] = (float)weight[j];
            for (int64_t m = m0; m < m1; m += ABREAST) {
                const float *a[ABREAST];
                float dot[ABREAST] = {0};
                for (int i = 0; i < ABREAST; i++)
                    a[i] = x->x + (m + i < m1 ? m + i : m1 - 1) * k;
                for (int64_t j = 0; j < k; j++) {
                    dot[0] += a[0][j] * set[j];
                    dot[1] += a[1][j] * set[j];
                    dot[2] += a[2][j] * set[j];
                    dot[3] += a[3][j] * set[j];
                }
                for (int i = 0; i < ABREAST && m + i < m1; i++)
                    output(w, n, x, m + i, dot[i], y, ldy);
            }
            continue;
        }
        for (int64_t m = m0; m < m1; m++) {
            const int8_t *q = (const int8_t *)x->q + m * x->stride;
            int32_t dot = 0;
            for (int64_t j = 0; j < k; j++)
                dot += weight[j] * q[j];
            if (x->planes == 2) {
                int32_t rest = 0;
                for (int64_t j = 0; j < k; j++)
                    rest += weight[j] * q[x->plane + j];
                dot = dot * 256 + rest;
            }
            output(w, n, x, m, (float)dot, y, ldy);
        }
    }
}

static void plain_sign_row(const float *x, const struct rows *rows, uint8_t *q, float *scale, float *sum)
{
    const int64_t k = rows->k;
    float total = 0.0f;
    int32_t set = 0;
    memset(q, 0, rows->stride);
    for (int64_t j = 0; j < k; j++)
        total += fabsf(x[j]);
    for (int64_t j = 0; j < k; j++) {
        const int bit = x[j] >= 0.0f;
        q[j >> 3] |= (uint8_t)(bit << (j & 7));
        set += bit;
    }
    const float mean = total / (float)k;
    *scale = isfinite(mean) ? mean : NAN;
    *sum = (float)(2 * set - k);
}
