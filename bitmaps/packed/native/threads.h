/* Work on several threads. */
#ifndef BITMAPS_THREADS_H
#define BITMAPS_THREADS_H

#include <stdint.h>

/* Works on items `from` to `to` - 1. `part` is below the number of threads, and no two bodies that
 * run at once have the same. */
typedef void body_of_work(void *context, int64_t from, int64_t to, int part);

/* Cut 0..items into at most `threads` consecutive ranges and call the body for each, at once. */
void parallel(int threads, int64_t items, body_of_work *body, void *context);

#endif
