// Products with weight matrices on the CPU, and on them a mixture's experts: for any number of rows.
//
// A plain C interface for ctypes, as attention.cpp. `products_kernel.h` holds the kernel, compiled for each instruction
// set; this file groups tokens by expert and shares (rows, outputs) pieces out over threads. In which order a number is
// added up follows from the inputs' count alone, and a token's experts come by their number: no bit of a row's result
// depends on the other rows of the product, nor on the number of threads.

#include <memory>

#include "common.h"

// Mirrored field by field in products.py; the version in attention.cpp changes with it.
struct HrmLinear {
    const void* x;        // [rows, inputs], rows x_stride elements apart
    const void* weights;  // [outputs, inputs]
    void* out;            // [rows, outputs]
    void* memory;         // packed_bytes(inputs) for each row
    int64_t rows;
    int64_t inputs;
    int64_t outputs;
    int64_t x_stride;
    int32_t x_is_bfloat16;
    int32_t weights_are_bfloat16;
    int32_t out_is_bfloat16;
};

struct HrmExperts {
    const void* x;               // [tokens, hidden]
    const int64_t* chosen;       // [tokens, per_token]: numbers of experts; those not given here add nothing
    const float* shares;         // as chosen
    const void* const* experts;  // each flat: gate [intermediate, hidden], up as gate, down [hidden, intermediate]
    float* out;                  // [tokens, hidden]; added to
    void* memory;                // packed_bytes(hidden) per token, packed_bytes(intermediate) per row at a time
    int64_t tokens;
    int64_t per_token;
    int64_t first_expert;  // number of experts[0]
    int64_t num_experts;
    int64_t hidden;
    int64_t intermediate;
    int64_t rows_at_a_time;
    int32_t x_is_bfloat16;
    int32_t weights_are_bfloat16;
};

namespace {

constexpr int kMaxRows = 128;         // rows of x that share one reading of the weights
constexpr int kMaxDepthBytes = 2048;  // inputs of a block, in weights: a tile's rows of x and of weights stay in L1
constexpr int kMaxOutputs = 48;       // outputs of a block; a multiple of every tile
constexpr int kRowsWorthACopy = 48;   // from so many on, a block is copied so that its rows share no sets of a cache
constexpr int kWidestUnit = 32;
constexpr int kLineBytes = 64;
constexpr double kWorthAThread = 1 << 20;  // multiply-adds that take some ten times as long as waking a thread

// A group of outputs of one matrix, and the weights that are likely to be asked for after it.
struct Job {
    const void* weights;
    int64_t inputs;
    int outputs;
    void* copy;  // room for a block
    const void* next;
};

struct Kernels {
    void (*multiply)(const Job&, const void* const*, int, float*);
    void (*pack)(const void*, int64_t, bool, int64_t, void*);
    void (*activate)(float*, const float*, int64_t, int, void* const*, int);
    void (*add_share)(const float*, float, int, float*);
    void (*write_row)(const float*, int, bool, void*, int64_t);
};

#if defined(__x86_64__)
alignas(32) constexpr uint32_t kOdd[8] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                          0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
// Holds a value in a register, and the compiler to the order in which such values are written down.
#define HRM_IN_TURN(value) asm volatile("" : "+v"(value))
#else
#define HRM_IN_TURN(value)
#endif

#define HRM_KERNEL "products_kernel.h"
#include "each_path.h"

// `dots`: whether both operands are bfloat16.
const Kernels& kernels_for(int path, bool narrow, bool dots) {
#if defined(__x86_64__)
    if (path == kAvx512Bf16 && dots) return avx512_bf16::kernels<avx512_bf16::Dot>;
    if (path == kAvx512Bf16 || path == kAvx512)
        return narrow ? avx512::kernels<avx512::Widened<avx512::Bfloat16>> : avx512::kernels<avx512::Widened<avx512::Float32>>;
    if (path == kAvx2)
        return narrow ? avx2::kernels<avx2::Widened<avx2::Bfloat16>> : avx2::kernels<avx2::Widened<avx2::Float32>>;
#endif
    (void)path, (void)dots;
    return narrow ? portable::kernels<portable::Widened<portable::Bfloat16>>
                  : portable::kernels<portable::Widened<portable::Float32>>;
}

// Room of a packed row, as in products.py: whole units, and a cache line more so that rows do not meet in the same sets of a cache.
int64_t packed_bytes(int64_t inputs) {
    return (inputs + kWidestUnit - 1) / kWidestUnit * kWidestUnit * 4 + kLineBytes;
}

// Sums are [row][kMaxOutputs]; a vector's width more, for the last row's may be added to as a whole vector.
struct Sums {
    alignas(kLineBytes) float first[kMaxOutputs * kMaxRows + kWidestUnit];
    alignas(kLineBytes) float second[kMaxOutputs * kMaxRows + kWidestUnit];
    alignas(kLineBytes) char copy[kMaxOutputs * kMaxDepthBytes];
};

// A thread's own, kept as long as the thread: fresh memory would have to be mapped at each call.
Sums& own_sums() {
    thread_local const std::unique_ptr<Sums> sums = std::make_unique<Sums>();
    return *sums;
}

// Writes the products of a group of outputs to sums [row][kMaxOutputs].
void multiply(const Kernels& kernels, const Job& job, const void* const* x, int rows, float* sums) {
    std::memset(sums, 0, sizeof(float) * kMaxOutputs * rows);
    kernels.multiply(job, x, rows, sums);
}

// Shares items 0 ... num_items - 1 out over threads, one at a time.
template <class Work>
void share_out(int64_t num_items, double multiply_adds, int32_t num_threads, const Work& work) {
    std::atomic<int64_t> next{0};
    const int64_t useful = std::min(num_items, 1 + static_cast<int64_t>(multiply_adds / kWorthAThread));
    run_parallel(std::min<int64_t>(num_threads, useful), [&](int64_t) {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) work(item);
    });
}

