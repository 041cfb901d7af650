// Decode attention on the CPU: one query token per sequence over a cache of keys and values, grouped query heads.
//
// A plain C interface for ctypes: no Python and no torch, so the caller's interpreter lock is released during a call.
// `attention_kernel.h` holds the kernel; this file compiles it for each instruction set, picks one at run time and shares
// the (sequence, KV head) pairs out over threads.

#include <limits>

#include "common.h"

// Mirrored field by field in attention.py; change the version in library.py and here when it changes.
constexpr int32_t kInterfaceVersion = 7;

struct HrmAttention {
    const void* query;  // [batch, num_query_heads, head_dim]
    const void* new_keys;  // what is appended, of the query's format: [batch, num_kv_heads, head_dim]
    const void* new_values;
    void* keys;         // flat; sequence i owns [num_kv_heads, capacities[i], head_dim] from element offsets[i]
    void* values;       // as keys
    void* out;          // as query
    const int64_t* offsets;
    const int64_t* capacities;  // tokens
    const int64_t* lengths;     // tokens that are valid
    int64_t batch;
    int64_t num_query_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t buffer_elements;  // of keys, and of values
    int32_t query_is_bfloat16;
    int32_t cache_is_bfloat16;
};

namespace {

enum Result { kDone = 0, kPathMissing = 1, kLengthBeyondCapacity = 2, kBlockOutsideBuffer = 3, kNoMemory = 4 };

// Small blocks, so that K and V arrive in turn at a steady rate: on one core of a Zen 5, 36 to 38 GB/s of the 40 that a plain
// read reaches, 33 to 35 with blocks twice as large, and half as large ones leave too much to do per block. On one of a Zen 3
// what arrives is bound by requests in flight: some 15 GB/s of 24, alike for bfloat16 and float32, huge pages or not, requests
// into the first or the second cache, 1 to 8 KiB ahead; 9 GB/s without any, 11 where loads stand in for them.
constexpr int kBlockTokens = 64;   // at most
constexpr int kBlockBytes = 4096;  // of K in a block, about
constexpr int kFineBlockBytes = 2048;  // of float32, where heads fill tiles of 4 tokens: on that Zen 5 39 GB/s of 43 instead of 36
constexpr int kAheadBytes = 3072;  // with 2048 long contexts take up to 1.1 times as long on the Zen 5, with 4096 and 8192 1.02 and 1.09
constexpr int64_t kRunsOfAWorker = 16;  // at least, of items that lie side by side: 66 GB/s with two threads, 60 item by item
constexpr int64_t kItemsAhead = 12;  // of those appended
constexpr int64_t kBytesWorthAThread = 1 << 19;  // K and V that take about as long as starting a thread (some 40 us)

struct Shape {
    int group;         // query heads per KV head
    int head_dim;
    int pad;           // head_dim rounded up to the widest unit
    int block_tokens;  // a multiple of 4, at most kBlockTokens
    float scale;       // log2(e) / sqrt(head_dim): weights are powers of two
};

struct Block {
    const float* weights;     // [token][lane]
    const float* correction;  // [lane]
    float* sums;              // [head][pad]
    int pad;
    const char* upcoming;     // what to request while V is added: K of the next block
};

struct Scratch {
    float *query, *sums, *running;
};

// Where the keys, and the values, of an item begin: of a (sequence, KV head).
int64_t start_of(const HrmAttention& job, int64_t item) {
    const int64_t sequence = item / job.num_kv_heads;
    return job.offsets[sequence] + item % job.num_kv_heads * job.capacities[sequence] * job.head_dim;
}

#define HRM_KERNEL "attention_kernel.h"
#include "each_path.h"

using Attend = void (*)(const HrmAttention&, const Shape&, int64_t, int64_t, Scratch&);

Attend kernel_for(const HrmAttention& job, int path) {
    const bool narrow = job.cache_is_bfloat16;
#if defined(__x86_64__)
    // A float32 query would lose digits in a bfloat16 dot product.
    if (path == kAvx512Bf16 && narrow && job.query_is_bfloat16) return avx512_bf16::attend<avx512_bf16::Dot>;
    if (path == kAvx512Bf16 || path == kAvx512)
        return narrow ? avx512::attend<avx512::Widening<avx512::Bfloat16>>
                      : avx512::attend<avx512::Widening<avx512::Float32>>;
    if (path == kAvx2)
        return narrow ? avx2::attend<avx2::Widening<avx2::Bfloat16>>
                      : avx2::attend<avx2::Widening<avx2::Float32>>;
#endif
    (void)path;
    return narrow ? portable::attend<portable::Widening<portable::Bfloat16>>
                  : portable::attend<portable::Widening<portable::Float32>>;
}

int check(const HrmAttention& job, int64_t new_tokens) {
    for (int64_t i = 0; i < job.batch; ++i) {
        if (job.lengths[i] < 0 || job.lengths[i] + new_tokens > job.capacities[i]) return kLengthBeyondCapacity;
        const int64_t end = job.offsets[i] + job.num_kv_heads * job.capacities[i] * job.head_dim;
        if (job.offsets[i] < 0 || end > job.buffer_elements) return kBlockOutsideBuffer;
    }
    return kDone;
}

Shape shape_of(const HrmAttention& job) {
    Shape shape;
    shape.group = static_cast<int>(job.num_query_heads / job.num_kv_heads);
    shape.head_dim = static_cast<int>(job.head_dim);
    shape.pad = (shape.head_dim + 31) / 32 * 32;
    const int row_bytes = shape.head_dim * (job.cache_is_bfloat16 ? 2 : 4);
    const bool fine = !job.cache_is_bfloat16 && (shape.group % 4 == 0 || shape.group % 4 == 3);
    const int bytes = fine ? kFineBlockBytes : kBlockBytes, tokens = fine ? 4 : 8;
    shape.block_tokens = std::clamp(bytes / row_bytes / tokens * tokens, tokens, kBlockTokens);
    shape.scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head_dim)));
    return shape;
}

}  // namespace

