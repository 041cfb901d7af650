/* One vector path of streams.c, which defines the macros used here and includes this once per instruction set. */

TARGET static void NAME(int kind, void *target, const void *first, const void *second, int64_t bytes, int64_t passes) {
    const int64_t count = bytes / (int64_t)sizeof(VECTOR);
    const VECTOR *b = first, *c = second;
    VECTOR *a = target;
    VECTOR sum0 = ZERO, sum1 = ZERO, sum2 = ZERO, sum3 = ZERO, sum4 = ZERO, sum5 = ZERO, sum6 = ZERO, sum7 = ZERO;
#define READ_ONE(K) sum##K = ADD(sum##K, LOAD(b + K / 2 * (count / 4) + i + K % 2));
#define COPY_ONE(K) STORE(a + i + K, LOAD(b + i + K));
#define COPY_NT_ONE(K) STREAM(a + i + K, LOAD(b + i + K));
#define TRIAD_ONE(K) STORE(a + i + K, TRIPLE_PLUS(LOAD(c + i + K), LOAD(b + i + K)));
#define TRIAD_NT_ONE(K) STREAM(a + i + K, TRIPLE_PLUS(LOAD(c + i + K), LOAD(b + i + K)));
    switch (kind) {
        case READ: EACH_PASS(count / 4, 2) EIGHT(READ_ONE) END_PASS break;
        case COPY: EACH_PASS(count, 8) EIGHT(COPY_ONE) END_PASS break;
        case COPY_NT: EACH_PASS(count, 8) EIGHT(COPY_NT_ONE) END_PASS break;
        case TRIAD: EACH_PASS(count, 8) EIGHT(TRIAD_ONE) END_PASS break;
        case TRIAD_NT: EACH_PASS(count, 8) EIGHT(TRIAD_NT_ONE) END_PASS break;
    }
    _mm_sfence();
    if (kind == READ) {
        const VECTOR sum = ADD(ADD(ADD(sum0, sum1), ADD(sum2, sum3)), ADD(ADD(sum4, sum5), ADD(sum6, sum7)));
        uint64_t parts[sizeof(VECTOR) / 8], total = 0;
        memcpy(parts, &sum, sizeof sum);
        for (unsigned i = 0; i < sizeof(VECTOR) / 8; ++i) total += parts[i];
        memcpy(target, &total, sizeof total);
    }
#undef READ_ONE
#undef COPY_ONE
#undef COPY_NT_ONE
#undef TRIAD_ONE
#undef TRIAD_NT_ONE
}
#undef TARGET
#undef NAME
#undef VECTOR
#undef ZERO
#undef ADD
#undef LOAD
#undef STORE
#undef STREAM
#undef TRIPLE_PLUS
