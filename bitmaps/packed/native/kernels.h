/* What the operations (operations.c, stages.c) and the instruction sets (generic.c, x86/) share.
 *
 * A packed matrix has n rows of k weights. With one-bit weights, row r takes the two values low[r]
 * and high[r]. The activations of a token are rounded to integers q with one scale s, so an output
 * is
 *
 *     y[r] = s * ((high[r] - low[r]) * dot(bits[r], q) + low[r] * sum(q)) + bias[r]
 *
 * and a kernel only computes dot(bits, q). docs/kernels.md explains how.
 *
 * Throughout, m counts tokens (rows of activations), n outputs (rows of a matrix) and k inputs.
 * / */
#ifndef BITMAPS_KERNELS_H
#define BITMAPS_KERNELS_H

#include <stdint.h>

#include "export.h"

/* build_kernels.py leaves an instruction set out whose files do not compile. */
#if defined(__x86_64__) && !defined(NO_AVX2)
#define HAVE_AVX2
#endif
#if defined(__x86_64__) && !defined(NO_AVX512)
#define HAVE_AVX512
#if defined(__linux__) && !defined(NO_AMX)
#define HAVE_AMX
#endif
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

/* The end of a file that includes a x86/..._target.h. */
#if defined(__clang__)
#define END_TARGET _Pragma("clang attribute pop")
#else
#define END_TARGET
#endif

/* What activations are rounded to: bitmaps/packed/activations.py, in its order. */
enum act { F32, A16, A11, A8, A6, A1 };

/* What a weight is: a bit, or a signed byte, which goes with A8 only. */
enum kind { BITS, INT8 };

enum {
    ROWS = 192, /* tokens in one block of outputs, at most */
    ALIGN = 64, /* bytes: rows of activations and pieces of memory are padded to a multiple */
};

/* A packed matrix. bitmaps/packed/native.py has the same fields. */
struct matrix {
    const uint8_t *weight; /* INT8: (n, k). BITS: (n, (k + 7) / 8), lowest first, padded with 0;
                            * if it is `tiled`, (n / 16, k / 32, 16, 4) */
    const float *high;     /* (n); INT8: the scale */
    const float *low;      /* (n), or NULL: -high for BITS, 0 for INT8 */
    const float *bias;     /* (n), or NULL */
    const float *column;   /* (k), or NULL: factors of the inputs, applied before rounding */
    int64_t n, k;
    int32_t kind;
    int32_t tiled;         /* bitmaps/packed/tiles.py */
};

/* What all calls with the same matrices share. bitmaps/packed/native.py has the same fields. */
struct plan {
    const struct matrix *w; /* `count` matrices that read the same inputs */
    int32_t count;
    int32_t isa; /* a place in the list of dispatch.c, or AUTO: the fastest for a shape */
    int32_t act;
};
enum { AUTO = -1 };

/* How a kernel reads the activations of a token: in `planes` of `bytes` each, a multiple of ALIGN.
 * Bits where they are signs (A1); tables of sums (tables.h); else int8, of which A16 and A11 take
 * two planes, q = 256 q0 + q1. */
struct layout {
    int64_t bytes;
    int32_t planes;
};

/* Activations as a kernel reads them, for `tokens` tokens. */
struct rows {
    enum act act;
    enum kind kind;    /* of the weights that read them */
    int64_t k;
    int64_t stride;    /* bytes from one row to the next */
    int64_t plane;     /* bytes from one plane to the next */
    int32_t planes;
    uint8_t zero;      /* 128 where int8 weights read int8 + 128 (`offsets_int8`), otherwise 0 */
    const float *x;    /* F32: the numbers, k a row */
    uint8_t *q;        /* otherwise: see `struct layout`; padded with zeros */
    float *scale, *sum; /* of each row */
    int32_t *base;     /* of each row, for tables only: what is added to their sums */
};

/* A block of outputs: tokens m0 to m1 - 1 (at most ROWS), outputs n0 to n1 - 1 of each. */
struct block {
    const struct matrix *w;
    const struct rows *x;
    int64_t m0, m1, n0, n1;
    float *y;    /* output 0 of token 0 */
    int64_t ldy; /* numbers from one token's outputs to the next token's */
};

/* One attention head of one sentence. The result replaces the queries. */
struct head {
    float *query;
    const float *key, *value;
    const uint8_t *mask;  /* (length), 0 for tokens that are not attended to; NULL: attend to all */
    int64_t length, size; /* tokens; numbers a token, a multiple of 32 */
    int64_t row;          /* numbers from one token to the next */
};

