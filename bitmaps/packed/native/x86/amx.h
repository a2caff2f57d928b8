/* The parts of the AMX kernels. Including this does not change the target. */
#ifndef BITMAPS_AMX_H
#define BITMAPS_AMX_H

#include "avx512.h"

int64_t amx_scratch(int64_t k);
void amx_panels(const struct block *, enum product, void *scratch); /* any outputs; BIT or BYTE */

#endif
