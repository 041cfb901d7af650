// Decode attention of one (sequence, KV head) for all the query heads that share it; included by each_path.h.
//
// K and V stream from memory once: a block of tokens (a few KiB, so that it stays in L1) is scored against every query
// head of the group, a few heads at a time in registers, then its V rows are added under the new weights, with a running
// maximum and sum per head (online softmax). Arithmetic is float32.
//
// Cached rows are read in the units of vectors.h; queries and sums are kept in the order of the widened elements.

namespace HRM_NAMESPACE {

#include "vectors.h"

// Scores and weights lie as [token][lane]: `lanes` is the number of heads at once rounded up to a power of two, so that a
// vector holds whole tokens.
constexpr int lanes(int heads) { return heads == 3 ? 4 : heads; }

// Writes one unit of widened elements in the element's own format and order: the inverse of the cache's `load`.
HRM_TARGET inline void store_unit(float* to, Vec first, Vec second) {
    *reinterpret_cast<LooseVec*>(to) = first;
    *reinterpret_cast<LooseVec*>(to + W) = second;
}

HRM_TARGET inline void store_unit(uint16_t* to, Vec even, Vec odd) {
    *reinterpret_cast<LooseBits*>(to) = rounded_to_bfloat16(even) >> 16 | rounded_to_bfloat16(odd);
}

// The kernel on float32 multiply-adds, for either cache.
template <class Cache>
struct Widening {
    using Element = typename Cache::Element;
    using Query = float;
    static constexpr bool kRoundsWeights = false;
    static Query query_of(float value) { return value; }
    static int query_slot(int element) { return Cache::slot(element); }
    static int sum_slot(int element) { return Cache::slot(element); }

    // A query in the cache's format is widened as its rows are, and an answer narrowed back.
    HRM_TARGET static void load_unit(const Element* from, float* query) {
        Vec* to = reinterpret_cast<Vec*>(query);
        Cache::load(from, to[0], to[1]);
    }
    HRM_TARGET static void write_unit(Element* to, const float* sums, float scale) {
        const Vec* from = reinterpret_cast<const Vec*>(sums);
        store_unit(to, from[0] * scale, from[1] * scale);
    }

    template <bool kPartial>
    HRM_TARGET static void load(const Element* from, int valid, Vec& first, Vec& second) {
        if (kPartial) {
            Element padded[kUnit] = {};
            std::memcpy(padded, from, valid * sizeof(Element));
            Cache::load(padded, first, second);
        } else {
            Cache::load(from, first, second);
        }
    }