/* What is done to one row of numbers at a time. */
struct row_operations {
    /* Round the numbers x of row m, of anything but F32 and A1; and of A1. */
    void (*round)(const float *x, const struct rows *, int64_t m);
    void (*sign)(const float *x, const struct rows *, int64_t m);
    void (*gelu)(float *x, int64_t n);
    /* y = LayerNorm(y + residual) */
    void (*add_norm)(float *y, const float *residual, const float *gain, const float *shift,
                     float epsilon, int64_t n);
};

struct attention {
    int64_t (*scratch)(int64_t length, int64_t size); /* bytes that `attend` needs */
    void (*attend)(const struct head *, void *scratch);
};

/* An instruction set. To add one, for example NEON:
 *
 *   1. Write arm/neon.c, and further files arm/neon_*.c if it grows (x86/ is a model). Guard each
 *      file with the macro of its architecture, and select the instructions as x86/avx2_target.h.
 *   2. Define `const struct isa bitmaps_neon` there. plain.h and rowwise.h have a plain loop for
 *      everything; they are compiled for the target of the including file.
 *   3. Declare the table below, list it in dispatch.c, and list the files in pyproject.toml.
 *
 * Nothing else knows the instruction sets: Python asks for their names, and the tests compare each
 * one that the processor supports with `generic`.
 */
struct isa {
    const char *name;
    /* Whether this machine supports it. Runs on any machine: compile it without the
     * instructions. */
    int (*runs)(void);
    int64_t columns;       /* outputs in one block, at most */
    int64_t few;           /* with at most so many tokens, a block may have any number of outputs */
    int64_t signs;         /* products with a sign that take the time of one with a byte */
    int offsets_int8;      /* whether it reads activations + 128 where weights are INT8 */
    struct layout (*layout)(enum act, enum kind, int64_t k);
    int64_t (*scratch)(int64_t k); /* bytes that `multiply` needs for k inputs */
    void (*multiply)(const struct block *, void *scratch);
    const struct row_operations *rows;
    const struct attention *attention; /* NULL: PyTorch's is as fast */
    int tiles;             /* whether it reads tiles, for products with tables */
};

extern const struct isa bitmaps_generic;
extern const struct isa bitmaps_avx2, bitmaps_avx2_lookup;
extern const struct isa bitmaps_avx512, bitmaps_avx512_lookup, bitmaps_amx;

/* The instruction set of a plan for so many tokens (dispatch.c). */
const struct isa *isa_of(const struct plan *plan, int64_t tokens);

/* A product that the compiler may not combine with what follows, as -fassociative-math allows:
 * every instruction set gives the same bits. */
INLINE float in_order(float product)
{
    __asm__("" : "+m"(product));
    return product;
}

/* Output n of token m from its dot product. If low is -high, the output is high (2 dot - sum): the
 * bracket is an integer, so sums that cancel give exactly 0. */
static inline float output_of(const struct matrix *w, int64_t n, const struct rows *x, int64_t m,
                              float dot)
{
    const float high = w->high[n], sum = x->sum[m];
    const float low = w->low ? w->low[n] : 0.0f;
    float value = w->low            ? in_order((high - low) * dot) + in_order(low * sum)
                  : w->kind == BITS ? high * (2.0f * dot - sum)
                                    : high * dot;
    value = in_order(in_order(value) * x->scale[m]);
    return w->bias ? value + w->bias[n] : value;
}

static inline void write_output(const struct block *b, int64_t m, int64_t n, float dot)
{
    b->y[m * b->ldy + n] = output_of(b->w, n, b->x, m, dot);
}

/* With signs, dot(bits, signs) is this less popcount(bits xor signs): the number of positive
 * signs. */
static inline int32_t positive_signs(const struct rows *x, int64_t m)
{
    return ((int32_t)x->sum[m] + (int32_t)x->k) / 2;
}

static inline int64_t row_bytes(const struct matrix *w)
{
    return w->kind == BITS ? (w->k + 7) / 8 : w->k;
}

/* The rows of weights of outputs n to n + count - 1. For outputs beyond the block, which are
 * computed but not written, it is the block's last row. */
INLINE void rows_of_weights(const struct block *b, int64_t n, const int count, const uint8_t **row)
{
    const int64_t bytes = row_bytes(b->w), there = b->n1 - n;
    const uint8_t *first = b->w->weight + n * bytes;
    if (there >= count) /* predicted, so that the rows' addresses are known early */
        for (int i = 0; i < count; i++)
            row[i] = first + i * bytes;
    else
        for (int i = 0; i < count; i++)
            row[i] = first + (i < there ? i : there - 1) * bytes;
}

static inline int64_t aligned(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* Of all kernels without tables. */
static inline struct layout layout_of_bytes(enum act act, enum kind kind, int64_t k)
{
    (void)kind;
    return (struct layout){
        .bytes = act == F32 ? 0 : aligned(act == A1 ? (k + 7) / 8 : k),
        .planes = act == A16 || act == A11 ? 2 : 1,
    };
}

#endif
