/* The parts of the AVX2 kernels. Including this does not change the target. */
#ifndef BITMAPS_AVX2_H
#define BITMAPS_AVX2_H

#include "../kernels.h"

enum { AVX2_COLUMNS = 16, AVX2_LOOKUP_COLUMNS = 32 };

void avx2_many(const struct block *, void *scratch); /* any number of tokens, at most 16 outputs */
void avx2_single_bits(const struct block *, int64_t m, uint8_t *scratch); /* token m */
void avx2_single_signs(const struct block *, int64_t m);
void avx2_int8(const struct block *);
void avx2_floats(const struct block *, float *scratch);
void avx2_lookup(const struct block *, void *scratch); /* activations in tables */
extern const struct row_operations avx2_row_operations, avx2_lookup_row_operations;

#endif
