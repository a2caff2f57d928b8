/* A stage: some tokens through one matrix, with what precedes and follows the product. */
#ifndef BITMAPS_STAGES_H
#define BITMAPS_STAGES_H

#include "kernels.h"

enum { SMALL = 1 << 21 }; /* below so many products, threads cost more than they save */

struct norm {
    const float *gain, *shift;
    float epsilon;
};

/* A matrix, and the kernel that multiplies with it. */
struct product {
    const struct plan *plan;
    const struct isa *isa; /* for all matrices of the plan */
    int matrix;            /* which of the plan's */
};

/* y = x w^T + bias, then y = LayerNorm(residual + y) if there is a norm. */
struct stage {
    struct product product;
    int64_t tokens;
    const float *x;          /* (tokens, k) */
    float *before_gelu;      /* x again, if GELU is to be applied to it first, in place; or NULL */
    float *y;                /* (tokens, n) */
    const float *residual;   /* (tokens, n) */
    const struct norm *norm; /* or NULL */
};

/* Bytes that a stage needs in addition to its inputs and outputs. */
int64_t stage_bytes(const struct product *product, int threads, int64_t tokens);

/* Run a stage in so much memory, aligned to ALIGN. Matrices of one plan are to be run in their
 * order and in the same memory: activations rounded for one matrix are used again for the next. */
void run_stage(const struct stage *stage, int threads, char *memory);

#endif
