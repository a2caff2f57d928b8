/* The list of instruction sets. A plan names one by its place in the list. */
#include <stddef.h>

#include "kernels.h"

static const struct isa *const ISAS[] = { /* the fastest first */
#if defined(HAVE_AMX)
    &bitmaps_amx,
#endif
#if defined(HAVE_AVX512)
    &bitmaps_avx512,
#endif
#if defined(HAVE_AVX2)
    &bitmaps_avx2,
#endif
    &bitmaps_generic,
};
enum { COUNT = sizeof ISAS / sizeof *ISAS };

const struct isa *isa_of(const struct plan *plan) { return ISAS[plan->isa]; }

/* The name of the i-th instruction set that was compiled, or NULL beyond the last. */
EXPORT const char *bitmaps_isa_name(int i) { return i >= 0 && i < COUNT ? ISAS[i]->name : NULL; }

/* Whether this machine supports the i-th instruction set. */
EXPORT int bitmaps_isa_runs(int i) { return i >= 0 && i < COUNT && ISAS[i]->runs(); }

/* Whether bitmaps_attention works with it. */
EXPORT int bitmaps_attends(int isa) { return ISAS[isa]->attention != NULL; }
