// Products of bfloat16 rows with bfloat16 weights on AVX512-BF16 dot products. Included by products_kernel.h.
//
// A tile is two rows of x by eight of weights: sixteen sums, which one transposing addition turns into a vector. Per unit of
// inputs it loads ten vectors for sixteen products, so that products set its pace while weights come from L1 and x from L2.
// Inputs that fill no whole unit are masked.

constexpr int kTileWeights = 8;
constexpr int kBytesOfL1 = 48 * 1024;
constexpr int kMostRowsInL2 = 32;  // whole rows of x that stay in L2 beside the weights that stream through

// A tile of weights, rows `stride` apart, from `at` on; and the two tiles after it, rows `next_stride` apart, to be requested.
struct DotBlock {
    const uint16_t *weights, *next, *after_next;
    int64_t stride, next_stride, at;
    int elements;
};

// Row n of eight: two pointers and two distances address them all.
#define HRM_ROW_OF(low, high, n, stride, thrice) (((n) < 4 ? low : high) + ((n) % 4 == 3 ? thrice : (n) % 4 * stride))

template <int kRows, bool kPartial>
HRM_TARGET inline void add_dots(const uint16_t* low, const uint16_t* high, int64_t stride, const uint16_t* const* x,
                                __mmask32 valid, Vec* sums) {
    const int64_t thrice = 3 * stride;
    __m512bh rows[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r)
        rows[r] = (__m512bh)(kPartial ? _mm512_maskz_loadu_epi16(valid, x[r]) : _mm512_loadu_si512(x[r]));
#pragma GCC unroll 8
    for (int n = 0; n < kTileWeights; ++n) {
        const uint16_t* row = HRM_ROW_OF(low, high, n, stride, thrice);
        const __m512bh w = (__m512bh)(kPartial ? _mm512_maskz_loadu_epi16(valid, row) : _mm512_loadu_si512(row));
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r)
            sums[r * kTileWeights + n] = _mm512_dpbf16_ps(sums[r * kTileWeights + n], rows[r], w);
    }
}

// sums[row][weight] += x . weights for kRows (1 or 2) rows of x; the same inputs of kAhead rows of a tile to come, from `next`
// on, are requested meanwhile.
template <int kRows, int kAhead>
HRM_TARGET inline void add_dot_tile(const DotBlock& block, const uint16_t* const* x, const uint16_t* next, float* sums) {
    const int64_t stride = block.stride, next_stride = block.next_stride, next_thrice = 3 * next_stride;
    const uint16_t *low = block.weights, *high = low + 4 * stride;
    const uint16_t* next_high = next + 4 * next_stride;
    const uint16_t* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = x[r] + block.at;
    Vec acc[2 * kTileWeights];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kTileWeights; ++i) acc[i] = Vec{};
    int left = block.elements;
    for (; left >= kUnit; left -= kUnit) {
#pragma GCC unroll 8
        for (int n = 0; n < kAhead; ++n) __builtin_prefetch(HRM_ROW_OF(next, next_high, n, next_stride, next_thrice));
        add_dots<kRows, false>(low, high, stride, rows, 0, acc);
        low += kUnit, high += kUnit, next += kUnit, next_high += kUnit;
        for (int r = 0; r < kRows; ++r) rows[r] += kUnit;
    }
    if (left > 0) add_dots<kRows, true>(low, high, stride, rows, (__mmask32{1} << left) - 1, acc);
    const Vec added = sum_each(acc);
    _mm256_storeu_ps(sums, _mm256_loadu_ps(sums) + _mm512_castps512_ps256(added));
    if (kRows == 2)
        _mm256_storeu_ps(sums + kMaxOutputs, _mm256_loadu_ps(sums + kMaxOutputs) + _mm512_extractf32x8_ps(added, 1));
}
#undef HRM_ROW_OF

// How many parts of a tile, of `parts`, requests run ahead by, into the tile after the next one: half a tile's time before it
// is wanted, if L1 holds the rows of x and two and a half tiles. Of 8 rows or fewer all of the next tile comes early.
inline int parts_further(int num_rows, int elements, int parts) {
    const int64_t bytes = int64_t{num_rows + 5 * kTileWeights / 2} * elements * sizeof(uint16_t);
    return num_rows > 8 && bytes <= kBytesOfL1 ? std::max(0, parts + 1 - num_rows / 4) : 0;
}

