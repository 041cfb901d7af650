// Attention within whole prompts on the CPU: causal, grouped query heads, prompts of any lengths side by side.
//
// A plain C interface for ctypes, as attention.cpp. `prefill_kernel.h` holds the kernel; this file shares (prompt, KV head,
// queries) out over threads. A row's result does not depend on other prompts, nor on the number of threads.

#include "common.h"

// Mirrored field by field in prefill.py; the version in attention.cpp changes with it.
struct HrmPrefill {
    const void* query;      // [tokens, num_query_heads, head_dim]: all prompts, one behind the other
    const void* keys;       // of each prompt [num_kv_heads, its tokens, head_dim], one behind the other
    const void* values;     // as keys, value_dim wide
    void* out;              // [tokens, num_query_heads, value_dim], as query
    const int64_t* starts;  // [prompts + 1]: first token of each prompt, and the end
    const float* sinks;     // [num_query_heads]: a logit that takes its share of each softmax; or null
    int64_t prompts;
    int64_t num_query_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t value_dim;
    int64_t window;  // tokens that a query sees at most, its own included
    float scale;     // of the logits
    int32_t query_is_bfloat16;
    int32_t cache_is_bfloat16;  // keys and values
};

namespace {

constexpr int kKeys = 64;         // keys of a block: with its values they stay in L1 and L2 while all queries pass
constexpr int kChunkRows = 384;   // queries (of all heads of a group) for which a block is packed once, about
constexpr int kTileRows = 6;      // queries that are multiplied at once: with operands, their sums fill the registers
constexpr int64_t kWorthAThread = 1 << 18;  // multiply-adds that take some five times as long as waking a thread
constexpr float kLog2E = 1.44269504f;

// Queries `first` to `last` (one past) of one (prompt, KV head), and where all of them stand.
struct Chunk {
    int64_t start, tokens;  // the prompt's first row, and its length
    int64_t kv_head;
    int64_t first, last;
};

// Rounds up to a multiple.
constexpr int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

using Attend = void (*)(const HrmPrefill&, const Chunk&, char*);

struct Kernel {
    Attend attend;
    int64_t (*room)(const HrmPrefill&, int64_t);  // bytes of scratch for chunks of so many rows
};

#define HRM_KERNEL "prefill_kernel.h"
#include "each_path.h"

const Kernel& kernel_for(const HrmPrefill& job, int path) {
#if defined(__x86_64__)
    if (path == kAvx512Bf16 && job.query_is_bfloat16) return avx512_bf16::kernel<avx512_bf16::Pairs>;
    if (path >= kAvx512) return avx512::kernel<avx512::Singles>;
    if (path == kAvx2) return avx2::kernel<avx2::Singles>;
#endif
    (void)path;
    return portable::kernel<portable::Singles>;
}

// Longest first within a prompt: a chunk's work grows with its place.
std::vector<Chunk> chunks_of(const HrmPrefill& job, int64_t step) {
    std::vector<Chunk> chunks;
    for (int64_t i = 0; i < job.prompts; ++i) {
        const int64_t start = job.starts[i], tokens = job.starts[i + 1] - start;
        for (int64_t head = 0; head < job.num_kv_heads; ++head)
            for (int64_t first = (tokens - 1) / step * step; tokens > 0 && first >= 0; first -= step)
                chunks.push_back({start, tokens, head, first, std::min(first + step, tokens)});
    }
    return chunks;
}

}  // namespace

// Returns whether there was memory for the scratch space.
HRM_EXPORT int32_t hrm_prefill_attention(const HrmPrefill* job, int32_t path, int32_t num_threads) {
    const Kernel& kernel = kernel_for(*job, path);
    const int64_t group = job->num_query_heads / job->num_kv_heads, step = std::max<int64_t>(kChunkRows / group, 1);
    const std::vector<Chunk> chunks = chunks_of(*job, step);
    double multiply_adds = 0;
    for (const Chunk& chunk : chunks)
        multiply_adds += static_cast<double>((chunk.last - chunk.first) * std::min(chunk.last, job->window) * group) *
                         static_cast<double>(job->head_dim + job->value_dim);
    const int64_t useful = std::min<int64_t>(static_cast<int64_t>(chunks.size()),
                                             1 + static_cast<int64_t>(multiply_adds / kWorthAThread));
    const int64_t num_workers = std::max<int64_t>(std::min<int64_t>(num_threads, useful), 1);
    const int64_t room = whole(kernel.room(*job, step * group), 128);
    char* memory = static_cast<char*>(std::aligned_alloc(128, room * num_workers));
    if (memory == nullptr) return 0;
    std::atomic<size_t> next{0};
    run_parallel(num_workers, [&](int64_t worker) {
        for (size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < chunks.size();)
            kernel.attend(*job, chunks[item], memory + worker * room);
    });
    std::free(memory);
    return 1;
}
