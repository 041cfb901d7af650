// Products with weight matrices on the CPU, and on them a mixture's experts: for any number of rows.
//
// A plain C interface for ctypes, as attention.cpp. `products_kernel.h` holds the kernel, compiled for each instruction
// set; `products_mixture.h` groups tokens by expert; this file shares (rows, outputs) pieces out over threads. In which
// order a number is added up follows from the inputs' count alone, and a token's experts come by their number: no bit of
// a row's result depends on the other rows of the product, nor on the number of threads.

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
    float* out;                  // [tokens, hidden]
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
    int32_t adds;  // to what `out` holds
};

namespace {

constexpr int kMaxRows = 128;         // rows of x that share one reading of the weights
constexpr int kMostRows = 512;        // of all experts that are worked on at a time
constexpr int kMaxDepthBytes = 2048;  // inputs of a block, in weights: a tile's rows of x and of weights stay in L1
constexpr int kMaxOutputs = 96;       // outputs of a block; a multiple of every tile
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

const char* at(const void* from, int64_t bytes) { return static_cast<const char*>(from) + bytes; }
char* at(void* from, int64_t bytes) { return static_cast<char*>(from) + bytes; }

// Room of a packed row, as in products.py: whole units, and a cache line more so that rows do not meet in the same sets of a cache.
int64_t packed_bytes(int64_t inputs) {
    return (inputs + kWidestUnit - 1) / kWidestUnit * kWidestUnit * 4 + kLineBytes;
}

// Rows of x as a product reads them: where they lie, if they can be read there, or packed into memory, row by row.
class Rows {
  public:
    // `stride` is in elements; `dots` whether rows and weights are multiplied as they are.
    Rows(const void* x, int64_t stride, bool is_bfloat16, int64_t inputs, bool dots, void* memory)
        : x_(x), stride_(stride), is_bfloat16_(is_bfloat16), inputs_(inputs), memory_(memory), bytes_(packed_bytes(inputs)) {
        // In whole cache lines, and their distance such that rows do not meet in the same sets of a cache.
        const int64_t lines = 2 * stride / kLineBytes;
        lie_well_ = dots && reinterpret_cast<uintptr_t>(x) % kLineBytes == 0 && 2 * stride % kLineBytes == 0 && lines % 4 != 0;
    }

    bool lie_well() const { return lie_well_; }
    void pack(const Kernels& kernels, int64_t row) const {
        kernels.pack(x_, row * stride_, is_bfloat16_, inputs_, at(memory_, row * bytes_));
    }
    const void* operator[](int64_t row) const { return lie_well_ ? at(x_, 2 * row * stride_) : at(memory_, row * bytes_); }

  private:
    const void* x_;
    int64_t stride_;
    bool is_bfloat16_;
    int64_t inputs_;
    void* memory_;
    int64_t bytes_;
    bool lie_well_;
};

// Sums are [row][kMaxOutputs], the second of all experts' rows; a vector's width more, for the last row's may be added to
// as a whole vector.
struct Sums {
    alignas(kLineBytes) float first[kMaxOutputs * kMaxRows + kWidestUnit];
    alignas(kLineBytes) float second[kMaxOutputs * kMostRows + kWidestUnit];
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

// Shares items out over threads, one at a time: even workers take the first ones, odd ones the last ones in falling order.
// Calls work(item, next), with the item that the worker will probably take next.
template <class Work>
void share_out(int64_t num_items, double multiply_adds, int32_t num_threads, const Work& work) {
    const int64_t useful = std::min(num_items, 1 + static_cast<int64_t>(multiply_adds / kWorthAThread));
    const int64_t workers = std::min<int64_t>(num_threads, useful);
    std::atomic<int64_t> taken{0}, from_end[2] = {};
    run_parallel(workers, [&](int64_t worker) {
        const bool last_first = worker % 2 == 1;
        const int64_t beside = last_first ? workers / 2 : (workers + 1) / 2;
        const auto item = [&](int64_t place) { return last_first ? num_items - 1 - place : place; };
        while (taken.fetch_add(1, std::memory_order_relaxed) < num_items) {
            const int64_t place = from_end[last_first].fetch_add(1, std::memory_order_relaxed);
            work(item(place), item(std::min(place + beside, num_items - 1)));
        }
    });
}

// Outputs per piece: few enough that every thread gets several pieces.
int piece_outputs(int64_t outputs, int64_t others, int32_t num_threads) {
    const int64_t of_a_thread = outputs * others / num_threads;
    if (of_a_thread >= 8 * kMaxOutputs) return kMaxOutputs;
    return of_a_thread >= 2 * kMaxOutputs ? kMaxOutputs / 2 : kMaxOutputs / 4;
}

#include "products_mixture.h"

}  // namespace

HRM_EXPORT void hrm_linear(const HrmLinear* job, int32_t path, int32_t num_threads) {
    const bool dots = job->x_is_bfloat16 && job->weights_are_bfloat16;
    const Kernels& kernels = kernels_for(path, job->weights_are_bfloat16, dots);
    const int64_t element_bytes = job->weights_are_bfloat16 ? 2 : 4;
    const Rows all(job->x, job->x_stride, job->x_is_bfloat16, job->inputs, dots && path == kAvx512Bf16, job->memory);
    if (!all.lie_well())
        share_out(job->rows, static_cast<double>(job->rows * job->inputs), num_threads,
                  [&](int64_t row, int64_t) { all.pack(kernels, row); });
    const int64_t parts = (job->rows + kMaxRows - 1) / kMaxRows;
    const int step = piece_outputs(job->outputs, parts, num_threads);
    const int64_t pieces = (job->outputs + step - 1) / step;
    const double multiply_adds = static_cast<double>(job->rows) * static_cast<double>(job->inputs * job->outputs);
    share_out(parts * pieces, multiply_adds, num_threads, [&](int64_t item, int64_t next) {
        const int64_t first_row = item / pieces * kMaxRows, first = item % pieces * step;
        const int rows = static_cast<int>(std::min<int64_t>(kMaxRows, job->rows - first_row));
        const int outputs = static_cast<int>(std::min<int64_t>(step, job->outputs - first));
        const void* x[kMaxRows];
        for (int r = 0; r < rows; ++r) x[r] = all[first_row + r];
        Sums& mine = own_sums();
        const auto weights = [&](int64_t piece) { return at(job->weights, piece % pieces * step * job->inputs * element_bytes); };
        multiply(kernels, {weights(item), job->inputs, outputs, mine.copy, weights(next)}, x, rows, mine.second);
        for (int r = 0; r < rows; ++r)
            kernels.write_row(mine.second + r * kMaxOutputs, outputs, job->out_is_bfloat16, job->out,
                              (first_row + r) * job->outputs + first);
    });
}

HRM_EXPORT void hrm_experts(const HrmExperts* job, int32_t path, int32_t num_threads) {
    const bool dots = job->x_is_bfloat16 && job->weights_are_bfloat16;
    const Rows tokens(job->x, job->hidden, job->x_is_bfloat16, job->hidden, dots && path == kAvx512Bf16, job->memory);
    Mixture(*job, tokens, kernels_for(path, job->weights_are_bfloat16, dots), num_threads).run();
}
