// Norms and rotations of rows on the CPU, in one pass over memory each.
//
// A plain C interface for ctypes, as attention.cpp. Rows go by token and head, each contiguous, tokens and heads any number of
// elements apart. `elementwise_kernel.h` holds the kernels; this file shares tokens out over threads.

#include "common.h"

// Rows of a tensor [tokens, heads, width]; the version in attention.cpp changes with it, as with what follows.
struct HrmRows {
    void* data;
    int64_t token_stride, head_stride;
    int64_t is_bfloat16;
};

// Mirrored field by field in elementwise.py.
struct HrmNorm {
    HrmRows x, out;  // of one format
    const void* weight;
    int64_t tokens, heads, width;
    float eps;
    int32_t weight_is_bfloat16;
};

struct HrmRotation {
    HrmRows x, out;
    const void *cos, *sin;  // [tokens, half]
    int64_t tokens, heads, half;
    int32_t tables_are_bfloat16;
};

struct HrmCopy {
    HrmRows x, out;  // of one format
    int64_t tokens, heads, width;
};

// Rows that go together: of some tokens, their heads. Places and distances in elements.
struct HrmMove {
    int64_t from, from_token, from_head, to, to_token, to_head, tokens;
};

struct HrmMoves {
    const void* x;
    void* out;
    const HrmMove* moves;
    int64_t count, heads, width, x_elements, out_elements, element_bytes;
};

struct HrmSum {
    void* total;  // added to
    const void* x;
    int64_t count;
    int32_t total_is_bfloat16, x_is_bfloat16;
};

namespace {

constexpr int64_t kSumsAtATime = 1 << 14;
constexpr int64_t kWorthAThread = 1 << 15;  // elements that take some five times as long as calling a thread that looks out for work
constexpr int64_t kTokensAtATime = 16;

struct Kernels {
    void (*norm[4])(const void*, const void*, void*, int64_t, float);                  // by x and weight
    void (*rotate[8])(const void*, const void*, const void*, void*, int64_t);  // by x, out and tables
    void (*add[4])(void*, const void*, int64_t, int64_t);                       // by total and x
};

#define HRM_KERNEL "elementwise_kernel.h"
#include "each_path.h"
#include "kernels_for_path.h"

char* row_of(const HrmRows& rows, int64_t token, int64_t head) {
    return static_cast<char*>(rows.data) + (token * rows.token_stride + head * rows.head_stride) * (rows.is_bfloat16 ? 2 : 4);
}

// Calls work(token, head) for all rows.
template <class Work>
void for_rows(int64_t tokens, int64_t heads, int64_t width, int32_t num_threads, const Work& work) {
    std::atomic<int64_t> next{0};
    run_parallel(std::min<int64_t>(num_threads, 1 + tokens * heads * width / kWorthAThread), [&](int64_t) {
        for (int64_t first; (first = next.fetch_add(kTokensAtATime, std::memory_order_relaxed)) < tokens;)
            for (int64_t token = first; token < std::min(first + kTokensAtATime, tokens); ++token)
                for (int64_t head = 0; head < heads; ++head) work(token, head);
    });
}

}  // namespace

HRM_EXPORT void hrm_rms_norm(const HrmNorm* job, int32_t path, int32_t num_threads) {
    const auto norm = kernels_for(path).norm[2 * job->x.is_bfloat16 + job->weight_is_bfloat16];
    for_rows(job->tokens, job->heads, job->width, num_threads, [&](int64_t token, int64_t head) {
        norm(row_of(job->x, token, head), job->weight, row_of(job->out, token, head), job->width, job->eps);
    });
}

// A sum and the norm of what it makes, row by row.
HRM_EXPORT void hrm_add_norm(const HrmSum* sum, const HrmNorm* job, int32_t path, int32_t num_threads) {
    const auto add = kernels_for(path).add[2 * sum->total_is_bfloat16 + sum->x_is_bfloat16];
    const auto norm = kernels_for(path).norm[2 * job->x.is_bfloat16 + job->weight_is_bfloat16];
    for_rows(job->tokens, 1, job->width, num_threads, [&](int64_t token, int64_t) {
        add(sum->total, sum->x, token * job->width, (token + 1) * job->width);
        norm(row_of(job->x, token, 0), job->weight, row_of(job->out, token, 0), job->width, job->eps);
    });
}

HRM_EXPORT void hrm_rotate(const HrmRotation* job, int32_t path, int32_t num_threads) {
    const auto rotate =
        kernels_for(path).rotate[4 * job->x.is_bfloat16 + 2 * job->out.is_bfloat16 + job->tables_are_bfloat16];
    const int64_t table_bytes = job->half * (job->tables_are_bfloat16 ? 2 : 4);
    for_rows(job->tokens, job->heads, 2 * job->half, num_threads, [&](int64_t token, int64_t head) {
        rotate(row_of(job->x, token, head), static_cast<const char*>(job->cos) + token * table_bytes,
               static_cast<const char*>(job->sin) + token * table_bytes, row_of(job->out, token, head), job->half);
    });
}

HRM_EXPORT void hrm_copy_rows(const HrmCopy* job, int32_t, int32_t num_threads) {
    const size_t row_bytes = job->width * (job->x.is_bfloat16 ? 2 : 4);
    for_rows(job->tokens, job->heads, job->width, num_threads, [&](int64_t token, int64_t head) {
        std::memcpy(row_of(job->out, token, head), row_of(job->x, token, head), row_bytes);
    });
}

// 1 if a move would leave its buffer: then nothing was moved.
HRM_EXPORT int32_t hrm_move_rows(const HrmMoves* job, int32_t, int32_t num_threads) {
    const auto inside = [&](int64_t first, int64_t token, int64_t head, int64_t tokens, int64_t elements) {
        return first >= 0 && token >= 0 && head >= 0 && first + (tokens - 1) * token + (job->heads - 1) * head + job->width <= elements;
    };
    int64_t elements = 0;
    for (const HrmMove* move = job->moves; move < job->moves + job->count; ++move) {
        if (move->tokens < 1 || !inside(move->from, move->from_token, move->from_head, move->tokens, job->x_elements) ||
            !inside(move->to, move->to_token, move->to_head, move->tokens, job->out_elements))
            return 1;
        elements += move->tokens * job->heads * job->width;
    }
    const int64_t bytes = job->element_bytes;
    std::atomic<int64_t> next{0};
    run_parallel(std::min<int64_t>(num_threads, 1 + elements / kWorthAThread), [&](int64_t) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < job->count;) {
            const HrmMove& move = job->moves[i];
            for (int64_t token = 0; token < move.tokens; ++token)
                for (int64_t head = 0; head < job->heads; ++head)
                    std::memcpy(static_cast<char*>(job->out) + (move.to + token * move.to_token + head * move.to_head) * bytes,
                                static_cast<const char*>(job->x) + (move.from + token * move.from_token + head * move.from_head) * bytes,
                                job->width * bytes);
        }
    });
    return 0;
}

HRM_EXPORT void hrm_add(const HrmSum* job, int32_t path, int32_t num_threads) {
    const auto add = kernels_for(path).add[2 * job->total_is_bfloat16 + job->x_is_bfloat16];
    std::atomic<int64_t> next{0};
    run_parallel(std::min<int64_t>(num_threads, 1 + job->count / kWorthAThread), [&](int64_t) {
        for (int64_t first; (first = next.fetch_add(kSumsAtATime, std::memory_order_relaxed)) < job->count;)
            add(job->total, job->x, first, std::min(first + kSumsAtATime, job->count));
    });
}
