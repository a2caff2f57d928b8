/* The entry points: which instruction set runs, on how many threads, and how the work is cut. Plain C without dependencies; every
 * function is re-entrant. bitmaps/packed/native.py calls them, and has checked shapes and types before it does. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

#if defined(HAVE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define EXPORT __attribute__((visibility("default")))
enum { OK, OUT_OF_MEMORY };
enum { SMALL = 1 << 21 }; /* products below which threads do not pay */

/* -- instruction sets -- */

static const struct isa *const ISAS[] = {
#if defined(HAVE_AMX)
    &bitmaps_amx,
#endif
#if defined(__x86_64__)
    &bitmaps_avx512, &bitmaps_avx2,
#endif
    &bitmaps_generic,
};
enum { ISA_COUNT = sizeof ISAS / sizeof *ISAS };

static int runs(const struct isa *isa)
{
#if defined(HAVE_AMX)
    if (isa == &bitmaps_amx) {
        enum { FEATURES = 7, TILE_AND_INT8 = 1 << 24 | 1 << 25, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
        unsigned a, b, c, d;
        return runs(&bitmaps_avx512) && __get_cpuid_count(FEATURES, 0, &a, &b, &c, &d) && (d & TILE_AND_INT8) == TILE_AND_INT8
               && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; /* their 8 KiB a thread are there on request */
    }
#endif
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == &bitmaps_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (isa == &bitmaps_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
               && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
               && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vbmi")
               && __builtin_cpu_supports("bmi2");
#endif
    return isa == &bitmaps_generic;
}

/* The name of the i-th instruction set this was built for, the fastest first; NULL beyond the last. */
EXPORT const char *bitmaps_isa_name(int i) { return i >= 0 && i < ISA_COUNT ? ISAS[i]->name : NULL; }

EXPORT int bitmaps_isa_runs(int i) { return i >= 0 && i < ISA_COUNT && runs(ISAS[i]); }

/* -- threads -- */

/* The process has an OpenMP runtime already, PyTorch's, whose idle threads wait in a loop. A second pool would fight them for the
 * cores, so this one is borrowed: GOMP_parallel and its like, found by name at run time. */
typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*count_of)(void);
static gomp_parallel run_gomp;
static count_of thread_number, thread_count;

EXPORT void bitmaps_use_openmp(void *parallel, void *number, void *count)
{
    run_gomp = (gomp_parallel)parallel;
    thread_number = (count_of)number;
    thread_count = (count_of)count;
}

struct work {
    void (*body)(void *context, int64_t from, int64_t to, int part);
    void *context;
    int64_t items;
    int part, parts; /* of a thread of our own */
};

static void run_part(const struct work *work, int part, int parts)
{
    const int64_t from = work->items * part / parts, to = work->items * (part + 1) / parts;
    if (from < to)
        work->body(work->context, from, to, part);
}

static void gomp_body(void *work) { run_part(work, thread_number(), thread_count()); }

static void *own_body(void *work)
{
    run_part(work, ((struct work *)work)->part, ((struct work *)work)->parts);
    return NULL;
}

/* body(context, from, to, part) over 0..items, cut into consecutive parts, of which there are at most `threads`. */
static void parallel(int threads, int64_t items, void (*body)(void *, int64_t, int64_t, int), void *context)
{
    struct work work = {body, context, items, 0, 1};
    threads = items < threads ? (int)items : threads;
    if (threads <= 1) {
        run_part(&work, 0, 1);
    } else if (run_gomp) {
        run_gomp(gomp_body, &work, (unsigned)threads, 0);
    } else {
        struct work own[threads];
        pthread_t ids[threads];
        char started[threads];
        for (int i = 1; i < threads; i++) {
            own[i] = work;
            own[i].part = i;
            own[i].parts = threads;
            started[i] = pthread_create(&ids[i], NULL, own_body, &own[i]) == 0;
        }
        run_part(&work, 0, threads);
        for (int i = 1; i < threads; i++)
            if (started[i])
                pthread_join(ids[i], NULL);
            else
                run_part(&own[i], i, threads);
    }
}

/* -- one block of rows through one matrix -- */

struct stage {
    const struct isa *isa;
    const struct matrix *w;
    struct rows rows;
    const float *x;           /* what is rounded: rows.k numbers a row */
    uint8_t *q;
    float *scale, *sum;
    float *spare;             /* rows.k numbers a thread, for inputs times column */
    char *scratch;            /* scratch_bytes a thread */
    int64_t scratch_bytes;
    float *y;                 /* (count, n) */
    int64_t count, across;    /* and blocks of columns */
    const float *residual, *gain, *shift;
    float epsilon;
    int activation;
};

/* Round rows `from` to `to` of the activations. */
static void round_rows(void *context, int64_t from, int64_t to, int part)
{
    const struct stage *s = context;
    const int64_t k = s->rows.k;
    for (int64_t m = from; m < to; m++) {
        const float *x = s->x + m * k;
        if (s->w->column) {
            float *scaled = s->rows.act == F32 ? (float *)s->rows.x + m * k : s->spare + part * k;
            for (int64_t j = 0; j < k; j++)
                scaled[j] = x[j] * s->w->column[j];
            x = scaled;
        }
        uint8_t *q = s->q + m * s->rows.stride;
        if (s->rows.act == F32) {
            double total = 0.0;
            for (int64_t j = 0; j < k; j++)
                total += x[j];
            s->scale[m] = 1.0f;
            s->sum[m] = (float)total;
        } else if (s->rows.act == A1) {
            s->isa->sign_row(x, &s->rows, q, s->scale + m, s->sum + m);
        } else {
            s->isa->round_row(x, &s->rows, s->isa->flips && s->w->kind == INT8, q, s->scale + m, s->sum + m);
        }
    }
}

static void multiply(void *context, int64_t from, int64_t to, int part)
{
    const struct stage *s = context;
    const int64_t n = s->w->n;
    char *scratch = s->scratch + part * s->scratch_bytes;
    for (int64_t item = from, next; item < to; item = next) { /* an item is a block of rows and one of columns */
        const int64_t m0 = item / s->across * ROWS, n0 = item % s->across * s->isa->columns;
        next = s->count <= s->isa->few ? to : item + 1;
        const int64_t n1 = n0 + (next - item) * s->isa->columns;
        s->isa->block(s->w, n0, n1 < n ? n1 : n, &s->rows, m0, m0 + ROWS < s->count ? m0 + ROWS : s->count, s->y, n, scratch);
    }
}

/* GELU, or the residual sum and LayerNorm, over rows of the output. */
static void follow(void *context, int64_t from, int64_t to, int part)
{
    const struct stage *s = context;
    const int64_t n = s->w->n;
    (void)part;
    for (int64_t m = from; m < to; m++) {
        if (s->activation)
            s->isa->gelu(s->y + m * n, n);
        if (s->gain)
            s->isa->add_norm(s->y + m * n, s->residual + m * n, s->gain, s->shift, s->epsilon, n);
    }
}

static int64_t up(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* What a stage needs beside its inputs and outputs, cut from one piece of memory; NULL counts only. */
static int64_t lay_out(struct stage *s, int threads, int64_t count, char *memory)
{
    struct rows *rows = &s->rows;
    const int64_t k = s->w->k;
    const int f32 = rows->act == F32;
    rows->k = k;
    rows->planes = rows->act == A16 ? 2 : 1;
    rows->stride = f32 ? 0 : up(rows->act == A1 ? (k + 7) / 8 : k);
    rows->plane = rows->stride * count;
    s->scratch_bytes = up(s->isa->scratch(k));
    int64_t at = 0;
    const int64_t sizes[] = {rows->plane * rows->planes, f32 && s->w->column ? count * k * 4 : 0, count * 4, count * 4,
                             s->w->column ? up(k * 4) * threads : 0, s->scratch_bytes * threads};
    char *parts[6];
    for (int i = 0; i < 6; i++) {
        parts[i] = memory ? memory + at : NULL;
        at += up(sizes[i]);
    }
    rows->q = s->q = (uint8_t *)parts[0];
    rows->x = (float *)parts[1];
    rows->scale = s->scale = (float *)parts[2];
    rows->sum = s->sum = (float *)parts[3];
    s->spare = (float *)parts[4];
    s->scratch = parts[5];
    return at;
}

static void run_stage(struct stage *s, int threads, int rounded)
{
    const int few = s->count * s->w->n * s->w->k < SMALL;
    const int workers = few ? 1 : threads;
    if (s->rows.act == F32 && !s->w->column)
        s->rows.x = s->x;
    if (!rounded)
        parallel(workers, s->count, round_rows, s);
    s->across = (s->w->n + s->isa->columns - 1) / s->isa->columns;
    parallel(workers, (s->count + ROWS - 1) / ROWS * s->across, multiply, s);
    if (s->activation || s->gain)
        parallel(workers, s->count, follow, s);
}

static struct stage stage_of(const struct plan *plan)
{
    struct stage s;
    memset(&s, 0, sizeof s);
    s.isa = ISAS[plan->isa];
    s.w = plan->w;
    s.rows.act = (enum act)plan->act;
    return s;
}

/* Large outputs are often memory fresh from the system, which clears its pages as they are first written to. One by one that takes
 * half as long as the product, so the system is asked for large ones, of which as many as lie inside the output. */
static void ask_for_large_pages(const void *start, int64_t bytes)
{
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, from = ((uintptr_t)start + page - 1) / page * page, to = ((uintptr_t)start + bytes) / page * page;
    if (from < to)
        madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* y_i = x w_i^T + bias_i; with `gain` there is one matrix, and its output becomes LayerNorm(residual + y). */
static int linears(const struct plan *plan, int threads, const float *x, int64_t m, float *const *y, const float *residual,
                   const float *gain, const float *shift, float epsilon)
{
    const struct matrix *w = plan->w;
    const int64_t rows = (int64_t)ROWS * threads < m ? (int64_t)ROWS * threads : m;
    struct stage s = stage_of(plan);
    int64_t bytes = 0;
    for (int i = 0; i < plan->count; i++) {
        s.w = w + i;
        const int64_t need = lay_out(&s, threads, rows, NULL);
        bytes = need > bytes ? need : bytes;
        ask_for_large_pages(y[i], m * w[i].n * (int64_t)sizeof(float));
    }
    char *memory = aligned_alloc(ALIGN, up(bytes));
    if (!memory)
        return OUT_OF_MEMORY;
    for (int64_t from = 0; from < m; from += rows) {
        for (int i = 0; i < plan->count; i++) {
            const int same = i && w[i].column == w[i - 1].column && w[i].kind == w[i - 1].kind;
            s.w = w + i;
            lay_out(&s, threads, rows, memory);
            s.x = x + from * w[i].k;
            s.count = from + rows < m ? rows : m - from;
            s.y = y[i] + from * w[i].n;
            s.gain = gain;
            s.shift = shift;
            s.epsilon = epsilon;
            s.residual = gain ? residual + from * w[i].n : NULL;
            run_stage(&s, threads, same);
        }
    }
    free(memory);
    return OK;
}

/* Products of x (m, k) with all of the plan's matrices: their outputs y_i are (m, n_i). */
EXPORT int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m, float *const *y)
{
    return linears(plan, threads, x, m, y, NULL, NULL, NULL, 0);
}

/* The same for a plan of one matrix. */
EXPORT int bitmaps_linear(const struct plan *plan, int threads, const float *x, int64_t m, float *y)
{
    return linears(plan, threads, x, m, &y, NULL, NULL, NULL, 0);
}

/* LayerNorm(residual + x w^T + bias), for a plan of one matrix. */
EXPORT int bitmaps_linear_norm(const struct plan *plan, int threads, const float *x, int64_t m, float *y, const float *residual,
                               const float *gain, const float *shift, float epsilon)
{
    return linears(plan, threads, x, m, &y, residual, gain, shift, epsilon);
}

/* LayerNorm(x + contract(gelu(expand(x)))), a block of rows at a time, so that what lies between stays in cache. */
EXPORT int bitmaps_ffnn(const struct plan *expand, const struct plan *contract, int threads, const float *x, int64_t m, float *y,
                        const float *gain, const float *shift, float epsilon)
{
    const int64_t rows = (int64_t)ROWS * threads < m ? (int64_t)ROWS * threads : m, width = expand->w->n, k = expand->w->k;
    struct stage first = stage_of(expand), second = stage_of(contract);
    const int64_t inner = up(rows * width * 4), one = up(lay_out(&first, threads, rows, NULL));
    char *memory = aligned_alloc(ALIGN, inner + one + up(lay_out(&second, threads, rows, NULL)));
    if (!memory)
        return OUT_OF_MEMORY;
    lay_out(&first, threads, rows, memory + inner);
    lay_out(&second, threads, rows, memory + inner + one);
    ask_for_large_pages(y, m * k * (int64_t)sizeof(float));
    first.activation = 1;
    second.gain = gain;
    second.shift = shift;
    second.epsilon = epsilon;
    for (int64_t from = 0; from < m; from += rows) {
        first.count = second.count = from + rows < m ? rows : m - from;
        first.x = second.residual = x + from * k;
        first.y = (float *)memory;
        second.x = first.y;
        second.y = y + from * k;
        run_stage(&first, threads, 0);
        run_stage(&second, threads, 0);
    }
    free(memory);
    return OK;
}
