/* A stage in three passes, each on several threads: round the activations, multiply, and add the
 * residual and normalize. */
#include "stages.h"

#include <stddef.h>

#include "threads.h"

/* A stage with the memory that it works in. */
struct workspace {
    const struct stage *stage;
    const struct isa *isa;
    const struct matrix *w;
    struct rows rows;      /* the activations, as read by the kernel */
    float *scaled;         /* F32 with factors of the inputs: rows.x, to be written */
    float *spare;          /* inputs times their factors, of one token: k numbers a thread */
    char *scratch;         /* of the kernel: scratch_bytes a thread */
    int64_t scratch_bytes;
    int64_t across;        /* blocks of outputs beside each other */
};

/* Cut a workspace from one piece of memory and return its size; with NULL, only count. */
static int64_t lay_out(struct workspace *s, const struct product *product, int threads,
                       int64_t tokens, char *memory)
{
    s->isa = product->isa;
    s->w = product->plan->w + product->matrix;
    const int64_t k = s->w->k;
    struct rows *rows = &s->rows;
    rows->act = (enum act)product->plan->act;
    rows->kind = (enum kind)s->w->kind;
    rows->k = k;
    rows->zero = s->isa->offsets_int8 && rows->kind == INT8 ? 128 : 0;
    const struct layout layout = s->isa->layout(rows->act, rows->kind, k);
    rows->planes = layout.planes;
    rows->stride = layout.bytes;
    rows->plane = rows->stride * tokens;
    s->scratch_bytes = aligned(s->isa->scratch(k));
    const int f32 = rows->act == F32, factors = s->w->column != NULL;
    const int64_t sizes[] = {
        rows->plane * rows->planes,             /* q */
        f32 && factors ? tokens * k * 4 : 0,    /* scaled */
        tokens * 4,                             /* scale */
        tokens * 4,                             /* sum */
        tokens * 4,                             /* base */
        factors ? aligned(k * 4) * threads : 0, /* spare */
        s->scratch_bytes * threads,             /* scratch */
    };
    enum { PIECES = sizeof sizes / sizeof *sizes };
    char *pieces[PIECES];
    int64_t at = 0;
    for (int i = 0; i < PIECES; i++) {
        pieces[i] = memory ? memory + at : NULL;
        at += aligned(sizes[i]);
    }
    rows->q = (uint8_t *)pieces[0];
    rows->x = s->scaled = (float *)pieces[1];
    rows->scale = (float *)pieces[2];
    rows->sum = (float *)pieces[3];
    rows->base = (int32_t *)pieces[4];
    s->spare = (float *)pieces[5];
    s->scratch = pieces[6];
    return at;
}

static float sum_of(const float *x, int64_t k)
{
    double total = 0.0;
    for (int64_t j = 0; j < k; j++)
        total += x[j];
    return (float)total;
}

static void round_rows(void *context, int64_t from, int64_t to, int part)
{
    const struct workspace *s = context;
    const struct row_operations *operations = s->isa->rows;
    const struct rows *rows = &s->rows;
    const float *column = s->w->column;
    const int64_t k = rows->k;
    for (int64_t m = from; m < to; m++) {
        const float *x = s->stage->x + m * k;
        if (s->stage->before_gelu)
            operations->gelu(s->stage->before_gelu + m * k, k);
        if (column) {
            float *scaled = rows->act == F32 ? s->scaled + m * k : s->spare + part * k;
            for (int64_t j = 0; j < k; j++)
                scaled[j] = x[j] * column[j];
            x = scaled;
        }
        if (rows->act == F32) {
            rows->scale[m] = 1.0f;
            rows->sum[m] = sum_of(x, k);
        } else if (rows->act == A1) {
            operations->sign(x, rows, m);
        } else {
            operations->round(x, rows, m);
        }
    }
}

/* An item is a block of outputs. With few tokens, all of a thread's items are one block. */
static void multiply(void *context, int64_t from, int64_t to, int part)
{
    const struct workspace *s = context;
    const int64_t n = s->w->n, tokens = s->stage->tokens, columns = s->isa->columns;
    char *scratch = s->scratch + part * s->scratch_bytes;
    for (int64_t item = from, next; item < to; item = next) {
        next = tokens <= s->isa->few ? to : item + 1;
        const int64_t m0 = item / s->across * ROWS, m1 = m0 + ROWS;
        const int64_t n0 = item % s->across * columns, n1 = n0 + (next - item) * columns;
        const struct block block = {
            .w = s->w,
            .x = &s->rows,
            .m0 = m0,
            .m1 = m1 < tokens ? m1 : tokens,
            .n0 = n0,
            .n1 = n1 < n ? n1 : n,
            .y = s->stage->y,
            .ldy = n,
        };
        s->isa->multiply(&block, scratch);
    }
}

static void add_norm(void *context, int64_t from, int64_t to, int part)
{
    const struct workspace *s = context;
    const struct stage *stage = s->stage;
    const struct norm *norm = stage->norm;
    const int64_t n = s->w->n;
    (void)part;
    for (int64_t m = from; m < to; m++)
        s->isa->rows->add_norm(stage->y + m * n, stage->residual + m * n, norm->gain, norm->shift,
                               norm->epsilon, n);
}

int64_t stage_bytes(const struct product *product, int threads, int64_t tokens)
{
    struct workspace s;
    return lay_out(&s, product, threads, tokens, NULL);
}

/* Whether the activations have been rounded for the previous matrix. */
static int rounded_before(const struct stage *stage)
{
    const int matrix = stage->product.matrix;
    const struct matrix *w = stage->product.plan->w + matrix;
    return matrix && w->column == w[-1].column && w->kind == w[-1].kind;
}

void run_stage(const struct stage *stage, int threads, char *memory)
{
    struct workspace s = {.stage = stage};
    const int64_t tokens = stage->tokens;
    lay_out(&s, &stage->product, threads, tokens, memory);
    if (s.rows.act == F32 && !s.w->column)
        s.rows.x = stage->x;
    s.across = (s.w->n + s.isa->columns - 1) / s.isa->columns;
    const int64_t small = SMALL * (s.rows.act == A1 ? s.isa->signs : 1);
    threads = tokens * s.w->n * s.w->k < small ? 1 : threads;
    if (!rounded_before(stage))
        parallel(threads, tokens, round_rows, &s);
    parallel(threads, (tokens + ROWS - 1) / ROWS * s.across, multiply, &s);
    if (stage->norm)
        parallel(threads, tokens, add_norm, &s);
}
