/* What the driver (binary_linear.c) and the kernels of each instruction set (generic.c, avx2.c, avx512.c) share.
 *
 * A packed matrix has n rows of k weights of one bit each, of which row r takes the values low[r] and high[r]. With the
 * activations of a token rounded to whole numbers q with one scale s, every product is
 *
 *     y[r] = s * ((high[r] - low[r]) * dot(bits[r], q) + low[r] * sum(q)) + bias[r]
 *
 * so that a kernel only ever computes dot(bits, q).  docs/kernels.md tells how.
 */
#ifndef BITMAPS_KERNELS_H
#define BITMAPS_KERNELS_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11 /* older ones do not know it */
#define HAVE_AMX
#endif

enum act { F32, A16, A8, A1 };         /* what the activations are rounded to: nothing, two planes of int8, int8, the sign */
enum kind { BITS, INT8 };              /* what a weight is: one bit, or a signed byte (then low is 0 and high the scale) */
enum { ROWS = 192, ALIGN = 64 };       /* of activations in one block; bytes to which a row of them is padded */

/* bitmaps/packed/native.py has the same fields. */
struct matrix {
    const uint8_t *weight;             /* (n, (k + 7) / 8), the lowest bit first, the rest of a row 0; or (n, k) bytes */
    const float *high;                 /* (n) */
    const float *low;                  /* (n), or NULL: -high for BITS, 0 for INT8 */
    const float *bias;                 /* (n), or NULL */
    const float *column;               /* (k), or NULL: what the inputs are multiplied with first */
    int64_t n, k;
    int32_t kind;
};

/* What calls with the same matrices have in common, so that a call has few arguments; native.py has the same fields here too. */
struct plan {
    const struct matrix *w;            /* which read the same inputs */
    int32_t count, isa, act;
};

/* Activations as a kernel wants them; a row is `stride` bytes of each plane, padded with zeros. */
struct rows {
    enum act act;
    int64_t k, stride, plane;          /* bytes from a row to the next, and from the first plane to the second (a16) */
    int32_t planes;
    const float *x;                    /* f32: the numbers themselves, k a row */
    const uint8_t *q;                  /* otherwise: signed bytes, or those + 128 if flipped, or bits */
    const float *scale, *sum;          /* of each row */
};

/* One head of one sentence: `length` tokens, whose `size` numbers, a multiple of 32, are `row` numbers from those of the next. What it
 * comes to replaces the queries. */
struct head {
    float *query;
    const float *key, *value;
    const uint8_t *mask;               /* 0 for tokens that are not attended to; NULL: all are */
    int64_t length, size, row;
};

struct isa {
    const char *name;
    int64_t columns, few;              /* of the output in one block; rows up to which it may be any number of columns */
    int flips;                         /* whether it wants q + 128 for INT8 weights */
    int64_t signs;                     /* so many products with a sign take about the time of one with a byte */
    int64_t (*scratch)(int64_t k);     /* bytes that `block` needs for k inputs */
    /* Outputs m0..m1 (at most ROWS) by n0..n1 (at most `columns`); y is the output (0, 0), ldy numbers a row. */
    void (*block)(const struct matrix *, int64_t n0, int64_t n1, const struct rows *, int64_t m0, int64_t m1, float *y,
                  int64_t ldy, void *scratch);
    void (*round_row)(const float *x, const struct rows *, int flip, uint8_t *q, float *scale, float *sum);
    void (*sign_row)(const float *x, const struct rows *, uint8_t *q, float *scale, float *sum);
    void (*gelu)(float *x, int64_t n);
    void (*add_norm)(float *y, const float *residual, const float *gain, const float *bias, float epsilon, int64_t n);
    int64_t (*attend_scratch)(int64_t length, int64_t size);
    void (*attend)(const struct head *, void *scratch); /* or NULL: PyTorch's attention does as well */
};

extern const struct isa bitmaps_generic;
#if defined(__x86_64__)
extern const struct isa bitmaps_avx2, bitmaps_avx512;
#endif
#if defined(HAVE_AMX)
extern const struct isa bitmaps_amx;
#endif

/* From a product to an output. Where low is -high it is high (2 dot - sum): whole numbers, so that what cancels is 0. */
static inline float output_of(const struct matrix *w, int64_t n, const struct rows *x, int64_t m, float dot)
{
    const float high = w->high[n], sum = x->sum[m];
    const float value = w->low ? (high - w->low[n]) * dot + w->low[n] * sum : w->kind == BITS ? high * (2.0f * dot - sum) : high * dot;
    return value * x->scale[m] + (w->bias ? w->bias[n] : 0.0f);
}

static inline int64_t row_bytes(const struct matrix *w) { return w->kind == BITS ? (w->k + 7) / 8 : w->k; }

#endif
