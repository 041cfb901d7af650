// Products of rows x with the rows of a weight matrix; included by each_path.h.
//
// Weights lie as published, [outputs, inputs], and are read from memory once per call for up to kMaxRows rows: a block of
// kMaxOutputs rows by at most kMaxDepthBytes of inputs at a time. A tile of sums, rows of x by rows of weights, fills the
// registers; bfloat16 are widened there as they are used, and the rows of the next tile are requested meanwhile. Each sum
// is a vector whose lanes are added up at the end of a block: along the inputs weights are contiguous as they lie, so
// no layout but the published one is needed. Every tile adds in the same order, so it does not matter which one a row is in.
// Where the processor multiplies pairs of bfloat16 itself, products_dot.h does all that without widening.

namespace HRM_NAMESPACE {

#include "vectors.h"

// Rows of weights in a tile: with the operands, their sums fill 16 registers, or 32 of the wide vectors.
constexpr int weights_in_tile(int rows) {
    if (W == 16) return rows <= 2 ? 8 : 6;
    return rows == 1 ? 8 : rows == 2 ? 4 : 3;
}

// Half of a unit of weights, as float32. The other half is read from memory again: registers are for the sums.
HRM_TARGET inline Vec half(const float* at, bool second) { return *reinterpret_cast<const LooseVec*>(second ? at + W : at); }
HRM_TARGET inline Vec half(const uint16_t* at, bool second) {
    const LooseBits& bits = *reinterpret_cast<const LooseBits*>(at);
#if HRM_WIDTH == 8
    // Written out, for the compiler would take more registers, keep the mask or both halves, and put sums into memory.
    Vec wide;
    if (second)
        asm volatile("vmovdqu %1, %0\n\tvpand %2, %0, %0" : "=&x"(wide) : "m"(bits), "m"(kOdd));
    else
        asm volatile("vmovdqu %1, %0\n\tvpslld $16, %0, %0" : "=&x"(wide) : "m"(bits));
    return wide;
#else
    return second ? (Vec)((Bits)bits & 0xffff0000u) : (Vec)((Bits)bits << 16);
#endif
}

#if HRM_WIDTH == 8
#include "products_avx2.h"

// As sum_each of four vectors.
HRM_TARGET inline __m128 sum_four(const Vec* v) {
#define HRM_PAIR(a, b) (_mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD))
    const Vec both = HRM_PAIR(HRM_PAIR(v[0], v[1]), HRM_PAIR(v[2], v[3]));
#undef HRM_PAIR
    return _mm256_castps256_ps128(both) + _mm256_extractf128_ps(both, 1);
}
#endif

// sums[weight][row] = weights . x in float32, over `elements` inputs (a multiple of kUnit); `next` is requested meanwhile.
template <class Element, int kRows>
struct WideTile {
    static constexpr int kWeights = weights_in_tile(kRows);

    HRM_TARGET static void multiply(const Element* const* weights, const Element* const* next, const float* const* x,
                                    int elements, Vec* sums) {
#if HRM_WIDTH == 8
        if (kRows == 4) return multiply_four_by_three(weights, next, x, elements, sums);
#endif
#pragma GCC unroll 32
        for (int i = 0; i < kWeights * kRows; ++i) sums[i] = Vec{};
        for (int64_t at = 0; at < elements; at += kUnit) {
#pragma GCC unroll 8
            for (int n = 0; n < kWeights; ++n) __builtin_prefetch(next[n] + at);
            add_half<false>(weights, x, at, sums);
            add_half<true>(weights, x, at, sums);
        }
    }

    // Whichever is fewer, rows of x or of weights, is kept in registers beside the sums.
    template <bool kSecond>
    HRM_TARGET static inline void add_half(const Element* const* weights, const float* const* x, int64_t at, Vec* sums) {
        if (kRows < 4) {
            Vec rows[kRows];
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) rows[r] = *reinterpret_cast<const Vec*>(x[r] + at + kSecond * W);
#pragma GCC unroll 8
            for (int n = 0; n < kWeights; ++n) {
                const Vec w = half(weights[n] + at, kSecond);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) sums[n * kRows + r] += w * rows[r];
            }
            return;
        }
        Vec w[kWeights];
#pragma GCC unroll 8
        for (int n = 0; n < kWeights; ++n) w[n] = half(weights[n] + at, kSecond);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            Vec row = *reinterpret_cast<const Vec*>(x[r] + at + kSecond * W);
            HRM_IN_TURN(row);
#pragma GCC unroll 8
            for (int n = 0; n < kWeights; ++n) sums[n * kRows + r] += w[n] * row;
        }
    }
};

