// Part of attention_kernel.h, within its namespace: the kernel on bfloat16 dot products.
//
// Both operands stay bfloat16, sums are float32. V is taken two tokens at a time, interleaved by unpacking, with the
// weights of the two tokens (rounded to bfloat16) in one 32-bit lane.
struct Dot {
    using Element = uint16_t;
    using Query = uint16_t;
    static constexpr bool kRoundsWeights = true;
    static Query query_of(float value) { return bfloat16_of(value); }
    static int query_slot(int element) { return element; }
    // Unpacking works within 128-bit lanes: elements 0-3 of each eight go to the first vector, 4-7 to the second.
    static int sum_slot(int element) { return (element & 4) / 4 * W + element / 8 * 4 + (element & 3); }

    HRM_TARGET static void load_unit(const uint16_t* from, uint16_t* query) {
        _mm512_storeu_si512(query, _mm512_loadu_si512(from));
    }
    // Sums lie as unpacking leaves them: elements 0-3 of each eight in the first vector, 4-7 in the second.
    HRM_TARGET static void write_unit(uint16_t* to, const float* sums, float scale) {
        const Vec* from = reinterpret_cast<const Vec*>(sums);
        const Bits first = rounded_to_bfloat16(from[0] * scale) >> 16, second = rounded_to_bfloat16(from[1] * scale) >> 16;
        _mm512_storeu_si512(to, _mm512_packus_epi32((__m512i)first, (__m512i)second));
    }

    template <bool kPartial>
    HRM_TARGET static __m512i load(const uint16_t* from, int valid) {
        if (kPartial) return _mm512_maskz_loadu_epi16((1u << valid) - 1u, from);
        return _mm512_loadu_si512(from);
    }

    template <int kHeads, bool kPartial>
    HRM_TARGET static void score_unit(const uint16_t* const* rows, int at, int valid, const uint16_t* query, int pad, Vec* acc) {
        constexpr int kLanes = lanes(kHeads), kTokens = W / kLanes;
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
            const __m512i k = load<kPartial>(rows[t] + at, valid);
#pragma GCC unroll 4
            for (int g = 0; g < kHeads; ++g) {
                const __m512i q = _mm512_load_si512(query + g * pad + at);
                acc[t * kLanes + g] = _mm512_dpbf16_ps(acc[t * kLanes + g], (__m512bh)k, (__m512bh)q);
            }
        }
    }

    template <int kHeads>
    HRM_TARGET static Vec score_tile(const uint16_t* const* rows, const Shape& shape, const uint16_t* query) {
        Vec acc[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) acc[i] = Vec{};
        const int whole = shape.head_dim / kUnit * kUnit;
        for (int at = 0; at < whole; at += kUnit) score_unit<kHeads, false>(rows, at, kUnit, query, shape.pad, acc);
        if (whole < shape.head_dim)
            score_unit<kHeads, true>(rows, whole, shape.head_dim - whole, query, shape.pad, acc);
        return sum_each(acc);
    }

    // Makes one 32-bit lane of the weights of tokens 2i (low half) and 2i + 1 (high half), in place.
    HRM_TARGET static void pack_weights(float* weights, int count, int num_lanes) {
        uint32_t* pairs = reinterpret_cast<uint32_t*>(weights);
        for (int t = 0; t < count; t += 2)
            for (int g = 0; g < num_lanes; ++g)
                pairs[t / 2 * num_lanes + g] = bits_of(weights[t * num_lanes + g]) >> 16 |
                                               (bits_of(weights[(t + 1) * num_lanes + g]) & 0xffff0000u);
    }

    template <int kHeads, int kUnits, bool kPartial>
    HRM_TARGET static void add_units(const uint16_t* values, int stride, int count, int valid, const Block& block) {
        constexpr int kLanes = lanes(kHeads);
        const uint32_t* pairs = reinterpret_cast<const uint32_t*>(block.weights);
        const char* upcoming = block.upcoming;
        Vec acc[kHeads][2 * kUnits];
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 8
            for (int u = 0; u < 2 * kUnits; ++u)
                acc[g][u] = reinterpret_cast<const Vec*>(block.sums + g * block.pad)[u] * block.correction[g];
        for (int t = 0; t < count; t += 2, values += 2 * stride) {
            prefetch(upcoming, kUnits * kUnit * 4);
            upcoming += kUnits * kUnit * 4;
            // An odd last token is paired with itself under the padding's weight of 2 ** -126.
            const uint16_t* next = t + 1 < count ? values + stride : values;
            __m512i v[2 * kUnits];
#pragma GCC unroll 4
            for (int u = 0; u < kUnits; ++u) {
                const __m512i even = load<kPartial>(values + u * kUnit, valid);
                const __m512i odd = load<kPartial>(next + u * kUnit, valid);
                v[2 * u] = _mm512_unpacklo_epi16(even, odd);
                v[2 * u + 1] = _mm512_unpackhi_epi16(even, odd);
            }
#pragma GCC unroll 4
            for (int g = 0; g < kHeads; ++g) {
                const __m512i weight = _mm512_set1_epi32(static_cast<int>(pairs[t / 2 * kLanes + g]));
#pragma GCC unroll 8
                for (int u = 0; u < 2 * kUnits; ++u)
                    acc[g][u] = _mm512_dpbf16_ps(acc[g][u], (__m512bh)v[u], (__m512bh)weight);
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 8
            for (int u = 0; u < 2 * kUnits; ++u) reinterpret_cast<Vec*>(block.sums + g * block.pad)[u] = acc[g][u];
    }
};
