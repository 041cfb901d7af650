// Causal attention of some queries of one (prompt, KV head); included by each_path.h.
//
// Rows are (token, query head of the group), token by token. For each block of kKeys keys, keys and values are packed so that
// both products of attention are the same one: sums[row][column] += operand[row][step] * packed[step][column], with a column
// per lane; a step is one number, or a pair of bfloat16 where the processor multiplies those. Between the products the
// softmax is taken online: with a running maximum and sum per row. Sums are float32.

namespace HRM_NAMESPACE {

#include "vectors.h"

constexpr int kVectors = W == 16 ? 4 : 2;
constexpr int kStrip = kVectors * W;  // columns that are multiplied at once

// Each step is a float32 number.
struct Singles {
    using Operand = float;
    static constexpr int kNumbers = 1;  // in a step
    HRM_TARGET static void pack_key(const void* row, int64_t from, bool is_bfloat16, int64_t steps, int64_t, float* to) {
        for (int64_t i = 0; i < steps; ++i) to[i * kStrip] = read(row, from + i, is_bfloat16);
    }
    HRM_TARGET static void pack_values(const void* rows, int64_t from, bool is_bfloat16, int64_t, bool, int64_t dim, float* to,
                                       int64_t strip_stride) {
        for (int64_t i = 0; i < dim; ++i) to[i / kStrip * strip_stride + i % kStrip] = read(rows, from + i, is_bfloat16);
    }
    HRM_TARGET static void pack_query(const void* row, int64_t from, bool is_bfloat16, int64_t dim, float* to) {
        for (int64_t i = 0; i < dim; ++i) to[i] = read(row, from + i, is_bfloat16);
    }
    // Returns the weights as they will be multiplied.
    HRM_TARGET static Vec put_weights(Vec weights, float* to) {
        *reinterpret_cast<Vec*>(to) = weights;
        return weights;
    }
    HRM_TARGET static Vec add_product(Vec sum, const float* operand, const Vec& packed) { return sum + packed * *operand; }
};

#ifdef HRM_BF16_DOT
// Each step is a pair of bfloat16 numbers, the first in the lower half.
struct Pairs {
    using Operand = uint32_t;
    static constexpr int kNumbers = 2;
    HRM_TARGET static uint32_t bits(const void* row, int64_t at, bool is_bfloat16) {
        return is_bfloat16 ? static_cast<const uint16_t*>(row)[at] : bfloat16_of(static_cast<const float*>(row)[at]);
    }
    HRM_TARGET static void pack_key(const void* row, int64_t from, bool is_bfloat16, int64_t steps, int64_t dim, uint32_t* to) {
        const int64_t pairs = dim / 2;
        if (is_bfloat16) {
            const uint16_t* pair = static_cast<const uint16_t*>(row) + from;
            for (int64_t i = 0; i < pairs; ++i) std::memcpy(to + i * kStrip, pair + 2 * i, sizeof *to);
        } else {
            for (int64_t i = 0; i < pairs; ++i)
                to[i * kStrip] = bits(row, from + 2 * i, false) | bits(row, from + 2 * i + 1, false) << 16;
        }
        if (pairs < steps) to[pairs * kStrip] = bits(row, from + dim - 1, is_bfloat16);
    }
    // Two rows, the second of which may lie behind the prompt's end.
    HRM_TARGET static void pack_values(const void* rows, int64_t from, bool is_bfloat16, int64_t stride, bool second,
                                       int64_t dim, uint32_t* to, int64_t strip_stride) {
        for (int64_t first = 0; first < dim; first += kStrip, to += strip_stride) {
            const int64_t count = std::min<int64_t>(kStrip, dim - first), at = from + first;
            if (is_bfloat16 && second) {
                const uint16_t *low = static_cast<const uint16_t*>(rows) + at, *high = low + stride;
                for (int64_t i = 0; i < count; ++i) to[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
                continue;
            }
            for (int64_t i = 0; i < count; ++i)
                to[i] = bits(rows, at + i, is_bfloat16) | (second ? bits(rows, at + stride + i, is_bfloat16) << 16 : 0);
        }
    }
    HRM_TARGET static void pack_query(const void* row, int64_t from, bool is_bfloat16, int64_t dim, uint32_t* to) {
        if (is_bfloat16) return void(std::memcpy(to, static_cast<const uint16_t*>(row) + from, 2 * dim));
        for (int64_t i = 0; i < dim; ++i) {
            const uint16_t narrow = static_cast<uint16_t>(bits(row, from + i, is_bfloat16));
            std::memcpy(reinterpret_cast<char*>(to) + 2 * i, &narrow, sizeof narrow);
        }
    }
    HRM_TARGET static Vec put_weights(Vec weights, uint32_t* to) {
        const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(weights);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), narrow);
        return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
    }
    HRM_TARGET static Vec add_product(Vec sum, const uint32_t* operand, const Vec& packed) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(*operand)), (__m512bh)packed);
    }
};
#endif

