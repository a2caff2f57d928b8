/* The operations: linear layers, and those parts of a BERT layer that read and write each token
 * once. Each runs block of tokens by block of tokens, so that what lies between two matrices stays
 * in cache.
 *
 * bitmaps/packed/operations.py and python.c call them after checking shapes and types. Every
 * function is re-entrant, and returns 0, or 1 if there was not enough memory. */
#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

#include "stages.h"
#include "threads.h"

enum { OK, OUT_OF_MEMORY };
enum { CACHE = 1 << 20 }; /* bytes of the second cache that a block's activations may take */
enum { STRIP = 32 }; /* blocks of tokens are a multiple: no instruction set takes more at once */

struct call {
    struct product first;
    struct product then;     /* reads the outputs of the first; its plan may be NULL */
    int64_t between;         /* numbers a token that lie between the two */
    const float *x;          /* (m, k) */
    int64_t m;
    float *const *y;         /* (m, n_i) each */
    const float *residual;   /* of a plan without `then`; NULL: no norm */
    struct norm norm;
    const uint8_t *mask;     /* attention: (m), or NULL */
    int64_t heads;           /* attention */
    int64_t unit;            /* tokens that stay together; attention: those of a sentence */
    /* Runs `count` tokens from token `from` on. */
    void (*run)(const struct call *, int64_t from, int64_t count, int threads, char *memory);
    int64_t units, blocks;
    int64_t next;            /* the first block that no thread has taken */
    char *memory;            /* `bytes` a thread, or for all if they share each block */
    int64_t bytes;
};

static int64_t bytes_between(const struct call *c, int64_t count)
{
    return aligned(count * c->between * (int64_t)sizeof(float));
}

static struct product matrix_of(const struct product *product, int matrix)
{
    return (struct product){product->plan, product->isa, matrix};
}

static void run_linears(const struct call *c, int64_t from, int64_t count, int threads,
                        char *memory)
{
    for (int i = 0; i < c->first.plan->count; i++) {
        const int64_t n = c->first.plan->w[i].n;
        const struct stage stage = {
            .product = matrix_of(&c->first, i),
            .tokens = count,
            .x = c->x + from * c->first.plan->w->k,
            .y = c->y[i] + from * n,
            .residual = c->residual ? c->residual + from * n : NULL,
            .norm = c->residual ? &c->norm : NULL,
        };
        run_stage(&stage, threads, memory);
    }
}

static void run_ffnn(const struct call *c, int64_t from, int64_t count, int threads, char *memory)
{
    const float *x = c->x + from * c->first.plan->w->k;
    float *inner = (float *)memory;
    memory += bytes_between(c, count);
    const struct stage expand = {.product = c->first, .tokens = count, .x = x, .y = inner};
    const struct stage contract = {
        .product = c->then,
        .tokens = count,
        .x = inner,
        .before_gelu = inner,
        .y = c->y[0] + from * c->first.plan->w->k,
        .residual = x,
        .norm = &c->norm,
    };
    run_stage(&expand, threads, memory);
    run_stage(&contract, threads, memory);
}

struct heads {
    const struct attention *attention;
    struct head first; /* the next head is `size` numbers on, the next sentence `length` tokens */
    int64_t heads;
    char *memory;      /* `bytes` a thread */
    int64_t bytes;
};

static void attend(void *context, int64_t from, int64_t to, int part)
{
    const struct heads *of = context;
    for (int64_t i = from; i < to; i++) {
        struct head h = of->first;
        const int64_t sentence = i / of->heads, head = i % of->heads;
        const int64_t at = sentence * h.length * h.row + head * h.size;
        h.query += at;
        h.key += at;
        h.value += at;
        h.mask = h.mask ? h.mask + sentence * h.length : NULL;
        of->attention->attend(&h, of->memory + part * of->bytes);
    }
}

static int64_t attend_bytes(const struct call *c)
{
    return aligned(c->first.isa->attention->scratch(c->unit, c->first.plan->w->k / c->heads));
}

