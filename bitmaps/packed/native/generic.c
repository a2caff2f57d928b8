/* Any processor. */
#include "plain.h"

const struct isa bitmaps_generic
    = {"generic", 64, 0, 0, 1, plain_scratch, plain_block, round_row, plain_sign_row, gelu, add_norm, NULL, NULL};