// Outputs per piece: few enough that every thread gets several pieces.
int piece_outputs(int64_t outputs, int64_t others, int32_t num_threads) {
    return outputs * others >= int64_t{4} * kMaxOutputs * num_threads ? kMaxOutputs : kMaxOutputs / 2;
}

const char* at(const void* from, int64_t bytes) { return static_cast<const char*>(from) + bytes; }
char* at(void* from, int64_t bytes) { return static_cast<char*>(from) + bytes; }

// Rows of one expert that are worked on at once: tokens and shares [first, first + count), results in rows of `memory`.
struct Segment {
    int64_t expert;
    int64_t first;
    int count;
};

class Mixture {
  public:
    Mixture(const HrmExperts& job, const Kernels& kernels, int32_t num_threads)
        : job_(job), kernels_(kernels), num_threads_(num_threads), element_bytes_(job.weights_are_bfloat16 ? 2 : 4),
          x_bytes_(packed_bytes(job.hidden)), row_bytes_(packed_bytes(job.intermediate)),
          rows_(at(job.memory, job.tokens * x_bytes_)) {
        sort_by_expert();
    }

    void run() {
        const std::vector<int64_t> wanted = wanted_tokens();
        const int64_t count = static_cast<int64_t>(wanted.size());
        share_out(count, static_cast<double>(count * job_.hidden), num_threads_, [&](int64_t i) {
            const int64_t token = wanted[i];
            kernels_.pack(job_.x, token * job_.hidden, job_.x_is_bfloat16, job_.hidden, at(job_.memory, token * x_bytes_));
        });
        // As many whole experts as the rows hold; one with more rows than that is taken in parts.
        for (int64_t expert = 0, first = 0; expert < job_.num_experts;) {
            segments_.clear();
            first_row_ = starts_[expert] + first;
            for (int64_t room = job_.rows_at_a_time; expert < job_.num_experts; ++expert, first = 0) {
                const int64_t left = starts_[expert + 1] - starts_[expert] - first;
                if (left > room && !segments_.empty()) break;
                const int64_t taken = std::min(left, room);
                for (int64_t row = 0; row < taken; row += kMaxRows)
                    segments_.push_back({expert, starts_[expert] + first + row,
                                         static_cast<int>(std::min<int64_t>(kMaxRows, taken - row))});
                room -= taken;
                first += taken;
                if (taken < left) break;
            }
            if (!segments_.empty()) run_segments();
        }
    }