static void run_attention(const struct call *c, int64_t from, int64_t count, int threads,
                          char *memory)
{
    const int64_t k = c->first.plan->w->k;
    const float *x = c->x + from * k;
    float *inner[3];
    for (int i = 0; i < 3; i++)
        inner[i] = (float *)memory + i * count * k;
    memory += bytes_between(c, count);
    for (int i = 0; i < 3; i++) {
        const struct stage project
            = {.product = matrix_of(&c->first, i), .tokens = count, .x = x, .y = inner[i]};
        run_stage(&project, threads, memory);
    }
    struct heads heads = {
        .attention = c->first.isa->attention,
        .first = {
            .query = inner[0],
            .key = inner[1],
            .value = inner[2],
            .mask = c->mask ? c->mask + from : NULL,
            .length = c->unit,
            .size = k / c->heads,
            .row = k,
        },
        .heads = c->heads,
        .memory = memory,
        .bytes = attend_bytes(c),
    };
    parallel(count * c->unit * k < SMALL ? 1 : threads, count / c->unit * c->heads, attend, &heads);
    const struct stage output = {
        .product = c->then,
        .tokens = count,
        .x = inner[0],
        .y = c->y[0] + from * k,
        .residual = x,
        .norm = &c->norm,
    };
    run_stage(&output, threads, memory);
}

/* -- how a call is cut into blocks of tokens -- */

/* What `count` tokens on so many threads need in addition to inputs and outputs. */
static int64_t bytes_of(const struct call *c, int threads, int64_t count)
{
    int64_t most = c->then.plan ? stage_bytes(&c->then, threads, count) : 0;
    for (int i = 0; i < c->first.plan->count; i++) {
        const struct product product = matrix_of(&c->first, i);
        const int64_t bytes = stage_bytes(&product, threads, count);
        most = bytes > most ? bytes : most;
    }
    if (c->heads) {
        const int64_t bytes = attend_bytes(c) * threads;
        most = bytes > most ? bytes : most;
    }
    return aligned(most) + bytes_between(c, count);
}