// All rows of x with one tile of weights: with each pair of rows another part of a tile to come is requested. Of few rows the
// first half requests all of it, for the last part would come too late: the next tile's first pair wants every row of it.
template <int kAhead>
HRM_TARGET void add_dot_rows(const DotBlock& block, const uint16_t* const* x, int num_rows, float* sums) {
    constexpr int kParts = kTileWeights / kAhead;
    const int further = parts_further(num_rows, block.elements, kParts);
    const auto next = [&](int row) {
        const int part = row / 2 + further;
        const uint16_t* tile = further > 0 && part >= kParts ? block.after_next : block.next;
        return tile + part % kParts * kAhead * block.next_stride;
    };
    int r = 0;
    for (; r + 2 <= num_rows; r += 2) add_dot_tile<2, kAhead>(block, x + r, next(r), sums + r * kMaxOutputs);
    if (r < num_rows) add_dot_tile<1, kAhead>(block, x + r, next(r), sums + r * kMaxOutputs);
}

HRM_TARGET inline void add_dot_block(const DotBlock& block, const uint16_t* const* x, int num_rows, float* sums) {
    if (num_rows <= 4) return add_dot_rows<8>(block, x, num_rows, sums);
    if (num_rows <= 8) return add_dot_rows<4>(block, x, num_rows, sums);
    if (num_rows <= 16) return add_dot_rows<2>(block, x, num_rows, sums);
    add_dot_rows<1>(block, x, num_rows, sums);
}

// Both operands bfloat16, sums float32.
struct Dot {
    using Operand = uint16_t;
    static int slot(int element) { return element; }
    static Operand operand(float value) { return bfloat16_of(value); }
    HRM_TARGET static void put(const float* values, int count, int64_t first, uint16_t* row) {
        for (int n = 0; n < count; n += W) {
            const __mmask16 valid = count - n < W ? (__mmask16{1} << (count - n)) - 1 : ~__mmask16{0};
            const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(values + n));
            _mm256_mask_storeu_epi16(row + first + n, valid, (__m256i)narrow);
        }
    }
};

// Goes through the tiles of a group of outputs and through the depths of their inputs. Few rows of x stay in L2 whole, and a
// tile's weights are read as they lie; of many only one depth does, and all tiles are taken at it.
struct DotWalk {
    int64_t tiles, depths;
    bool tile_by_tile;

    int64_t tile(int64_t step) const { return tile_by_tile ? step / depths : step % tiles; }
    int64_t depth(int64_t step) const { return tile_by_tile ? step % depths : step / tiles; }
};

template <>
HRM_TARGET void multiply<Dot>(const Job& job, const void* const* packed, int num_rows, float* sums) {
    const auto* x = reinterpret_cast<const uint16_t* const*>(packed);
    const int64_t inputs = job.inputs, depth = depth_of(inputs, sizeof *x[0]);
    const DotWalk walk{(job.outputs + kTileWeights - 1) / kTileWeights, (inputs + depth - 1) / depth, num_rows <= kMostRowsInL2};
    const int64_t steps = walk.tiles * walk.depths;
    const auto weights_of = [&](int64_t step) {
        const auto* from = static_cast<const uint16_t*>(step < steps ? job.weights : job.next);
        const int64_t there = step % steps;
        return from + walk.tile(there) * kTileWeights * inputs + walk.depth(there) * depth;
    };
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t first = walk.tile(step) * kTileWeights, at = walk.depth(step) * depth;
        DotBlock block{weights_of(step), weights_of(step + 1), weights_of(step + 2), inputs, inputs, at,
                       static_cast<int>(std::min(depth, inputs - at))};
        const int valid = static_cast<int>(std::min<int64_t>(kTileWeights, job.outputs - first));
        if (valid < kTileWeights || (num_rows >= kRowsWorthACopy && walk.depths > 1)) {
            auto* copy = static_cast<uint16_t*>(job.copy);
            for (int n = 0; n < kTileWeights; ++n)
                std::memcpy(copy + n * block.elements, block.weights + std::min(n, valid - 1) * inputs, block.elements * sizeof *copy);
            block.weights = copy;
            block.stride = block.elements;
        }
        add_dot_block(block, x, num_rows, sums + first);
    }
}

// Rows that are bfloat16 are packed as they are.
template <>
HRM_TARGET void pack<Dot>(const void* x, int64_t first, bool is_bfloat16, int64_t inputs, void* to) {
    if (is_bfloat16) return void(std::memcpy(to, static_cast<const uint16_t*>(x) + first, inputs * sizeof(uint16_t)));
    auto* packed = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < inputs; ++i) packed[i] = bfloat16_of(static_cast<const float*>(x)[first + i]);
}