// What the rows of x, and the formats that follow from it, are for weights of a format.
template <class Weights>
struct Widened {
    using Element = typename Weights::Element;
    using Operand = float;
    static int slot(int element) { return Weights::slot(element); }
    static Operand operand(float value) { return value; }
    // Puts `count` numbers from number `first` on into a packed row.
    HRM_TARGET static void put(const float* values, int count, int64_t first, float* row) {
        for (int64_t at = first; at < first + count; ++at)
            row[at / kUnit * kUnit + slot(static_cast<int>(at % kUnit))] = values[at - first];
    }
    template <int kRows>
    using Tile = WideTile<Element, kRows>;
};

// A block of weights: `count` rows `stride` apart, for `elements` inputs from `at` on. `next` is what the last tile
// requests, of rows `next_stride` apart: some of the block that comes after.
template <class Element>
struct Block {
    const Element *weights, *next;
    int64_t stride, next_stride;
    int count;
    int64_t at;
    int elements;
};

// sums[row][weight] += products, for kRows rows.
template <class Tile, int kRows, class Element, class Operand>
HRM_TARGET void add_rows(const Block<Element>& block, const Operand* const* x, float* sums) {
    constexpr int kWeights = Tile::kWeights, kVectors = (kWeights * kRows + W - 1) / W * W;
    const Operand* own[kRows];
    for (int r = 0; r < kRows; ++r) own[r] = x[r] + block.at;
    for (int n = 0; n < block.count; n += kWeights) {
        const Element *weights[kWeights], *next[kWeights];
        const int valid = std::min(kWeights, block.count - n);
        for (int t = 0; t < kWeights; ++t) {
            weights[t] = block.weights + (n + std::min(t, valid - 1)) * block.stride;
            const bool last = n + kWeights >= block.count;
            next[t] = last ? block.next + t * block.next_stride : weights[t] + kWeights * block.stride;
        }
        Vec acc[kVectors];
#pragma GCC unroll 8
        for (int i = kWeights * kRows; i < kVectors; ++i) acc[i] = Vec{};
        Tile::multiply(weights, next, own, block.elements, acc);
#if HRM_WIDTH == 8
        if (kRows == 4) {
            __m128 of[4] = {};
            for (int t = 0; t < valid; ++t) of[t] = sum_four(acc + t * kRows);
            _MM_TRANSPOSE4_PS(of[0], of[1], of[2], of[3]);
            for (int r = 0; r < kRows; ++r) {
                float* to = sums + r * kMaxOutputs + n;
                _mm_storeu_ps(to, _mm_loadu_ps(to) + of[r]);
            }
            continue;
        }
#endif
        Vec products[kVectors / W];
#pragma GCC unroll 4
        for (int i = 0; i < kVectors / W; ++i) products[i] = sum_each(acc + i * W);
        const float* product = reinterpret_cast<const float*>(products);
        for (int r = 0; r < kRows; ++r)
            for (int t = 0; t < valid; ++t) sums[r * kMaxOutputs + n + t] += product[t * kRows + r];
    }
}

// All rows, four at a time, so that their part of x stays in L1. What is left of them is split evenly.
template <class Format>
HRM_TARGET void add_block(Block<typename Format::Element> block, const typename Format::Operand* const* x, int num_rows,
                          float* sums) {
    int m = 0;
    for (; m + 4 <= num_rows && num_rows - m != 5; m += 4) {
        add_rows<typename Format::template Tile<4>, 4>(block, x + m, sums + m * kMaxOutputs);
        block.next += Format::template Tile<4>::kWeights * block.next_stride;
    }
    if (num_rows - m == 5) {
        add_rows<typename Format::template Tile<3>, 3>(block, x + m, sums + m * kMaxOutputs);
        m += 3;
    }
    switch (num_rows - m) {
        case 1: return add_rows<typename Format::template Tile<1>, 1>(block, x + m, sums + m * kMaxOutputs);
        case 2: return add_rows<typename Format::template Tile<2>, 2>(block, x + m, sums + m * kMaxOutputs);
        case 3: return add_rows<typename Format::template Tile<3>, 3>(block, x + m, sums + m * kMaxOutputs);
    }
}

