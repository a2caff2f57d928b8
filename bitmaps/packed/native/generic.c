/* Any processor: plain loops for everything. The other instruction sets are compared with this
 * one. */
#include "plain.h"

static int runs(void) { return 1; }

static void multiply(const struct block *b, void *scratch)
{
    if (b->x->act == F32)
        plain_floats(b, scratch);
    else if (b->x->act == A1)
        plain_signs(b);
    else
        plain_integers(b, scratch);
}

static const struct row_operations ROW_OPERATIONS = {
    .round = round_row,
    .sign = plain_sign_row,
    .gelu = plain_gelu,
    .add_norm = add_norm,
};

const struct isa bitmaps_generic = {
    .name = "generic",
    .runs = runs,
    .columns = 64,
    .few = 0,
    .signs = 1,
    .offsets_int8 = 0,
    .layout = layout_of_bytes,
    .scratch = plain_scratch,
    .multiply = multiply,
    .rows = &ROW_OPERATIONS,
    .attention = NULL,
};
