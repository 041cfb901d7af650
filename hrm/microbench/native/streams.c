/* Streaming kernels for the memory roofs: read, copy and triad, with regular and with non-temporal stores.

   One call works for one thread, on buffers whose addresses are multiples of 64 and whose length is a multiple of 512
   bytes (the caller sees to it), and goes over them `passes` times. Reading adds 64-bit integers: every byte is used,
   and the order of the sums does not matter. It goes through the quarters of its buffer side by side: a core that
   fetches ahead in four streams reads half as much again as in one on a Zen 3 core, and a roof must not be beaten by a
   kernel that reads several things at once. The triad is STREAM's, a = b + 3 c in float64.

   On x86 eight vectors are in flight, and the path is chosen at run time; elsewhere the loops are plain and there are
   no non-temporal stores. */

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum Kind { READ, COPY, COPY_NT, TRIAD, TRIAD_NT };

/* The compiler must take memory as changed between passes, or it could read once and multiply. */
#define EACH_PASS(length, step)                      \
    for (int64_t pass = 0; pass < passes; ++pass) {  \
        __asm__ volatile("" ::: "memory");           \
        for (int64_t i = 0; i < (length); i += (step))
#define END_PASS }

#if defined(__x86_64__)
#include <immintrin.h>

#define EIGHT(DO) { DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) }

#define TARGET __attribute__((target("avx2,fma")))
#define NAME run_avx2
#define VECTOR __m256i
#define ZERO _mm256_setzero_si256()
#define ADD _mm256_add_epi64
#define LOAD _mm256_load_si256
#define STORE _mm256_store_si256
#define STREAM _mm256_stream_si256
#define TRIPLE_PLUS(c, b) \
    _mm256_castpd_si256(_mm256_fmadd_pd(_mm256_set1_pd(3.0), _mm256_castsi256_pd(c), _mm256_castsi256_pd(b)))
#include "streams_path.h"

#define TARGET __attribute__((target("avx512f")))
#define NAME run_avx512
#define VECTOR __m512i
#define ZERO _mm512_setzero_si512()
#define ADD _mm512_add_epi64
#define LOAD _mm512_load_si512
#define STORE _mm512_store_si512
#define STREAM _mm512_stream_si512
#define TRIPLE_PLUS(c, b) \
    _mm512_castpd_si512(_mm512_fmadd_pd(_mm512_set1_pd(3.0), _mm512_castsi512_pd(c), _mm512_castsi512_pd(b)))
#include "streams_path.h"
#endif

static void run_plain(int kind, void *target, const void *first, const void *second, int64_t bytes, int64_t passes) {
    const int64_t count = bytes / 8;
    const uint64_t *words = first;
    const double *b = first, *c = second;
    double *a = target;
    uint64_t sum = 0;
    switch (kind) {
        case READ: EACH_PASS(count, 1) { sum += words[i]; } END_PASS
            memcpy(target, &sum, sizeof sum);
            break;
        case COPY: EACH_PASS(count, 1) { a[i] = b[i]; } END_PASS break;
        case TRIAD: EACH_PASS(count, 1) { a[i] = b[i] + 3.0 * c[i]; } END_PASS break;
    }
}

EXPORT int hrm_streams_version(void) { return 2; }

/* Name of the path that runs: 0 plain, 1 AVX2, 2 AVX-512. */
EXPORT int hrm_streams_path(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Return 0, or 1 for a kind that this CPU's path does not have. A read leaves its sum in the target's first 8 bytes. */
EXPORT int hrm_stream(int kind, void *target, const void *first, const void *second, int64_t bytes, int64_t passes) {
    switch (hrm_streams_path()) {
#if defined(__x86_64__)
        case 2: run_avx512(kind, target, first, second, bytes, passes); return 0;
        case 1: run_avx2(kind, target, first, second, bytes, passes); return 0;
#endif
        default:
            if (kind == COPY_NT || kind == TRIAD_NT) return 1;
            run_plain(kind, target, first, second, bytes, passes);
            return 0;
    }
}
