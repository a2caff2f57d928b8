/* Which kernels there are, and which one multiplies what. */
#include <stddef.h>

#include "kernels.h"
#include "tables.h"

static const struct isa *const ISAS[] = { /* a plan names one by its place */
#if defined(HAVE_AMX)
    &bitmaps_amx,
#endif
#if defined(HAVE_AVX512)
    &bitmaps_avx512_lookup,
    &bitmaps_avx512,
#endif
#if defined(HAVE_AVX2)
    &bitmaps_avx2_lookup,
    &bitmaps_avx2,
#endif
    &bitmaps_generic,
};
enum { COUNT = sizeof ISAS / sizeof *ISAS };

/* Whether the i-th runs here. Asked once: AMX takes a system call. */
static int runs(int i)
{
    enum { UNKNOWN, RUNS, DOES_NOT };
    static int8_t known[COUNT];
    int8_t answer = __atomic_load_n(known + i, __ATOMIC_RELAXED);
    if (answer == UNKNOWN) {
        answer = ISAS[i]->runs() ? RUNS : DOES_NOT;
        __atomic_store_n(known + i, answer, __ATOMIC_RELAXED);
    }
    return answer == RUNS;
}

static int number_of(const struct isa *isa)
{
    int i = 0;
    while (ISAS[i] != isa)
        i++;
    return i;
}

enum processor { ANY, AMD };

static enum processor processor(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? AMD : ANY;
#else
    return ANY;
#endif
}

/* The fastest kernels, as `python -m bitmaps.bench kernels` measures them; docs/kernels.md has the
 * figures. The first line counts that fits and whose kernel runs. */
enum { EVERY = -1, MANY = INT32_MAX };
static const struct choice {
    enum processor processor;
    int act;             /* or EVERY */
    int64_t from, below; /* numbers of tokens */
    const struct isa *isa;
} CHOICES[] = {
#if defined(HAVE_AMX)
    {ANY, A6, 6, MANY, &bitmaps_amx},
    {ANY, A8, 6, MANY, &bitmaps_amx},
    {ANY, A11, 6, MANY, &bitmaps_amx},
    {ANY, A16, 6, MANY, &bitmaps_amx},
#endif
#if defined(HAVE_AVX512)
    {ANY, A6, 2, MANY, &bitmaps_avx512_lookup},
    {AMD, A8, 6, MANY, &bitmaps_avx512_lookup},
    {ANY, A8, 6, 48, &bitmaps_avx512_lookup},
    {ANY, A11, 1, MANY, &bitmaps_avx512_lookup},
    {ANY, A16, 1, MANY, &bitmaps_avx512_lookup},
    {ANY, EVERY, 0, MANY, &bitmaps_avx512},
#endif
#if defined(HAVE_AVX2)
    {ANY, A6, 6, MANY, &bitmaps_avx2_lookup},
    {ANY, A11, 4, MANY, &bitmaps_avx2_lookup},
    {ANY, A16, 12, MANY, &bitmaps_avx2_lookup},
    {ANY, EVERY, 0, MANY, &bitmaps_avx2},
#endif
    {ANY, EVERY, 0, MANY, &bitmaps_generic},
};

static int fits(const struct choice *c, int act, int64_t tokens)
{
    return (c->act == act || c->act == EVERY) && c->from <= tokens
           && (tokens < c->below || c->below == MANY)
           && (c->processor == ANY || c->processor == processor()) && runs(number_of(c->isa));
}

const struct isa *isa_of(const struct plan *plan, int64_t tokens)
{
    if (plan->isa != AUTO)
        return ISAS[plan->isa];
    /* what is the fastest for many tokens reads tiles, and then it is for any number */
    for (int i = 0; i < plan->count; i++)
        if (plan->w[i].tiled)
            tokens = MANY;
    const struct choice *c = CHOICES;
    while (!fits(c, plan->act, tokens))
        c++;
    return c->isa;
}

/* The name of the i-th kernel that was compiled, or NULL beyond the last. */
EXPORT const char *bitmaps_isa_name(int i) { return i >= 0 && i < COUNT ? ISAS[i]->name : NULL; }

/* Whether this machine supports the i-th kernel. */
EXPORT int bitmaps_isa_runs(int i) { return i >= 0 && i < COUNT && runs(i); }

/* The number of the kernel that is used for so many tokens where none is named. */
EXPORT int bitmaps_choice(int act, int64_t tokens)
{
    const struct plan plan = {.isa = AUTO, .act = act};
    return number_of(isa_of(&plan, tokens));
}

/* Whether it is the fastest, for products with `act`, to keep bits in tiles. Any number of tokens
 * is then multiplied by the kernel for many. */
EXPORT int bitmaps_reads_tiles(int isa, int act)
{
    const struct plan plan = {.isa = isa, .act = act};
    return has_tables(act, BITS) && isa_of(&plan, MANY)->tiles;
}

/* Whether bitmaps_attention works with the i-th, or with AUTO. */
EXPORT int bitmaps_attends(int isa)
{
    const struct plan plan = {.isa = isa, .act = A8};
    return isa_of(&plan, 1)->attention != NULL;
}