  private:
    void sort_by_expert() {
        starts_.assign(job_.num_experts + 1, 0);
        const int64_t chosen = job_.tokens * job_.per_token;
        for (int64_t i = 0; i < chosen; ++i)
            if (has(job_.chosen[i])) ++starts_[job_.chosen[i] - job_.first_expert + 1];
        for (int64_t expert = 0; expert < job_.num_experts; ++expert) starts_[expert + 1] += starts_[expert];
        tokens_.resize(starts_.back());
        shares_.resize(starts_.back());
        std::vector<int64_t> next(starts_);
        for (int64_t i = 0; i < chosen; ++i) {
            if (!has(job_.chosen[i])) continue;
            const int64_t row = next[job_.chosen[i] - job_.first_expert]++;
            tokens_[row] = i / job_.per_token;
            shares_[row] = job_.shares[i];
        }
    }

    // Tokens that go to an expert, each once: all of them where every expert of a layer is here, a few where one is.
    std::vector<int64_t> wanted_tokens() const {
        std::vector<char> goes(job_.tokens);
        for (const int64_t token : tokens_) goes[token] = 1;
        std::vector<int64_t> wanted;
        wanted.reserve(std::min<size_t>(tokens_.size(), goes.size()));
        for (int64_t token = 0; token < job_.tokens; ++token)
            if (goes[token]) wanted.push_back(token);
        return wanted;
    }

    bool has(int64_t expert) const { return expert >= job_.first_expert && expert < job_.first_expert + job_.num_experts; }

    char* row(int64_t index) const { return at(rows_, (index - first_row_) * row_bytes_); }

    void run_segments() {
        double rows = 0;
        for (const Segment& segment : segments_) rows += segment.count;
        const double multiply_adds = rows * static_cast<double>(job_.hidden * job_.intermediate);
        const int64_t num_segments = static_cast<int64_t>(segments_.size());
        const int step = piece_outputs(job_.intermediate, num_segments, num_threads_);
        const int64_t pieces = (job_.intermediate + step - 1) / step;
        share_out(num_segments * pieces, 2 * multiply_adds, num_threads_,
                  [&](int64_t item) { up(segments_[item / pieces], item % pieces * step, step); });
        const int down_step = piece_outputs(job_.hidden, 1, num_threads_);
        share_out((job_.hidden + down_step - 1) / down_step, multiply_adds, num_threads_,
                  [&](int64_t item) { down(item * down_step, down_step); });
    }

    // silu(gate x) * up x for some outputs.
    void up(const Segment& segment, int64_t first, int step) const {
        const void* x[kMaxRows];
        void* results[kMaxRows];
        for (int r = 0; r < segment.count; ++r) {
            x[r] = at(job_.memory, tokens_[segment.first + r] * x_bytes_);
            results[r] = row(segment.first + r);
        }
        const int outputs = static_cast<int>(std::min<int64_t>(step, job_.intermediate - first));
        const int64_t row_bytes = job_.hidden * element_bytes_;
        const char* gate = at(job_.experts[segment.expert], first * row_bytes);
        const char* up = gate + job_.intermediate * row_bytes;
        Sums& mine = own_sums();
        multiply(kernels_, {gate, job_.hidden, outputs, mine.copy, up}, x, segment.count, mine.first);
        const char* next = gate + int64_t{step} * num_threads_ * row_bytes;
        multiply(kernels_, {up, job_.hidden, outputs, mine.copy, next}, x, segment.count, mine.second);
        kernels_.activate(mine.first, mine.second, first, outputs, results, segment.count);
    }