// Inputs of a block: whole units, so that blocks are alike; which they are follows from the number of inputs alone.
inline int64_t depth_of(int64_t inputs, int64_t element_bytes) {
    const int64_t most = kMaxDepthBytes / element_bytes, blocks = std::max<int64_t>((inputs + most - 1) / most, 1);
    return ((inputs + blocks - 1) / blocks + kUnit - 1) / kUnit * kUnit;
}

// Adds a group of outputs to sums[row][output], for packed rows x. Inputs that fill no whole unit are added one by one.
template <class Format>
HRM_TARGET void multiply(const Job& job, const void* const* packed, int num_rows, float* sums) {
    const auto* weights = static_cast<const typename Format::Element*>(job.weights);
    const auto* x = reinterpret_cast<const typename Format::Operand* const*>(packed);
    const int64_t whole = job.inputs / kUnit * kUnit, depth = depth_of(whole, sizeof *weights);
    for (int64_t at = 0; at < whole; at += depth) {
        const auto* next = at + depth < whole ? weights + at + depth : static_cast<const typename Format::Element*>(job.next);
        const int elements = static_cast<int>(std::min(depth, whole - at));
        Block<typename Format::Element> block{weights + at, next, job.inputs, job.inputs, job.outputs, at, elements};
        if (num_rows >= kRowsWorthACopy && depth < whole) {
            auto* copy = static_cast<typename Format::Element*>(job.copy);
            for (int n = 0; n < job.outputs; ++n)
                std::memcpy(copy + n * elements, block.weights + n * block.stride, elements * sizeof *copy);
            block.weights = copy;
            block.stride = elements;
        }
        add_block<Format>(block, x, num_rows, sums);
    }
    for (int64_t at = whole; at < job.inputs; ++at)
        for (int r = 0; r < num_rows; ++r)
            for (int n = 0; n < job.outputs; ++n)
                sums[r * kMaxOutputs + n] += read(weights, n * job.inputs + at, sizeof *weights == 2) *
                                             x[r][whole + Format::slot(static_cast<int>(at - whole))];
}

// Packs a row of x for `multiply`: elements in the order of the widened weights.
template <class Format>
HRM_TARGET void pack(const void* x, int64_t first, bool is_bfloat16, int64_t inputs, void* to) {
    auto* packed = static_cast<typename Format::Operand*>(to);
    for (int64_t unit = 0; unit < inputs; unit += kUnit)
        for (int i = 0; i < std::min<int64_t>(kUnit, inputs - unit); ++i)
            packed[unit + Format::slot(i)] = Format::operand(read(x, first + unit + i, is_bfloat16));
}

#ifdef HRM_BF16_DOT
#include "products_dot.h"
#endif

// Writes silu(gate) * up into the packed rows of the next product: packed[row][first_output ...].
template <class Format>
HRM_TARGET void activate(float* gate, const float* up, int64_t first_output, int outputs, void* const* packed, int num_rows) {
    for (int r = 0; r < num_rows; ++r) {
        float* values = gate + r * kMaxOutputs;
        for (int n = 0; n < outputs; n += W) {
            Vec& g = *reinterpret_cast<Vec*>(values + n);
            const Vec x = g, small = exp2_of((x > 0.0f ? -x : x) * 1.44269504f);
            g = x * (x > 0.0f ? Vec{} + 1.0f : small) / (small + 1.0f) * *reinterpret_cast<const Vec*>(up + r * kMaxOutputs + n);
        }
        Format::put(values, outputs, first_output, static_cast<typename Format::Operand*>(packed[r]));
    }
}

// Adds share * sums to a row.
HRM_TARGET inline void add_share(const float* sums, float share, int outputs, float* out) {
    for (int n = 0; n < outputs; ++n) out[n] += share * sums[n];
}

HRM_TARGET inline void write_row(const float* sums, int outputs, bool to_bfloat16, void* out, int64_t at) {
    if (!to_bfloat16) return void(std::memcpy(static_cast<float*>(out) + at, sums, outputs * sizeof *sums));
    int n = 0;
    for (; n + W <= outputs; n += W) store_row<true>(out, at + n, *reinterpret_cast<const LooseVec*>(sums + n));
    for (; n < outputs; ++n) static_cast<uint16_t*>(out)[at + n] = bfloat16_of(sums[n]);
}

template <class Format>
constexpr Kernels kernels{multiply<Format>, pack<Format>, activate<Format>, add_share, write_row};

}  // namespace HRM_NAMESPACE
