/* Threads: PyTorch's own through OpenMP, or else threads started for each call.
 *
 * PyTorch has loaded an OpenMP runtime, whose idle threads wait in a loop. A second pool would
 * compete with them for the cores. So Python finds the runtime's functions by name and hands
 * them to bitmaps_use_openmp; the kernels need not be linked to the runtime. */
#include "threads.h"

#include <stddef.h>
#if defined(_WIN32)
#include <windows.h>
#else
#include <pthread.h>
#endif

#include "export.h" /* and not kernels.h: windows.h has an INT8 too */

typedef void gomp_parallel(void (*)(void *), void *, unsigned, unsigned);
typedef int count_of(void);
static gomp_parallel *run_gomp;
static count_of *thread_number, *thread_count;

/* GOMP_parallel, omp_get_thread_num and omp_get_num_threads. */
EXPORT void bitmaps_use_openmp(void *parallel, void *number, void *count)
{
    run_gomp = (gomp_parallel *)parallel;
    thread_number = (count_of *)number;
    thread_count = (count_of *)count;
}

struct work {
    body_of_work *body;
    void *context;
    int64_t items;
    int part, parts; /* without OpenMP: which thread this is, and of how many */
};

static void run_part(const struct work *work, int part, int parts)
{
    const int64_t from = work->items * part / parts, to = work->items * (part + 1) / parts;
    if (from < to)
        work->body(work->context, from, to, part);
}

/* OpenMP may give fewer threads than asked for, so each one looks up how many there are. */
static void on_gomp_thread(void *work) { run_part(work, thread_number(), thread_count()); }

static void run_own_part(const struct work *work) { run_part(work, work->part, work->parts); }

#if defined(_WIN32)
typedef HANDLE thread;

static DWORD WINAPI on_own_thread(void *work)
{
    run_own_part(work);
    return 0;
}

static int start(thread *id, struct work *work)
{
    *id = CreateThread(NULL, 0, on_own_thread, work, 0, NULL);
    return *id != NULL;
}

static void join(thread id)
{
    WaitForSingleObject(id, INFINITE);
    CloseHandle(id);
}
#else
typedef pthread_t thread;

static void *on_own_thread(void *work)
{
    run_own_part(work);
    return NULL;
}

static int start(thread *id, struct work *work)
{
    return pthread_create(id, NULL, on_own_thread, work) == 0;
}

static void join(thread id) { pthread_join(id, NULL); }
#endif

static void run_own(const struct work *all, int threads)
{
    struct work works[threads];
    thread ids[threads];
    char started[threads];
    for (int i = 1; i < threads; i++) {
        works[i] = *all;
        works[i].part = i;
        works[i].parts = threads;
        started[i] = (char)start(&ids[i], &works[i]);
    }
    run_part(all, 0, threads);
    for (int i = 1; i < threads; i++)
        if (started[i])
            join(ids[i]);
        else
            run_part(all, i, threads);
}

void parallel(int threads, int64_t items, body_of_work *body, void *context)
{
    struct work work = {.body = body, .context = context, .items = items};
    threads = items < threads ? (int)items : threads;
    if (threads <= 1)
        run_part(&work, 0, 1);
    else if (run_gomp)
        run_gomp(on_gomp_thread, &work, (unsigned)threads, 0);
    else
        run_own(&work, threads);
}