    // Some outputs of all experts' last product, times the tokens' shares, into the sum.
    void down(int64_t first, int step) const {
        const int outputs = static_cast<int>(std::min<int64_t>(step, job_.hidden - first));
        Sums& mine = own_sums();
        const auto weights_of = [&](const Segment& segment, int64_t output) {
            return at(job_.experts[segment.expert], (2 * job_.hidden + output) * job_.intermediate * element_bytes_);
        };
        for (const Segment& segment : segments_) {
            const void* x[kMaxRows];
            for (int r = 0; r < segment.count; ++r) x[r] = row(segment.first + r);
            const bool last = &segment == &segments_.back();
            const char* next = last ? weights_of(segments_.front(), first + int64_t{step} * num_threads_)
                                    : weights_of(*(&segment + 1), first);
            const Job job{weights_of(segment, first), job_.intermediate, outputs, mine.copy, next};
            multiply(kernels_, job, x, segment.count, mine.second);
            for (int r = 0; r < segment.count; ++r)
                kernels_.add_share(mine.second + r * kMaxOutputs, shares_[segment.first + r], outputs,
                                   job_.out + tokens_[segment.first + r] * job_.hidden + first);
        }
    }

    const HrmExperts& job_;
    const Kernels& kernels_;
    const int32_t num_threads_;
    const int64_t element_bytes_, x_bytes_, row_bytes_;
    char* const rows_;
    int64_t first_row_ = 0;
    std::vector<int64_t> starts_, tokens_;
    std::vector<float> shares_;
    std::vector<Segment> segments_;
};

}  // namespace

HRM_EXPORT void hrm_linear(const HrmLinear* job, int32_t path, int32_t num_threads) {
    const bool dots = job->x_is_bfloat16 && job->weights_are_bfloat16;
    const Kernels& kernels = kernels_for(path, job->weights_are_bfloat16, dots);
    const int64_t row_bytes = packed_bytes(job->inputs), element_bytes = job->weights_are_bfloat16 ? 2 : 4;
    share_out(job->rows, static_cast<double>(job->rows * job->inputs), num_threads, [&](int64_t row) {
        kernels.pack(job->x, row * job->x_stride, job->x_is_bfloat16, job->inputs, at(job->memory, row * row_bytes));
    });
    const int64_t parts = (job->rows + kMaxRows - 1) / kMaxRows;
    const int step = piece_outputs(job->outputs, parts, num_threads);
    const int64_t pieces = (job->outputs + step - 1) / step;
    const double multiply_adds = static_cast<double>(job->rows) * static_cast<double>(job->inputs * job->outputs);
    share_out(parts * pieces, multiply_adds, num_threads, [&](int64_t item) {
        const int64_t first_row = item / pieces * kMaxRows, first = item % pieces * step;
        const int rows = static_cast<int>(std::min<int64_t>(kMaxRows, job->rows - first_row));
        const int outputs = static_cast<int>(std::min<int64_t>(step, job->outputs - first));
        const void* x[kMaxRows];
        for (int r = 0; r < rows; ++r) x[r] = at(job->memory, (first_row + r) * row_bytes);
        Sums& mine = own_sums();
        const char* weights = at(job->weights, first * job->inputs * element_bytes);
        const char* next = weights + int64_t{step} * num_threads * job->inputs * element_bytes;
        multiply(kernels, {weights, job->inputs, outputs, mine.copy, next}, x, rows, mine.second);
        for (int r = 0; r < rows; ++r)
            kernels.write_row(mine.second + r * kMaxOutputs, outputs, job->out_is_bfloat16, job->out,
                              (first_row + r) * job->outputs + first);
    });
}

HRM_EXPORT void hrm_experts(const HrmExperts* job, int32_t path, int32_t num_threads) {
    const bool dots = job->x_is_bfloat16 && job->weights_are_bfloat16;
    Mixture(*job, kernels_for(path, job->weights_are_bfloat16, dots), num_threads).run();
}
