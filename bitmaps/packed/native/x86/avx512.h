/* The parts of the AVX-512 kernels, which AMX uses too. Including this does not change the
 * target. */
#ifndef BITMAPS_AVX512_H
#define BITMAPS_AVX512_H

#include "../kernels.h"

/* What is multiplied: a bit and a byte, a byte and a byte, a bit and a sign. */
enum product { BIT, BYTE, SIGN };

enum {
    AVX512_COLUMNS = 64,
    AVX512_FEW = 5,   /* tokens for which unpacking the weights first does not pay */
    AVX512_SIGNS = 2, /* `signs` of struct isa */
};

int avx512_runs(void);
int64_t avx512_scratch(int64_t k);
void avx512_multiply(const struct block *, void *scratch);

/* Kernels of `avx512_multiply`. */
void avx512_many(const struct block *, enum product, void *scratch); /* at most 64 outputs */
void avx512_few(const struct block *, enum product);                 /* at most AVX512_FEW tokens */
void avx512_single_bits(const struct block *, void *scratch);        /* one token */
void avx512_single_signs(const struct block *);
void avx512_floats(const struct block *);

struct rounding; /* of rowwise.h */
struct rounding avx512_rounding(const float *x, int64_t k, enum act act); /* of a row */
void avx512_sign(const float *x, const struct rows *, int64_t m);
void avx512_gelu(float *x, int64_t n);
extern const struct row_operations avx512_row_operations;
extern const struct attention avx512_attention;

#endif
