/* Runs the kernels on random shapes, for sanitizers to watch: every instruction set against generic,
 * alone and from two threads at once. Arrays are exactly as long as they have to be. Most end or
 * begin at a page that must not be touched, because sanitizers do not see masked loads.
 *
 *     driver <seed> <rounds> <largest product, tokens * rows * columns>
 *
 * Prints what fails, how many products it made, and how many matrices were in tiles. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

extern const char *bitmaps_isa_name(int i);
extern int bitmaps_isa_runs(int i);
extern void bitmaps_use_openmp(void *parallel, void *number, void *count);
extern int bitmaps_linears(const struct plan *plan, int threads, const float *x, int64_t m, float *const *y);
extern int bitmaps_linear_norm(const struct plan *plan, int threads, const float *x, int64_t m, float *y, const float *residual,
                               const float *gain, const float *shift, float epsilon);
extern int bitmaps_ffnn(const struct plan *expand, const struct plan *contract, int threads, const float *x, int64_t m, float *y,
                        const float *gain, const float *shift, float epsilon);
extern int bitmaps_attends(int isa);
extern int bitmaps_reads_tiles(int isa, int act);
extern int bitmaps_attention(const struct plan *project, const struct plan *output, int threads, const float *x, int64_t m, float *y,
                             const uint8_t *mask, int64_t length, int64_t heads, const float *gain, const float *shift, float epsilon);

enum { MOST_ISAS = 8, MOST_MATRICES = 3, MOST_ARRAYS = 128 };
static const int64_t SIZES[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 130, 255, 256, 257, 511, 513, 768, 770, 1024, 1040, 2049};
enum { SIZE_COUNT = sizeof SIZES / sizeof *SIZES };

static int isas[MOST_ISAS], isa_count; /* those that run; the last is generic */
static int64_t largest;

/* -- what belongs to one thread -- */

struct array {
    char *start;
    size_t bytes; /* 0: from malloc */
};

struct state {
    uint64_t random;
    struct array arrays[MOST_ARRAYS];
    int array_count;
    long products, tiled, failures;
};

static uint32_t next(struct state *s)
{
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(s->random >> 33);
}

static int64_t below(struct state *s, int64_t n) { return next(s) % n; }

static float number(struct state *s) /* -1 to 1, not too near 0 */
{
    const float size = 0.05f + 0.95f * (float)below(s, 1 << 20) / (1 << 20);
    return below(s, 2) ? size : -size;
}

/* `bytes` from malloc, or that end or begin at a page that must not be touched. */
static void *array(struct state *s, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    const int64_t how = below(s, 4);
    struct array *to = &s->arrays[s->array_count++];
    if (s->array_count > MOST_ARRAYS)
        abort();
    if (how == 0) {
        *to = (struct array){malloc(bytes), 0};
        if (!to->start)
            abort();
        return to->start;
    }
    *to = (struct array){mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), inside + 2 * page};
    if (to->start == MAP_FAILED || (inside && mprotect(to->start + page, inside, PROT_READ | PROT_WRITE)))
        abort();
    return to->start + page + (how == 1 ? 0 : inside - bytes);
}

static void release(struct state *s)
{
    while (s->array_count) {
        const struct array *a = &s->arrays[--s->array_count];
        if (a->bytes)
            munmap(a->start, a->bytes);
        else
            free(a->start);
    }
}