// sums[row] = kept[row] * sums[row] + operand[row] . packed, for one strip of columns; without `kept` of nothing before.
template <class Format>
HRM_TARGET void multiply(const typename Format::Operand* operand, int64_t stride, const typename Format::Operand* packed,
                         int64_t steps, const float* kept, float* sums, int64_t sums_stride) {
    Vec acc[kTileRows][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            acc[r][v] = kept ? reinterpret_cast<const Vec*>(sums + r * sums_stride)[v] * kept[r] : Vec{};
    for (int64_t step = 0; step < steps; ++step, packed += kStrip) {
        Vec columns[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) columns[v] = reinterpret_cast<const Vec*>(packed)[v];
#pragma GCC unroll 6
        for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) acc[r][v] = Format::add_product(acc[r][v], operand + r * stride + step, columns[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) reinterpret_cast<Vec*>(sums + r * sums_stride)[v] = acc[r][v];
}

HRM_TARGET inline float largest_of(Vec v) {
    float largest = v[0];
#if HRM_WIDTH == 16
    largest = _mm512_reduce_max_ps(v);
#else
    for (int i = 1; i < W; ++i) largest = std::max(largest, v[i]);
#endif
    return largest;
}

// What runs along with a row through the blocks of keys.
struct alignas(4 * W) Running {
    Vec sum;
    float maximum;
};

// Scores of a row against a block -> weights; keys outside [first, end) get none. Returns what earlier sums are multiplied by.
template <class Format>
HRM_TARGET float weigh(Vec* scores, int first, int end, float scale, Running& running, typename Format::Operand* weights) {
    constexpr int kCount = kKeys / W, kOperands = W / Format::kNumbers;
    Vec lane;
    for (int i = 0; i < W; ++i) lane[i] = static_cast<float>(i);
    const bool all = first <= 0 && end >= kKeys;
    Vec largest = Vec{} + running.maximum;
    for (int i = 0; i < kCount; ++i) {
        scores[i] *= scale;
        const Vec key = lane + static_cast<float>(i * W);
        if (!all) scores[i] = (key >= static_cast<float>(first)) & (key < static_cast<float>(end)) ? scores[i] : Vec{} - INFINITY;
        largest = larger(scores[i], largest);
    }
    const float maximum = largest_of(largest);
    Vec sum = {};
    for (int i = 0; i < kCount; ++i) {
        Vec weight = exp2_of(scores[i] - maximum);
        if (!all) weight = scores[i] > -INFINITY ? weight : Vec{};
        sum += Format::put_weights(weight, weights + i * kOperands);
    }
    const float kept = exp2_of(Vec{} + (running.maximum - maximum))[0];
    running.sum = running.sum * kept + sum;
    running.maximum = maximum;
    return kept;
}

// A worker's scratch space for chunks of so many rows.
template <class Format>
struct Scratch {
    using Operand = typename Format::Operand;
    int64_t rows, steps, columns;  // rows of a chunk, steps of a key, columns of the sums: each in whole tiles
    Operand *query, *keys, *values, *weights;
    float *scores, *sums;
    Running* running;
    int64_t bytes;

    Scratch(const HrmPrefill& job, int64_t chunk_rows, char* memory)
        : rows(whole(chunk_rows, kTileRows)), steps(whole(job.head_dim, Format::kNumbers) / Format::kNumbers),
          columns(whole(job.value_dim, kStrip)) {
        int64_t used = 0;
        const auto take = [&](auto*& part, int64_t count) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
            used += whole(count * static_cast<int64_t>(sizeof *part), 128);
        };
        take(running, rows);
        take(query, rows * steps);
        take(keys, kKeys * steps);
        take(values, kKeys / Format::kNumbers * columns);
        take(weights, kTileRows * kKeys / Format::kNumbers);
        take(scores, kTileRows * kKeys);
        take(sums, rows * columns);
        bytes = used;
    }

    static int64_t room(const HrmPrefill& job, int64_t chunk_rows) { return Scratch(job, chunk_rows, nullptr).bytes; }
};

template <class Format>
class Attending {
  public:
    HRM_TARGET Attending(const HrmPrefill& job, const Chunk& chunk, char* memory)
        : job_(job), chunk_(chunk), group_(job.num_query_heads / job.num_kv_heads), rows_((chunk.last - chunk.first) * group_),
          scratch_(job, rows_, memory) {}

    HRM_TARGET void run() {
        begin();
        for (int64_t key = seen_from(chunk_.first) / kKeys * kKeys; key < chunk_.last; key += kKeys) {
            pack(key);
            for (int64_t row = 0; row < rows_; row += kTileRows) add(key, row);
        }
        for (int64_t row = 0; row < rows_; ++row) finish(row);
    }

  private:
    // Rows behind the last one are like it, so that tiles are whole.
    int64_t token(int64_t row) const { return chunk_.first + std::min(row, rows_ - 1) / group_; }
    int64_t seen_from(int64_t token) const { return std::max<int64_t>(token - job_.window + 1, 0); }
    // Row of queries and answers, counted in heads.
    int64_t place(int64_t row) const {
        return (chunk_.start + token(row)) * job_.num_query_heads + chunk_.kv_head * group_ + row % group_;
    }

    HRM_TARGET void begin() {
        std::memset(scratch_.query, 0, sizeof(*scratch_.query) * scratch_.rows * scratch_.steps);
        std::memset(scratch_.sums, 0, sizeof(float) * scratch_.rows * scratch_.columns);
        for (int64_t row = 0; row < scratch_.rows; ++row) {
            Running& running = scratch_.running[row];
            running.sum = Vec{};
            running.maximum = -1e30f;
            if (row >= rows_) continue;
            Format::pack_query(job_.query, place(row) * job_.head_dim, job_.query_is_bfloat16, job_.head_dim,
                               scratch_.query + row * scratch_.steps);
            if (job_.sinks == nullptr) continue;
            running.maximum = job_.sinks[chunk_.kv_head * group_ + row % group_] * kLog2E;
            running.sum[0] = 1.0f;
        }
    }

    // Packs keys and values of a block; what lies behind the prompt's end is zero.
    HRM_TARGET void pack(int64_t first_key) {
        const int64_t first_row = chunk_.start * job_.num_kv_heads + chunk_.kv_head * chunk_.tokens + first_key;
        const int64_t count = std::min<int64_t>(kKeys, chunk_.tokens - first_key), steps = scratch_.steps;
        if (count < kKeys) std::memset(scratch_.keys, 0, sizeof(*scratch_.keys) * kKeys * steps);
        for (int64_t key = 0; key < count; ++key)
            Format::pack_key(job_.keys, (first_row + key) * job_.head_dim, job_.cache_is_bfloat16, steps, job_.head_dim,
                             scratch_.keys + key / kStrip * kStrip * steps + key % kStrip);
        constexpr int64_t kSteps = kKeys / Format::kNumbers;
        if (count < kKeys || job_.value_dim < scratch_.columns)
            std::memset(scratch_.values, 0, sizeof(*scratch_.values) * kSteps * scratch_.columns);
        for (int64_t key = 0; key < count; key += Format::kNumbers)
            Format::pack_values(job_.values, (first_row + key) * job_.value_dim, job_.cache_is_bfloat16, job_.value_dim,
                                key + 1 < count, job_.value_dim, scratch_.values + key / Format::kNumbers * kStrip,
                                kSteps * kStrip);
    }

    // Adds a block to a tile of rows.
    HRM_TARGET void add(int64_t first_key, int64_t row) {
        if (first_key > token(row + kTileRows - 1) || first_key + kKeys <= seen_from(token(row))) return;
        constexpr int64_t kSteps = kKeys / Format::kNumbers;
        const auto* query = scratch_.query + row * scratch_.steps;
        for (int64_t strip = 0; strip < kKeys; strip += kStrip)
            multiply<Format>(query, scratch_.steps, scratch_.keys + strip * scratch_.steps, scratch_.steps, nullptr,
                             scratch_.scores + strip, kKeys);
        float kept[kTileRows];
        for (int r = 0; r < kTileRows; ++r) {
            const int64_t own = token(row + r);
            kept[r] = weigh<Format>(reinterpret_cast<Vec*>(scratch_.scores + r * kKeys),
                                    static_cast<int>(std::max<int64_t>(seen_from(own) - first_key, 0)),
                                    static_cast<int>(std::min<int64_t>(own + 1 - first_key, kKeys)), job_.scale * kLog2E,
                                    scratch_.running[row + r], scratch_.weights + r * kSteps);
        }
        float* sums = scratch_.sums + row * scratch_.columns;
        for (int64_t strip = 0; strip < scratch_.columns; strip += kStrip)
            multiply<Format>(scratch_.weights, kSteps, scratch_.values + strip * kSteps, kSteps, kept, sums + strip,
                             scratch_.columns);
    }

    HRM_TARGET void finish(int64_t row) {
        float total = 0.0f;
        for (int i = 0; i < W; ++i) total += scratch_.running[row].sum[i];
        const float inverse = 1.0f / total;
        const float* sums = scratch_.sums + row * scratch_.columns;
        const int64_t to = place(row) * job_.value_dim, in_vectors = job_.value_dim / W * W;
        for (int64_t i = 0; i < in_vectors; i += W) {
            const Vec result = *reinterpret_cast<const Vec*>(sums + i) * inverse;
            job_.query_is_bfloat16 ? store_row<true>(job_.out, to + i, result) : store_row<false>(job_.out, to + i, result);
        }
        for (int64_t i = in_vectors; i < job_.value_dim; ++i)
            write(job_.out, to + i, job_.query_is_bfloat16, sums[i] * inverse);
    }

    const HrmPrefill& job_;
    const Chunk& chunk_;
    const int64_t group_, rows_;
    const Scratch<Format> scratch_;
};

template <class Format>
HRM_TARGET void attend(const HrmPrefill& job, const Chunk& chunk, char* memory) {
    Attending<Format>(job, chunk, memory).run();
}

template <class Format>
constexpr Kernel kernel{attend<Format>, Scratch<Format>::room};

}  // namespace HRM_NAMESPACE
