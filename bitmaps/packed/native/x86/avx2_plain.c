/* AVX2: where plain loops compiled for it are fast enough. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#include "../plain.h"
#include "avx2.h"

void avx2_floats(const struct block *b, float *scratch) { plain_floats(b, scratch); }

const struct row_operations avx2_row_operations = {
    .round = round_row,
    .sign = plain_sign_row,
    .gelu = plain_gelu,
    .add_norm = add_norm,
};
#endif