static float *numbers(struct state *s, int64_t n, float scale)
{
    float *x = array(s, n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = scale * number(s);
    return x;
}

static float *outputs(struct state *s, int64_t n) /* NaN, so that what is left out shows */
{
    float *y = array(s, n * sizeof *y);
    memset(y, 0xff, n * sizeof *y);
    return y;
}

static struct matrix random_matrix(struct state *s, int64_t n, int64_t k, int kind, const float *column, int bias)
{
    struct matrix w = {NULL, NULL, NULL, NULL, column, n, k, kind, 0};
    const int64_t bytes = row_bytes(&w);
    const float scale = 1.0f / sqrtf((float)k) / (kind == INT8 ? 64 : 1);
    uint8_t *weight = array(s, n * bytes);
    for (int64_t i = 0; i < n * bytes; i++)
        weight[i] = (uint8_t)next(s);
    for (int64_t r = 0; kind == BITS && k % 8 && r < n; r++)
        weight[r * bytes + bytes - 1] &= (uint8_t)((1 << k % 8) - 1);
    w.weight = weight;
    w.high = numbers(s, n, scale);
    w.low = kind == BITS && below(s, 2) ? numbers(s, n, scale) : NULL;
    w.bias = bias ? numbers(s, n, 1) : NULL;
    return w;
}

/* The matrix with its bits in tiles, if the kernel reads them and it has whole ones. */
static struct matrix arranged(struct state *s, struct matrix w, int isa, int act)
{
    const int64_t bytes = row_bytes(&w);
    if (w.kind != BITS || w.n % 16 || bytes % 4 || !bitmaps_reads_tiles(isa, act))
        return w;
    uint8_t *weight = array(s, w.n * bytes);
    for (int64_t r = 0; r < w.n; r++)
        for (int64_t b = 0; b < bytes; b++)
            weight[r / 16 * 16 * bytes + b / 4 * 64 + r % 16 * 4 + b % 4] = w.weight[r * bytes + b];
    w.weight = weight;
    w.tiled = 1;
    s->tiled++;
    return w;
}

static void fail(struct state *s, const char *what, int isa, int act, int64_t m, int64_t n, int64_t k, float actual, float expected)
{
    s->failures++;
    fprintf(stderr, "%s: %s, act %d, m %lld, n %lld, k %lld: %g instead of %g\n", what, bitmaps_isa_name(isa), act, (long long)m,
            (long long)n, (long long)k, actual, expected);
}

/* -- the products -- */

static int64_t some_size(struct state *s, int64_t most)
{
    int64_t size;
    do
        size = below(s, 3) ? SIZES[below(s, SIZE_COUNT)] : 1 + below(s, 300);
    while (size > most);
    return size;
}

/* The other size of a matrix: m tokens times both is at most `largest`. */
static int64_t other_size(struct state *s, int64_t m, int64_t size)
{
    const int64_t most = largest / (m * size + 1);
    return some_size(s, most > 0 ? most : 1);
}

static void linears(struct state *s, int64_t m)
{
    const int act = (int)below(s, 6), count = 1 + (int)below(s, MOST_MATRICES), threads = 1 + (int)below(s, 3);
    const int64_t k = some_size(s, INT64_MAX);
    const float *columns[] = {NULL, numbers(s, k, 1), numbers(s, k, 1)}, *x = numbers(s, m * k, 1);
    struct matrix w[MOST_MATRICES];
    float *y[MOST_ISAS][MOST_MATRICES];
    for (int i = 0; i < count; i++)
        w[i] = random_matrix(s, other_size(s, m, k), k, act == A8 && below(s, 2) ? INT8 : BITS, columns[below(s, 3)], below(s, 2) != 0);
    for (int j = 0; j < isa_count; j++) {
        struct matrix own[MOST_MATRICES];
        for (int i = 0; i < count; i++) {
            y[j][i] = outputs(s, m * w[i].n);
            own[i] = arranged(s, w[i], isas[j], act);
        }
        const struct plan plan = {own, count, isas[j], act};
        if (bitmaps_linears(&plan, threads, x, m, y[j]))
            abort();
        s->products += count;
    }
    for (int i = 0; i < count; i++)
        for (int64_t r = 0; r < m; r++) {
            float total = 0;
            for (int64_t c = 0; c < k; c++)
                total += fabsf(x[r * k + c] * (w[i].column ? w[i].column[c] : 1.0f));
            for (int64_t n = 0; n < w[i].n; n++) {
                const float expected = y[isa_count - 1][i][r * w[i].n + n];
                const float size = total * (fabsf(w[i].high[n]) + 2 * (w[i].low ? fabsf(w[i].low[n]) : fabsf(w[i].high[n]))) + fabsf(w[i].bias ? w[i].bias[n] : 0);
                const float allowed = act == F32 ? 3e-6f * size : 0; /* whole numbers: the same bits */
                for (int j = 0; j < isa_count; j++) {
                    const float actual = y[j][i][r * w[i].n + n];
                    if (!(fabsf(actual - expected) <= allowed))
                        fail(s, "linear", isas[j], act, r, n, k, actual, expected);
                }
            }
        }
    release(s);
}

/* A different last bit may take an activation to the next level, or a sign to the other: that shall be rare. */
static void compare_norms(struct state *s, const char *what, int act, int64_t m, int64_t n, int64_t k, float *const *y,
                          const float *expected, int exact)
{
    for (int j = 0; j < isa_count; j++) {
        int64_t off = 0;
        for (int64_t r = 0; y[j] && r < m; r++) {
            float worst = 0;
            for (int64_t c = 0; c < n; c++) {
                const float difference = fabsf(y[j][r * n + c] - expected[r * n + c]);
                worst = difference > worst || isnan(difference) ? difference : worst;
            }
            off += !(worst <= 1e-3f);
            if (!(worst <= (exact ? 1e-3f : 1.0f)))
                fail(s, what, isas[j], act, r, n, k, worst, 0);
        }
        if (off > 1 + m / 10)
            fail(s, what, isas[j], act, m, n, k, (float)off, 0);
    }
}

static void linear_norm(struct state *s, int64_t m)
{
    const int act = (int)below(s, 6), threads = 1 + (int)below(s, 3);
    const int64_t n = some_size(s, INT64_MAX), k = other_size(s, m, n);
    const float *column = below(s, 2) ? numbers(s, k, 1) : NULL;
    const struct matrix w = random_matrix(s, n, k, act == A8 && below(s, 2) ? INT8 : BITS, column, below(s, 2) != 0);
    const float *x = numbers(s, m * k, 1), *residual = numbers(s, m * n, 1), *gain = numbers(s, n, 1), *shift = numbers(s, n, 1);
    float *y[MOST_ISAS];
    for (int j = 0; j < isa_count; j++) {
        y[j] = outputs(s, m * n);
        const struct matrix own = arranged(s, w, isas[j], act);
        const struct plan plan = {&own, 1, isas[j], act};
        if (bitmaps_linear_norm(&plan, threads, x, m, y[j], residual, gain, shift, 0.1f))
            abort();
        s->products++;
    }
    compare_norms(s, "linear_norm", act, m, n, k, y, y[isa_count - 1], 1);
    release(s);
}

static void ffnn(struct state *s, int64_t m)
{
    const int act = (int)below(s, 6), kind = act == A8 && below(s, 2) ? INT8 : BITS, threads = 1 + (int)below(s, 3);
    const int64_t k = some_size(s, INT64_MAX), width = other_size(s, m, k);
    const float *first = below(s, 2) ? numbers(s, k, 1) : NULL, *second = below(s, 2) ? numbers(s, width, 1) : NULL;
    /* signs that cancel and no bias would leave a sign to the last bit */
    const struct matrix expand = random_matrix(s, width, k, kind, first, act == A1 || below(s, 2));
    const struct matrix contract = random_matrix(s, k, width, kind, second, below(s, 2) != 0);
    const float *x = numbers(s, m * k, 1), *gain = numbers(s, k, 1), *shift = numbers(s, k, 1);
    float *y[MOST_ISAS];
    for (int j = 0; j < isa_count; j++) {
        y[j] = outputs(s, m * k);
        const struct matrix first_own = arranged(s, expand, isas[j], act), second_own = arranged(s, contract, isas[j], act);
        const struct plan first_plan = {&first_own, 1, isas[j], act}, second_plan = {&second_own, 1, isas[j], act};
        if (bitmaps_ffnn(&first_plan, &second_plan, threads, x, m, y[j], gain, shift, 0.1f))
            abort();
        s->products += 2;
    }
    compare_norms(s, "ffnn", act, m, k, width, y, y[isa_count - 1], act == F32);
    release(s);
}

/* softmax(q k^T / sqrt(size)) v in plain loops. */
static void attend(float *context, const float *query, const float *key, const float *value, const uint8_t *mask, int64_t m, int64_t length,
                   int64_t heads, int64_t size)
{
    const int64_t row = heads * size;
    float score[length];
    for (int64_t i = 0; i < m; i++)
        for (int64_t h = 0; h < row; h += size) {
            const int64_t first = i / length * length;
            float most = -INFINITY, total = 0;
            for (int64_t j = 0; j < length; j++) {
                float dot = 0;
                for (int64_t c = h; c < h + size; c++)
                    dot += query[i * row + c] * key[(first + j) * row + c];
                score[j] = mask && !mask[first + j] ? -INFINITY : dot / sqrtf((float)size);
                most = score[j] > most ? score[j] : most;
            }
            for (int64_t j = 0; j < length; j++)
                total += score[j] = most > -INFINITY ? expf(score[j] - most) : 0;
            for (int64_t c = h; c < h + size; c++) {
                float sum = 0;
                for (int64_t j = 0; j < length; j++)
                    sum += score[j] * value[(first + j) * row + c];
                context[i * row + c] = total > 0 ? sum / total : 0;
            }
        }
}

/* Against the generic products around plain loops. */
static void attention(struct state *s, int64_t some, int64_t length)
{
    const int act = (int)below(s, 6), threads = 1 + (int)below(s, 3), generic = isas[isa_count - 1];
    const int64_t heads = 1 + below(s, 3), size = 32 * (1 + below(s, 3)), k = heads * size;
    const int64_t most = largest / (length * k * k), sentences = some < most ? some : most > 0 ? most : 1, m = sentences * length;
    const float *column = below(s, 2) ? numbers(s, k, 1) : NULL;
    struct matrix w[3];
    for (int i = 0; i < 3; i++)
        w[i] = random_matrix(s, k, k, BITS, i ? column : NULL, 1);
    const struct matrix output = random_matrix(s, k, k, BITS, NULL, 1);
    const float *x = numbers(s, m * k, 1), *gain = numbers(s, k, 1), *shift = numbers(s, k, 1);
    uint8_t *mask = below(s, 2) ? array(s, m) : NULL;
    for (int64_t i = 0; mask && i < m; i++)
        mask[i] = below(s, 4) != 0;
    float *y[MOST_ISAS], *parts[3], *context = outputs(s, m * k), *expected = outputs(s, m * k);
    for (int j = 0; j < isa_count; j++) {
        struct matrix own[4];
        for (int i = 0; i < 4; i++)
            own[i] = arranged(s, i < 3 ? w[i] : output, isas[j], act);
        const struct plan project = {own, 3, isas[j], act}, last = {own + 3, 1, isas[j], act};
        y[j] = bitmaps_attends(isas[j]) ? outputs(s, m * k) : NULL;
        if (y[j] && bitmaps_attention(&project, &last, threads, x, m, y[j], mask, length, heads, gain, shift, 0.1f))
            abort();
        s->products += y[j] ? 4 : 0;
    }
    for (int i = 0; i < 3; i++)
        parts[i] = outputs(s, m * k);
    const struct plan project = {w, 3, generic, act}, last = {&output, 1, generic, act};
    if (bitmaps_linears(&project, 1, x, m, parts))
        abort();
    attend(context, parts[0], parts[1], parts[2], mask, m, length, heads, size);
    if (bitmaps_linear_norm(&last, 1, context, m, expected, x, gain, shift, 0.1f))
        abort();
    compare_norms(s, "attention", act, m, k, length, y, expected, act == F32);
    release(s);
}

struct thread {
    pthread_t id;
    struct state state;
    int times;
};

static void *run(void *context)
{
    struct thread *thread = context;
    struct state *s = &thread->state;
    static const int64_t larger[] = {191, 192, 193, 200, 384, 385, 400, 600}, lengths[] = {1, 5, 8, 9, 31, 33, 64, 130, 200, 385};
    for (int time = 0; time < thread->times; time++) {
        for (int64_t m = 0; m <= 13; m++) {
            linears(s, m);
            linear_norm(s, m);
            ffnn(s, m);
        }
        linears(s, larger[below(s, 8)]);
        linear_norm(s, larger[below(s, 8)]);
        ffnn(s, larger[below(s, 8)]);
        for (int i = 0; i < 10; i++)
            attention(s, 1 + below(s, i < 5 ? 50 : 4), lengths[i]);
    }
    return NULL;
}

/* -- an OpenMP that gives fewer threads than asked for, one after the other -- */

static __thread int team_number, team_size = 1;

static int number_in_team(void) { return team_number; }
static int size_of_team(void) { return team_size; }

static void parallel(void (*body)(void *), void *context, unsigned threads, unsigned flags)
{
    (void)flags;
    team_size = threads > 2 ? (int)threads - 1 : (int)threads;
    for (team_number = team_size - 1; team_number >= 0; team_number--)
        body(context);
    team_number = 0;
    team_size = 1;
}

int main(int count, char **arguments)
{
    const uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 0;
    const int times = count > 2 ? atoi(arguments[2]) : 10;
    long products = 0, tiled = 0, failures = 0;
    largest = count > 3 ? atoll(arguments[3]) : INT64_MAX;
    for (int i = 0; bitmaps_isa_name(i) && isa_count < MOST_ISAS; i++)
        if (bitmaps_isa_runs(i))
            isas[isa_count++] = i;
    for (int phase = 0; phase < 3; phase++) { /* alone, two at once, with OpenMP's threads */
        struct thread threads[2] = {{.state.random = seed + 2 * phase, .times = times}, {.state.random = seed + 2 * phase + 1}};
        threads[1].times = phase == 1 ? times : 0;
        if (phase == 2)
            bitmaps_use_openmp((void *)parallel, (void *)number_in_team, (void *)size_of_team);
        for (int i = 0; i < 2; i++)
            if (pthread_create(&threads[i].id, NULL, run, &threads[i]))
                abort();
        for (int i = 0; i < 2; i++) {
            pthread_join(threads[i].id, NULL);
            products += threads[i].state.products;
            tiled += threads[i].state.tiled;
            failures += threads[i].state.failures;
        }
    }
    for (int i = 0; i < isa_count; i++)
        printf("%s ", bitmaps_isa_name(isas[i]));
    printf("%ld products, %ld tiled, %ld failures\n", products, tiled, failures);
    return failures ? 1 : 0;
}