    // Adds one unit of q . k to acc[token][head].
    template <int kHeads, bool kPartial>
    HRM_TARGET static void score_unit(const Element* const* rows, int at, int valid, const float* query, int pad, Vec* acc) {
        constexpr int kLanes = lanes(kHeads), kTokens = W / kLanes;
        if (kHeads <= 2) {
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) {
                Vec first, second;
                load<kPartial>(rows[t] + at, valid, first, second);
#pragma GCC unroll 4
                for (int g = 0; g < kHeads; ++g) {
                    const Vec* q = reinterpret_cast<const Vec*>(query + g * pad + at);
                    acc[t * kLanes + g] += first * q[0];
                    acc[t * kLanes + g] += second * q[1];
                }
            }
            return;
        }
        Vec first[kTokens], second[kTokens];
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) load<kPartial>(rows[t] + at, valid, first[t], second[t]);
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g) {
            Vec q = *reinterpret_cast<const Vec*>(query + g * pad + at);
            HRM_IN_REGISTER(q);
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) acc[t * kLanes + g] += first[t] * q;
        }
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g) {
            Vec q = *reinterpret_cast<const Vec*>(query + g * pad + at + W);
            HRM_IN_REGISTER(q);
#pragma GCC unroll 16
            for (int t = 0; t < kTokens; ++t) acc[t * kLanes + g] += second[t] * q;
        }
    }

    // One vector of scores: W / lanes tokens against kHeads heads.
    template <int kHeads>
    HRM_TARGET static Vec score_tile(const Element* const* rows, const Shape& shape, const float* query) {
        Vec acc[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) acc[i] = Vec{};
        const int whole = shape.head_dim / kUnit * kUnit;
        for (int at = 0; at < whole; at += kUnit) score_unit<kHeads, false>(rows, at, kUnit, query, shape.pad, acc);
        if (whole < shape.head_dim)
            score_unit<kHeads, true>(rows, whole, shape.head_dim - whole, query, shape.pad, acc);
        return sum_each(acc);
    }

    static void pack_weights(float*, int, int) {}

    // sums[head] = sums[head] * correction[head] + weights . V, for kUnits units of the row.
    template <int kHeads, int kUnits, bool kPartial>
    HRM_TARGET static void add_units(const Element* values, int stride, int count, int valid, const Block& block) {
        constexpr int kLanes = lanes(kHeads), kBytes = kUnits * kUnit * static_cast<int>(sizeof(Element));
        Vec acc[kHeads][2 * kUnits];
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 8
            for (int u = 0; u < 2 * kUnits; ++u)
                acc[g][u] = reinterpret_cast<const Vec*>(block.sums + g * block.pad)[u] * block.correction[g];
        const char* upcoming = block.upcoming;
#pragma GCC unroll 2
        for (int t = 0; t < count; ++t, values += stride) {
            if (kBytes >= 64 || t % 2 == 0) {
                prefetch(upcoming, kBytes);
                upcoming += std::max(kBytes, 64);
            }
            Vec v[2 * kUnits];
#pragma GCC unroll 4
            for (int u = 0; u < kUnits; ++u) load<kPartial>(values + u * kUnit, valid, v[2 * u], v[2 * u + 1]);
#pragma GCC unroll 4
            for (int g = 0; g < kHeads; ++g) {
                const float weight = block.weights[t * kLanes + g];
#pragma GCC unroll 8
                for (int u = 0; u < 2 * kUnits; ++u) acc[g][u] += v[u] * weight;
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 8
            for (int u = 0; u < 2 * kUnits; ++u) reinterpret_cast<Vec*>(block.sums + g * block.pad)[u] = acc[g][u];
    }
};

#ifdef HRM_BF16_DOT
#include "bfloat16_dot.h"
#endif

// The largest of each head's lanes, in all of its lanes.
HRM_TARGET inline Vec fold_larger(Vec v, int num_lanes) {
#if HRM_WIDTH == 8
    if (num_lanes <= 4) v = larger(v, _mm256_permute2f128_ps(v, v, 1));
    if (num_lanes <= 2) v = larger(v, _mm256_permute_ps(v, 0x4e));
    if (num_lanes <= 1) v = larger(v, _mm256_permute_ps(v, 0xb1));
#elif HRM_WIDTH == 16
    v = larger(v, _mm512_shuffle_f32x4(v, v, 0x4e));
    if (num_lanes <= 4) v = larger(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    if (num_lanes <= 2) v = larger(v, _mm512_permute_ps(v, 0x4e));
    if (num_lanes <= 1) v = larger(v, _mm512_permute_ps(v, 0xb1));
#else
    for (int i = num_lanes; i < W; ++i) v[i % num_lanes] = std::max(v[i], v[i % num_lanes]);
    for (int i = num_lanes; i < W; ++i) v[i] = v[i % num_lanes];
#endif
    return v;
}

// Scores -> weights in place; updates the running maximum and sum of each lane; returns what old sums are multiplied by.
template <class Kernel>
HRM_TARGET Vec weigh(Vec* scores, int num_vectors, int num_lanes, float scale, Vec* running) {
    Vec maximum = scores[0];
    for (int i = 1; i < num_vectors; ++i) maximum = larger(maximum, scores[i]);
    maximum = larger(fold_larger(maximum, num_lanes) * scale, running[0]);
    const Vec correction = exp2_of(running[0] - maximum);
    Vec sum = running[1] * correction;
    for (int i = 0; i < num_vectors; ++i) {
        Vec weight = exp2_of(scores[i] * scale - maximum);
        if (Kernel::kRoundsWeights) {
            const Bits bits = (Bits)weight;
            weight = (Vec)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
        }
        scores[i] = weight;
        sum += weight;
    }
    running[0] = maximum;
    running[1] = sum;
    return correction;
}

// One block of `count` tokens for kHeads query heads. `running` is the maximum and the sum of each lane. Memory is kept
// busy all the time: V up to `values_end` is requested while K is scored, and `upcoming_keys` while V is added.
template <class Kernel, int kHeads>
HRM_TARGET void add_block(const typename Kernel::Element* keys, const typename Kernel::Element* values, int count,
                          const Shape& shape, const typename Kernel::Query* query, float* sums, Vec* running,
                          const char* values_end, const char* upcoming_keys) {
    using Element = typename Kernel::Element;
    constexpr int kLanes = lanes(kHeads), kTokens = W / kLanes;
    constexpr int kUnits = W == 16 ? (kHeads <= 2 ? 4 : 2) : (kHeads == 1 ? 4 : kHeads == 2 ? 2 : 1);
    const int dim = shape.head_dim, row_bytes = dim * static_cast<int>(sizeof(Element));
    Vec scores[kBlockTokens * kLanes / W];
    const char* upcoming = reinterpret_cast<const char*>(values) + kAheadBytes;
    int filled = 0;
    for (int first = 0; first < count; first += kTokens) {
        const Element* rows[kTokens];
        for (int t = 0; t < kTokens; ++t) rows[t] = keys + (first + t) * dim;
        for (int t = count - first; t < kTokens; ++t) rows[t] = rows[0];  // scored, then discarded
        if (upcoming + first * row_bytes < values_end) prefetch(upcoming + first * row_bytes, kTokens * row_bytes);
        scores[filled++] = Kernel::template score_tile<kHeads>(rows, shape, query);
    }
    float* lane = reinterpret_cast<float*>(scores);
    for (int i = count * kLanes; i < filled * W; ++i) lane[i] = -INFINITY;
    const Vec correction = weigh<Kernel>(scores, filled, kLanes, shape.scale, running);
    Kernel::pack_weights(lane, count, kLanes);

    Block block{lane, reinterpret_cast<const float*>(&correction), sums, shape.pad, upcoming_keys};
    constexpr int kWide = kUnits * kUnit;
    int at = 0;
    for (; at + kWide <= dim; at += kWide, block.sums += kWide, block.upcoming += count * kWide * sizeof(Element))
        Kernel::template add_units<kHeads, kUnits, false>(values + at, dim, count, kUnit, block);
    for (; at + kUnit <= dim; at += kUnit, block.sums += kUnit, block.upcoming += count * kUnit * sizeof(Element))
        Kernel::template add_units<kHeads, 1, false>(values + at, dim, count, kUnit, block);
    if (at < dim) Kernel::template add_units<kHeads, 1, true>(values + at, dim, count, dim - at, block);
}

// All the query heads of one (sequence, KV head), an item. Meanwhile what the `following` item begins with is requested.
template <class Kernel>
HRM_TARGET void attend(const HrmAttention& job, const Shape& shape, int64_t item, int64_t following, Scratch& scratch) {
    const int64_t sequence = item / job.num_kv_heads, kv_head = item % job.num_kv_heads;
    using Element = typename Kernel::Element;
    using Query = typename Kernel::Query;
    const int group = shape.group, dim = shape.head_dim, pad = shape.pad;
    const int64_t first_row = (sequence * job.num_query_heads + kv_head * group) * dim;
    const int64_t start = start_of(job, item), start_after = start_of(job, following);
    const Element* keys = static_cast<const Element*>(job.keys) + start;
    const Element* values = static_cast<const Element*>(job.values) + start;
    const int64_t length = job.lengths[sequence];

    Query* query = reinterpret_cast<Query*>(scratch.query);
    float* sums = scratch.sums;
    // Whole units at once where queries have the cache's format; the rest element by element.
    const int whole = job.query_is_bfloat16 == job.cache_is_bfloat16 ? dim / kUnit * kUnit : 0;
    Vec* running = reinterpret_cast<Vec*>(scratch.running);
    std::memset(scratch.query, 0, sizeof(float) * group * pad);
    std::memset(sums, 0, sizeof(float) * group * pad);
    for (int g = 0; g < group; ++g) {
        const int64_t row = first_row + g * dim;
        for (int i = 0; i < whole; i += kUnit)
            Kernel::load_unit(static_cast<const Element*>(job.query) + row + i, query + g * pad + i);
        for (int i = whole; i < dim; ++i)
            query[g * pad + i / kUnit * kUnit + Kernel::query_slot(i % kUnit)] =
                Kernel::query_of(read(job.query, row + i, job.query_is_bfloat16));
    }
    for (int g = 0; g < group; g += 4) {
        running[g / 2] = Vec{} - INFINITY;
        running[g / 2 + 1] = Vec{};
    }

    for (int64_t first = 0; first < length; first += shape.block_tokens) {
        const int count = static_cast<int>(std::min<int64_t>(shape.block_tokens, length - first));
        const Element* k = keys + first * dim;
        const Element* v = values + first * dim;
        const char* upcoming = reinterpret_cast<const char*>(k + shape.block_tokens * dim) + kAheadBytes;
        if (first + shape.block_tokens >= length) upcoming = reinterpret_cast<const char*>(static_cast<const Element*>(job.keys) + start_after);
        for (int g = 0; g < group; g += 4) {
            const Query* q = query + g * pad;
            float* s = sums + g * pad;
            Vec* r = running + g / 2;
            // The first four heads request for all.
            const char* values_end = g == 0 ? reinterpret_cast<const char*>(values + length * dim) : nullptr;
            switch (std::min(group - g, 4)) {
                case 1: add_block<Kernel, 1>(k, v, count, shape, q, s, r, values_end, upcoming); break;
                case 2: add_block<Kernel, 2>(k, v, count, shape, q, s, r, values_end, upcoming); break;
                case 3: add_block<Kernel, 3>(k, v, count, shape, q, s, r, values_end, upcoming); break;
                default: add_block<Kernel, 4>(k, v, count, shape, q, s, r, values_end, upcoming); break;
            }
        }
    }

    // What a block before its first would have requested of the following item, but for K that the last block here has.
    const int64_t row_bytes = dim * static_cast<int64_t>(sizeof(Element));
    const int64_t last_block = length > 0 ? ((length - 1) % shape.block_tokens + 1) * row_bytes : 0;
    const int64_t all = job.lengths[following / job.num_kv_heads] * row_bytes;
    const auto request = [&](const void* cache, int64_t from, int64_t to) {
        prefetch(static_cast<const char*>(cache) + start_after * sizeof(Element) + from, static_cast<int>(std::min(to, all) - from));
    };
    request(job.keys, last_block, shape.block_tokens * row_bytes + kAheadBytes);
    request(job.values, 0, kAheadBytes);
    for (int g = 0; g < group; ++g) {
        const int num_lanes = lanes(std::min(group - g / 4 * 4, 4));
        const Vec sum = running[g / 4 * 2 + 1];
        float total = 0.0f;
        for (int i = g % 4; i < W; i += num_lanes) total += sum[i];
        const float inverse = length > 0 ? 1.0f / total : 0.0f;
        const int64_t row = first_row + g * dim;
        for (int i = 0; i < whole; i += kUnit)
            Kernel::write_unit(static_cast<Element*>(job.out) + row + i, sums + g * pad + i, inverse);
        for (int i = whole; i < dim; ++i)
            write(job.out, row + i, job.query_is_bfloat16,
                  sums[g * pad + i / kUnit * kUnit + Kernel::sum_slot(i % kUnit)] * inverse);
    }
}

}  // namespace HRM_NAMESPACE
