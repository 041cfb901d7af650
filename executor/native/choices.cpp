// Choices on the CPU: which experts a token goes to, and which token is the likeliest.
//
// A plain C interface for ctypes, as attention.cpp. `choices_kernel.h` holds the search for the largest of a row, compiled for
// each instruction set; a router's rows are short, and plain code does for them.

#include "common.h"

// Mirrored field by field in choices.py; the version in attention.cpp changes with it.
struct HrmRoute {
    const float* logits;  // [tokens, experts]
    int64_t* chosen;      // [tokens, per_token]: the likeliest first
    float* shares;        // as chosen
    int64_t tokens, experts, per_token;
    float scale;
    int32_t renormalized;
};

struct HrmLargest {
    const void* x;  // [rows, width], rows `stride` elements apart
    int64_t* out;   // [rows]
    int64_t rows, width, stride;
    int32_t is_bfloat16;
};

namespace {

constexpr int64_t kTokensAtATime = 64;
constexpr int64_t kWorthAThread = 1 << 12;  // logits whose exponentials take some ten times as long as waking a thread
constexpr int64_t kBlock = 512;             // numbers of a row that are looked through for where their largest is

struct Kernels {
    int64_t (*first_largest[2])(const void*, int64_t);  // by whether bfloat16
};

#define HRM_KERNEL "choices_kernel.h"
#include "each_path.h"
#include "kernels_for_path.h"

// A token's experts by softmax; of equal ones the first. `scores` has room for them all.
void route(const HrmRoute& job, int64_t token, float* scores) {
    const float* logits = job.logits + token * job.experts;
    int64_t* chosen = job.chosen + token * job.per_token;
    float* shares = job.shares + token * job.per_token;
    const float top = *std::max_element(logits, logits + job.experts);
    float sum = 0.0f, kept = 0.0f;
    for (int64_t e = 0; e < job.experts; ++e) sum += scores[e] = std::exp(logits[e] - top);
    for (int64_t e = 0; e < job.experts; ++e) scores[e] /= sum;
    for (int64_t k = 0; k < job.per_token; ++k) {
        chosen[k] = std::max_element(scores, scores + job.experts) - scores;
        kept += shares[k] = scores[chosen[k]];
        scores[chosen[k]] = -1.0f;
    }
    for (int64_t k = 0; k < job.per_token; ++k) shares[k] = (job.renormalized ? shares[k] / kept : shares[k]) * job.scale;
}

}  // namespace

HRM_EXPORT void hrm_route(const HrmRoute* job, int32_t, int32_t num_threads) {
    std::atomic<int64_t> next{0};
    run_parallel(std::min<int64_t>(num_threads, 1 + job->tokens * job->experts / kWorthAThread), [&](int64_t) {
        std::vector<float> scores(job->experts);
        for (int64_t first; (first = next.fetch_add(kTokensAtATime, std::memory_order_relaxed)) < job->tokens;)
            for (int64_t token = first; token < std::min(first + kTokensAtATime, job->tokens); ++token)
                route(*job, token, scores.data());
    });
}

HRM_EXPORT void hrm_largest(const HrmLargest* job, int32_t path, int32_t num_threads) {
    const auto first_largest = kernels_for(path).first_largest[job->is_bfloat16];
    const int64_t row_bytes = job->stride * (job->is_bfloat16 ? 2 : 4);
    std::atomic<int64_t> next{0};
    run_parallel(std::min<int64_t>(num_threads, job->rows), [&](int64_t) {
        for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < job->rows;)
            job->out[row] = first_largest(static_cast<const char*>(job->x) + row * row_bytes, job->width);
    });
}