HRM_EXPORT int32_t hrm_interface_version() { return kInterfaceVersion; }

OpenMp openmp_parallel = nullptr;

HRM_EXPORT void hrm_use_openmp(void* parallel) { openmp_parallel = reinterpret_cast<OpenMp>(parallel); }

HRM_EXPORT int32_t hrm_has_path(int32_t path) { return has(path); }

HRM_EXPORT int32_t hrm_decode_attention(const HrmAttention* job, int32_t path, int32_t num_threads) {
    if (!has(path)) return kPathMissing;
    if (const int wrong = check(*job, 0)) return wrong;
    const Shape shape = shape_of(*job);
    const Attend attend = kernel_for(*job, path);
    const int64_t num_items = job->batch * job->num_kv_heads;
    int64_t cache_bytes = 0;
    for (int64_t i = 0; i < job->batch; ++i)
        cache_bytes += 2 * job->num_kv_heads * job->lengths[i] * job->head_dim * (job->cache_is_bfloat16 ? 2 : 4);
    const int64_t useful = std::min(num_items, 1 + cache_bytes / kBytesWorthAThread);
    const int64_t num_workers = std::max<int64_t>(std::min<int64_t>(num_threads, useful), 1);

    // Per worker: queries and sums [group][pad], and two vectors of at most 16 floats per four heads.
    const size_t rows = static_cast<size_t>(shape.group) * shape.pad;
    const size_t running = static_cast<size_t>(shape.group + 3) / 4 * 32;
    const size_t floats = 2 * rows + running;  // every part is a multiple of 128 bytes, hence aligned for any vector
    float* memory = static_cast<float*>(std::aligned_alloc(128, floats * num_workers * sizeof(float)));
    if (memory == nullptr) return kNoMemory;

    // Items of a sequence lie side by side: a worker takes some, as far as enough are left to share out.
    const int64_t run = std::clamp<int64_t>(num_items / (kRunsOfAWorker * num_workers), 1, job->num_kv_heads);
    std::atomic<int64_t> next{0};
    const auto work = [&](int64_t worker) {
        float* mine = memory + worker * floats;
        Scratch scratch{mine, mine + rows, mine + 2 * rows};
        // A worker takes an item while it works on the one before, and so knows what to request.
        int64_t first = 0, end = 0;
        const auto taken = [&] {
            if (first == end) end = (first = next.fetch_add(run, std::memory_order_relaxed)) + run;
            return first++;
        };
        for (int64_t item = taken(), following; item < num_items; item = following) {
            following = taken();
            attend(*job, shape, item, following < num_items ? following : item, scratch);
        }
    };
    run_parallel(num_workers, work);
    std::free(memory);
    return kDone;
}

// Writes one new token per sequence behind its valid tokens. Each lies in cache lines of its own, which no cache holds: some
// are requested ahead.
HRM_EXPORT int32_t hrm_append_kv(const HrmAttention* job, int32_t, int32_t) {
    if (const int wrong = check(*job, 1)) return wrong;
    const int64_t dim = job->head_dim, items = job->batch * job->num_kv_heads, bytes = job->cache_is_bfloat16 ? 2 : 4;
    const auto place_of = [&](int64_t item) { return start_of(*job, item) + job->lengths[item / job->num_kv_heads] * dim; };
    const auto append = [&](void* cache, const void* tokens, int64_t item) {
        const int64_t to = place_of(item), from = item * dim;
        if (job->query_is_bfloat16 == job->cache_is_bfloat16) {
            std::memcpy(static_cast<char*>(cache) + to * bytes, static_cast<const char*>(tokens) + from * bytes, dim * bytes);
            return;
        }
        for (int64_t at = 0; at < dim; ++at)
            write(cache, to + at, job->cache_is_bfloat16, read(tokens, from + at, job->query_is_bfloat16));
    };
    for (int64_t item = 0; item < items; ++item) {
        if (item + kItemsAhead < items)
            for (const void* cache : {job->keys, job->values}) {
                const char* ahead = static_cast<const char*>(cache) + place_of(item + kItemsAhead) * bytes;
                for (int64_t at = 0; at < dim * bytes; at += 64) __builtin_prefetch(ahead + at, 1);
            }
        append(job->keys, job->new_keys, item);
        append(job->values, job->new_values, item);
    }
    return kDone;
}