/* Take one block after another until none is left. So a thread whose core is busy takes fewer. */
static void take_blocks(void *context, int64_t from, int64_t to, int part)
{
    struct call *c = context;
    (void)from, (void)to;
    for (int64_t i; (i = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->blocks;) {
        const int64_t first = c->units * i / c->blocks * c->unit;
        const int64_t end = c->units * (i + 1) / c->blocks * c->unit;
        if (first < end)
            c->run(c, first, (end < c->m ? end : c->m) - first, 1, c->memory + part * c->bytes);
    }
}

/* Ask for large pages where they lie inside an output. Large outputs are often fresh memory,
 * whose pages the system clears when they are first written. Page by page, that would take half
 * as long as the product. */
static void use_large_pages(const void *start, int64_t bytes)
{
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21, from = ((uintptr_t)start + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)start + bytes) / page * page;
    if (from < to)
        madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* Memory that is aligned to ALIGN, or NULL. Windows lacks C11's aligned_alloc, as did macOS until
 * 10.15. */
static void *allocate(int64_t bytes)
{
#if defined(_WIN32)
    return _aligned_malloc((size_t)bytes, ALIGN);
#else
    void *memory;
    return posix_memalign(&memory, ALIGN, (size_t)bytes) ? NULL : memory;
#endif
}

static void release(void *memory)
{
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* Tokens whose rounded activations stay in the second cache, at most ROWS. */
static int64_t tokens_in_cache(const struct product *product)
{
    const struct matrix *w = product->plan->w;
    const struct layout layout
        = product->isa->layout((enum act)product->plan->act, (enum kind)w->kind, w->k);
    const int64_t bytes = layout.bytes * layout.planes;
    return bytes * ROWS > CACHE ? CACHE / bytes : ROWS;
}

/* With enough tokens, each thread takes blocks of its own: about ROWS tokens each, fewer if they do
 * not stay in cache, and equally many blocks a thread. Otherwise there is one block, and all
 * threads share the work on it. */
static int run(struct call *c, int threads)
{
    if (!c->m)
        return OK;
    int64_t rows = tokens_in_cache(&c->first);
    if (c->then.plan) {
        const int64_t then = tokens_in_cache(&c->then);
        rows = then < rows ? then : rows;
    }
    c->units = (c->m + c->unit - 1) / c->unit;
    const int enough = c->m >= rows * threads && c->units >= threads;
    const int alone = threads == 1 || enough;
    const int64_t most = c->unit < rows ? rows / c->unit : 1, blocks = (c->units + most - 1) / most;
    c->blocks = alone ? (blocks + threads - 1) / threads * threads : 1;
    const int64_t largest = (c->units + c->blocks - 1) / c->blocks * c->unit;
    c->bytes = bytes_of(c, alone ? 1 : threads, largest < c->m ? largest : c->m);
    c->memory = allocate(alone ? c->bytes * threads : c->bytes);
    if (!c->memory)
        return OUT_OF_MEMORY;
    const struct plan *last = c->then.plan ? c->then.plan : c->first.plan;
    for (int i = 0; i < last->count; i++)
        use_large_pages(c->y[i], c->m * last->w[i].n * (int64_t)sizeof(float));
    if (alone)
        parallel(threads, threads, take_blocks, c);
    else
        c->run(c, 0, c->m, threads, c->memory);
    release(c->memory);
    return OK;
}

/* -- the entry points -- */

static struct product product_of(const struct plan *plan, int64_t tokens)
{
    return (struct product){plan, isa_of(plan, tokens), 0};
}

/* y_i = x w_i^T + bias_i for all matrices of the plan: x is (m, k), y_i is (m, n_i). */
EXPORT int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m,
                           float *const *y)
{
    struct call call = {
        .first = product_of(plan, m),
        .x = x,
        .m = m,
        .y = y,
        .unit = STRIP,
        .run = run_linears,
    };
    return run(&call, threads);
}

/* y = LayerNorm(residual + x w^T + bias), for a plan of one matrix. */
EXPORT int bitmaps_linear_norm(const struct plan *plan, int threads, const float *x, int64_t m,
                               float *y, const float *residual, const float *gain,
                               const float *shift, float epsilon)
{
    struct call call = {
        .first = product_of(plan, m),
        .x = x,
        .m = m,
        .y = &y,
        .residual = residual,
        .norm = {gain, shift, epsilon},
        .unit = STRIP,
        .run = run_linears,
    };
    return run(&call, threads);
}

/* y = LayerNorm(x + contract(gelu(expand(x)))), for plans of one matrix each. */
EXPORT int bitmaps_ffnn(const struct plan *expand, const struct plan *contract, int threads,
                        const float *x, int64_t m, float *y, const float *gain, const float *shift,
                        float epsilon)
{
    struct call call = {
        .first = product_of(expand, m),
        .then = product_of(contract, m),
        .between = expand->w->n,
        .x = x,
        .m = m,
        .y = &y,
        .norm = {gain, shift, epsilon},
        .unit = STRIP,
        .run = run_ffnn,
    };
    return run(&call, threads);
}

/* y = LayerNorm(x + output(softmax(q k^T / sqrt(size)) v)), where q, k and v are the products of
 * `project`. m is a multiple of `length`, the tokens of a sentence. A token with mask 0 is not
 * attended to; a token that may attend to none gets 0 from softmax(..) v. */
EXPORT int bitmaps_attention(const struct plan *project, const struct plan *output, int threads,
                             const float *x, int64_t m, float *y, const uint8_t *mask,
                             int64_t length, int64_t heads, const float *gain, const float *shift,
                             float epsilon)
{
    struct call call = {
        .first = product_of(project, m),
        .then = product_of(output, m),
        .between = 3 * project->w->n,
        .x = x,
        .m = m,
        .y = &y,
        .norm = {gain, shift, epsilon},
        .mask = mask,
        .heads = heads,
        .unit = length,
        .run = run_attention,
    };
    return run(&call, threads);
}

/* A BERT layer: an attention block, then a feed-forward block. bitmaps/packed/kernels.py has the
 * same fields. */
struct layer {
    const struct plan *project, *output, *expand, *contract;
    struct norm attention, ffnn;
};

/* What `count` layers make of x, one after the other: y_i is the output of layer i, (m, k). */
EXPORT int bitmaps_encoder(const struct layer *layers, int count, int threads, const float *x,
                           int64_t m, float *const *y, const uint8_t *mask, int64_t length,
                           int64_t heads)
{
    if (!m)
        return OK;
    float *attended = allocate(m * layers->project->w->k * (int64_t)sizeof *attended);
    int failed = attended ? OK : OUT_OF_MEMORY;
    for (int i = 0; i < count && !failed; i++, x = y[i - 1]) {
        const struct layer *l = layers + i;
        const struct norm *a = &l->attention, *f = &l->ffnn;
        failed = bitmaps_attention(l->project, l->output, threads, x, m, attended, mask, length,
                                   heads, a->gain, a->shift, a->epsilon)
                 || bitmaps_ffnn(l->expand, l->contract, threads, attended, m, y[i], f->gain,
                                 f->shift, f->epsilon);
    }
    release(attended);
    return failed;
}
