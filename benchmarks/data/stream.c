/* STREAM's loops (J. D. McCalpin, https://www.cs.virginia.edu/stream/), one kind per run, with a sum for reading.

   stream KIND REPEATS: KIND is read, copy or triad; prints the bytes/s of each repeat. Bytes are counted as STREAM
   counts them, without write allocate. The first two repeats are warm-up and not printed.

   Build: gcc -O3 -march=native -ffast-math -fopenmp -fno-tree-loop-distribute-patterns stream.c -o stream
   The last flag keeps the copy a loop of regular stores: else gcc calls memcpy, which stores past the caches. */

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N (32L * 1024 * 1024)
#define EACH _Pragma("omp parallel for schedule(static)") for (long i = 0; i < N; ++i)

static double *a, *b, *c;

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "read";
    const int repeats = argc > 2 ? atoi(argv[2]) : 8;
    double total = 0;
    a = aligned_alloc(4096, N * 8), b = aligned_alloc(4096, N * 8), c = aligned_alloc(4096, N * 8);
    if (!a || !b || !c) return 1;
    EACH a[i] = 1.0, b[i] = 2.0, c[i] = 0.0;
    for (int repeat = -2; repeat < repeats; ++repeat) {
        const double begun_s = omp_get_wtime();
        double bytes = 8.0 * N, sum = 0;
        if (!strcmp(kind, "read")) {
#pragma omp parallel for schedule(static) reduction(+ : sum)
            for (long i = 0; i < N; ++i) sum += b[i];
        } else if (!strcmp(kind, "copy")) {
            EACH a[i] = b[i];
            bytes *= 2;
        } else {
            EACH a[i] = b[i] + 3.0 * c[i];
            bytes *= 3;
        }
        const double seconds = omp_get_wtime() - begun_s;
        total += sum + a[repeat + 2];
        if (repeat >= 0) printf("%.0f\n", bytes / seconds);
    }
    fprintf(stderr, "%g\n", total);
    return 0;
}
