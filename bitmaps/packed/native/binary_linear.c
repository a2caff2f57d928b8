/* The entry points: which instruction set runs, on how many threads, and how the work is cut. Plain C without dependencies; every
 * function is re-entrant. bitmaps/packed/operations.py and python.c call them, and have checked shapes and types before they do. */
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
enum { SMALL = 1 << 21, STRIP = 32 }; /* products below which threads do not pay; rows that an instruction set may take at a time */

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

/* -- some rows through one matrix -- */

struct norm {
    const float *gain, *shift;
    float epsilon;
};

struct stage {
    const struct isa *isa;
    const struct matrix *w;
    struct rows rows;
    const float *x;           /* what is rounded: rows.k numbers a row */
    float *before_gelu;       /* the same, if GELU comes first: in place */
    uint8_t *q;
    float *scale, *sum;
    float *spare;             /* rows.k numbers a thread, for inputs times column */
    char *scratch;            /* scratch_bytes a thread */
    int64_t scratch_bytes;
    float *y;                 /* (count, n) */
    int64_t count, across;    /* and blocks of columns */
    const float *residual;
    const struct norm *norm;  /* NULL: none */
};

/* Round rows `from` to `to` of the activations. */
static void round_rows(void *context, int64_t from, int64_t to, int part)
{
    const struct stage *s = context;
    const int64_t k = s->rows.k;
    for (int64_t m = from; m < to; m++) {
        const float *x = s->x + m * k;
        if (s->before_gelu)
            s->isa->gelu(s->before_gelu + m * k, k);
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

/* The residual sum and LayerNorm, over rows of the output. */
static void add_norm(void *context, int64_t from, int64_t to, int part)
{
    const struct stage *s = context;
    const int64_t n = s->w->n;
    (void)part;
    for (int64_t m = from; m < to; m++)
        s->isa->add_norm(s->y + m * n, s->residual + m * n, s->norm->gain, s->norm->shift, s->norm->epsilon, n);
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
    const int64_t small = SMALL * (s->rows.act == A1 ? s->isa->signs : 1);
    const int few = s->count * s->w->n * s->w->k < small;
    const int workers = few ? 1 : threads;
    if (s->rows.act == F32 && !s->w->column)
        s->rows.x = s->x;
    if (!rounded)
        parallel(workers, s->count, round_rows, s);
    s->across = (s->w->n + s->isa->columns - 1) / s->isa->columns;
    parallel(workers, (s->count + ROWS - 1) / ROWS * s->across, multiply, s);
    if (s->norm)
        parallel(workers, s->count, add_norm, s);
}

/* -- a call: blocks of rows through one matrix after the other -- */

struct call {
    const struct plan *plan, *then; /* then: what reads the outputs of the first; or NULL */
    int64_t between;                /* numbers of those outputs a row */
    const float *x;                 /* (m, k) */
    int64_t m;
    float *const *y;                /* (m, n_i) each */
    const float *residual;
    struct norm norm;
    const uint8_t *mask;            /* attention: of m; or NULL */
    int64_t heads, unit;            /* attention; and the rows that stay together: there, those of a sentence */
    void (*rows)(const struct call *, int64_t from, int64_t count, int threads, char *memory);
    int64_t units, blocks, next;    /* next: the first block that no thread has taken yet */
    char *memory;
    int64_t bytes;                  /* of it, a thread */
};

static struct stage stage_of(const struct plan *plan, int i)
{
    struct stage s;
    memset(&s, 0, sizeof s);
    s.isa = ISAS[plan->isa];
    s.w = plan->w + i;
    s.rows.act = (enum act)plan->act;
    return s;
}

/* y = x w_i^T + bias_i for `count` rows, and with `norm` LayerNorm(residual + y). To be called for each i in turn, in the same memory:
 * what was rounded for one matrix is there for the next. */
static void product(const struct plan *plan, int i, const float *x, int64_t count, float *y, float *before_gelu, const float *residual,
                    const struct norm *norm, int threads, char *memory)
{
    struct stage s = stage_of(plan, i);
    const int same = i && s.w->column == s.w[-1].column && s.w->kind == s.w[-1].kind;
    lay_out(&s, threads, count, memory);
    s.x = x;
    s.before_gelu = before_gelu;
    s.count = count;
    s.y = y;
    s.residual = residual;
    s.norm = norm;
    run_stage(&s, threads, same);
}

static void linear_rows(const struct call *c, int64_t from, int64_t count, int threads, char *memory)
{
    for (int i = 0; i < c->plan->count; i++) {
        const int64_t n = c->plan->w[i].n;
        product(c->plan, i, c->x + from * c->plan->w->k, count, c->y[i] + from * n, NULL, c->residual ? c->residual + from * n : NULL,
                c->residual ? &c->norm : NULL, threads, memory);
    }
}

static void ffnn_rows(const struct call *c, int64_t from, int64_t count, int threads, char *memory)
{
    const int64_t k = c->plan->w->k;
    const float *x = c->x + from * k;
    float *inner = (float *)memory;
    memory += up(count * c->between * (int64_t)sizeof(float));
    product(c->plan, 0, x, count, inner, NULL, NULL, NULL, threads, memory);
    product(c->then, 0, inner, count, c->y[0] + from * k, inner, x, &c->norm, threads, memory);
}

struct heads {
    const struct isa *isa;
    struct head first; /* the next one is `size` numbers on, the next sentence `length` tokens */
    int64_t heads;
    char *memory;
    int64_t bytes; /* of it, a thread */
};

static void attend(void *context, int64_t from, int64_t to, int part)
{
    const struct heads *of = context;
    for (int64_t i = from; i < to; i++) {
        struct head h = of->first;
        const int64_t sentence = i / of->heads, at = sentence * h.length * h.row + i % of->heads * h.size;
        h.query += at;
        h.key += at;
        h.value += at;
        h.mask = h.mask ? h.mask + sentence * h.length : NULL;
        of->isa->attend(&h, of->memory + part * of->bytes);
    }
}

static void attention_rows(const struct call *c, int64_t from, int64_t count, int threads, char *memory)
{
    const int64_t k = c->plan->w->k, size = k / c->heads;
    const float *x = c->x + from * k;
    float *inner[3];
    for (int i = 0; i < 3; i++)
        inner[i] = (float *)memory + i * count * k;
    memory += up(count * c->between * (int64_t)sizeof(float));
    for (int i = 0; i < 3; i++)
        product(c->plan, i, x, count, inner[i], NULL, NULL, NULL, threads, memory);
    struct heads heads = {.isa = ISAS[c->plan->isa], .heads = c->heads, .memory = memory};
    heads.first = (struct head){inner[0], inner[1], inner[2], c->mask ? c->mask + from : NULL, c->unit, size, k};
    heads.bytes = up(heads.isa->attend_scratch(c->unit, size));
    parallel(count * c->unit * k < SMALL ? 1 : threads, count / c->unit * c->heads, attend, &heads);
    product(c->then, 0, inner[0], count, c->y[0] + from * k, NULL, x, &c->norm, threads, memory);
}

/* What `count` rows on as many threads need beside inputs and outputs. */
static int64_t bytes_of(const struct call *c, int threads, int64_t count)
{
    int64_t most = 0;
    for (int i = 0; i < c->plan->count + (c->then ? 1 : 0); i++) {
        struct stage s = i < c->plan->count ? stage_of(c->plan, i) : stage_of(c->then, 0);
        const int64_t need = lay_out(&s, threads, count, NULL);
        most = need > most ? need : most;
    }
    if (c->heads) {
        const int64_t need = up(ISAS[c->plan->isa]->attend_scratch(c->unit, c->plan->w->k / c->heads)) * threads;
        most = need > most ? need : most;
    }
    return up(most) + up(count * c->between * (int64_t)sizeof(float));
}

/* One block after the other, until none is left: a thread whose core is busy otherwise takes fewer. */
static void take_blocks(void *context, int64_t from, int64_t to, int part)
{
    struct call *c = context;
    (void)from, (void)to;
    for (int64_t i; (i = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->blocks;) {
        const int64_t first = c->units * i / c->blocks * c->unit, end = c->units * (i + 1) / c->blocks * c->unit;
        if (first < end)
            c->rows(c, first, (end < c->m ? end : c->m) - first, 1, c->memory + part * c->bytes);
    }
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

/* With rows enough each thread takes blocks of its own, of about ROWS and as many for each; otherwise all of them share the work on one. */
static int run(struct call *c, int threads)
{
    if (!c->m)
        return OK;
    c->units = (c->m + c->unit - 1) / c->unit;
    const int alone = threads == 1 || (c->m >= (int64_t)ROWS * threads && c->units >= threads);
    const int64_t most = c->unit < ROWS ? ROWS / c->unit : 1, blocks = (c->units + most - 1) / most;
    c->blocks = alone ? (blocks + threads - 1) / threads * threads : 1;
    const int64_t rows = (c->units + c->blocks - 1) / c->blocks * c->unit;
    c->bytes = bytes_of(c, alone ? 1 : threads, rows < c->m ? rows : c->m);
    c->memory = aligned_alloc(ALIGN, alone ? c->bytes * threads : c->bytes);
    if (!c->memory)
        return OUT_OF_MEMORY;
    const struct plan *last = c->then ? c->then : c->plan;
    for (int i = 0; i < last->count; i++)
        ask_for_large_pages(c->y[i], c->m * last->w[i].n * (int64_t)sizeof(float));
    if (alone)
        parallel(threads, threads, take_blocks, c);
    else
        c->rows(c, 0, c->m, threads, c->memory);
    free(c->memory);
    return OK;
}

/* Products of x (m, k) with all of the plan's matrices: their outputs y_i are (m, n_i). */
EXPORT int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m, float *const *y)
{
    struct call call = {.plan = plan, .x = x, .m = m, .y = y, .unit = STRIP, .rows = linear_rows};
    return run(&call, threads);
}

/* LayerNorm(residual + x w^T + bias), for a plan of one matrix. */
EXPORT int bitmaps_linear_norm(const struct plan *plan, int threads, const float *x, int64_t m, float *y, const float *residual,
                               const float *gain, const float *shift, float epsilon)
{
    struct call call = {.plan = plan, .x = x, .m = m, .y = &y, .residual = residual, .norm = {gain, shift, epsilon}, .unit = STRIP,
                        .rows = linear_rows};
    return run(&call, threads);
}

/* LayerNorm(x + contract(gelu(expand(x)))), a block of rows at a time, so that what lies between stays in cache. */
EXPORT int bitmaps_ffnn(const struct plan *expand, const struct plan *contract, int threads, const float *x, int64_t m, float *y,
                        const float *gain, const float *shift, float epsilon)
{
    struct call call = {.plan = expand, .then = contract, .between = expand->w->n, .x = x, .m = m, .y = &y,
                        .norm = {gain, shift, epsilon}, .unit = STRIP, .rows = ffnn_rows};
    return run(&call, threads);
}

/* Whether this instruction set has what follows. */
EXPORT int bitmaps_attends(int isa) { return ISAS[isa]->attend != NULL; }

/* LayerNorm(x + output(softmax(q k^T / sqrt(size)) v)) with q, k and v the products of `project`, some sentences at a time; m is a
 * multiple of `length`, the tokens of one. Where `mask` (m) is 0 a token is not attended to; one that may attend to nothing comes to 0. */
EXPORT int bitmaps_attention(const struct plan *project, const struct plan *output, int threads, const float *x, int64_t m, float *y,
                             const uint8_t *mask, int64_t length, int64_t heads, const float *gain, const float *shift, float epsilon)
{
    struct call call = {.plan = project, .then = output, .between = 3 * project->w->n, .x = x, .m = m, .y = &y, .mask = mask,
                        .norm = {gain, shift, epsilon}, .unit = length, .heads = heads, .rows = attention_rows};
    return run(&call, threads);
}
