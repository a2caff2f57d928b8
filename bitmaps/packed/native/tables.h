/* Sums of four activations in tables, for the kernels that look them up.
 *
 * Four weights choose one of sixteen sums of four activations. So a token's activations become
 * tables, and four weights an index:
 *
 *     table[g][i]  = sum over b < 4 of (bit b of i is set ? q[4 g + b] : 0)
 *     dot(bits, q) = sum over g of table[g][bits 4 g to 4 g + 3]
 *
 * A sum has to be a byte. So the least number of the token is subtracted from each number, from the
 * zeros of clear bits too: six bits, 0 to 63, remain. More than six bits are cut into planes of
 * six, the highest first. Every row of weights has as many bits, set or clear. So all outputs of a
 * token lack the same, `base_of_tables`. */
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

/* What the sums of all tables lack, if these are of so many inputs. */
static inline int32_t base_of_tables(int32_t least, int64_t inputs)
{
    return least * (int32_t)inputs;
}

static inline struct layout layout_of_tables(enum act act, enum kind kind, int64_t k)
{
    if (!has_tables(act, kind))
        return layout_of_bytes(act, kind, k);
    const int planes = act == A6 ? 1 : act == A16 ? 3 : 2;
    return (struct layout){.bytes = TABLE_BYTES * aligned(k), .planes = planes};
}

#endif
