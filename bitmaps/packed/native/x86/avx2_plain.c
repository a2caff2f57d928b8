/* AVX2: where plain loops compiled for it are fast enough. */
#if defined(__x86_64__)
#include "avx2.h"
#include "avx2_target.h"

#include "../plain.h"

void avx2_floats(const struct block *b, float *scratch) { plain_floats(b, scratch); }

const struct row_operations avx2_row_operations = {
    .round = round_row,
    .sign = plain_sign_row,
    .gelu = plain_gelu,
    .add_norm = add_norm,
};
END_TARGET
#endif
