/* Reads of a file with several in flight: threads that each take the next request of a list until none is left.

   In threads of Python the interpreter between two reads takes longer than a small read does. */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_THREADS 64

typedef struct {
    int handle;
    int64_t bytes;
    const int64_t *offsets;
    int64_t count;
    atomic_llong next;
    atomic_int error;
} Requests;

typedef struct {
    Requests *requests;
    void *buffer;
} Reader;

static void *serve(void *argument) {
    const Reader *reader = argument;
    Requests *requests = reader->requests;
    while (!atomic_load(&requests->error)) {
        const int64_t number = atomic_fetch_add(&requests->next, 1);
        if (number >= requests->count) break;
        const ssize_t got = pread(requests->handle, reader->buffer, (size_t)requests->bytes, requests->offsets[number]);
        if (got != requests->bytes) atomic_store(&requests->error, got < 0 ? errno : EIO);
    }
    return NULL;
}

/* Read `bytes` at each of `count` offsets, `depth` at a time, each reader into its own buffer. Return 0 or an errno. */
EXPORT int hrm_read(int handle, void *const *buffers, int depth, int64_t bytes, const int64_t *offsets, int64_t count) {
    if (depth < 1 || depth > MOST_THREADS) return EINVAL;
    Requests requests = {.handle = handle, .bytes = bytes, .offsets = offsets, .count = count};
    Reader readers[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    int started = 0, failed = 0;
    for (int i = 0; i < depth; ++i) readers[i] = (Reader){&requests, buffers[i]};
    while (started < depth - 1 && !failed) {
        failed = pthread_create(&threads[started], NULL, serve, &readers[started]);
        started += !failed;
    }
    if (failed) atomic_store(&requests.error, failed);
    serve(&readers[depth - 1]);
    for (int i = 0; i < started; ++i) pthread_join(threads[i], NULL);
    return atomic_load(&requests.error);
}
