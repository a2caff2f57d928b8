/* Sums of four activations in tables, for the kernels that look them up.
 *
 * Four weights choose one of sixteen sums of four activations. So a token's activations become
 * tables, and four weights an index:
 *
 *     table[g][i]  = sum over b < 4 of (bit b of i) * u[4 g + b]
 *     dot(bits, u) = sum over g of table[g][bits 4 g to 4 g + 3]
 *
 * A sum has to be a byte, so u has six bits, 0 to 63. It is q less the token's least number, and
 * with more than six bits it is cut into planes of six, the highest first. The kernels add
 * least * (set bits of the row) to dot(bits, u), which gives dot(bits, q). */
#ifndef BITMAPS_TABLES_H
#define BITMAPS_TABLES_H

#include "rowwise.h"

enum {
    PLANE_BITS = 6,
    PLANE_LARGEST = (1 << PLANE_BITS) - 1,
    TABLE_BYTES = 4, /* of tables, for each activation */
};

/* All others are multiplied without tables. */
static inline int has_tables(enum act act, enum kind kind)
{
    return act != F32 && act != A1 && kind == BITS;
}

static inline struct layout layout_of_tables(enum act act, enum kind kind, int64_t k)
{
    if (!has_tables(act, kind))
        return layout_of_bytes(act, kind, k);
    const int planes = act == A6 ? 1 : act == A16 ? 3 : 2;
    return (struct layout){.bytes = TABLE_BYTES * aligned(k), .planes = planes};
}

#endif
