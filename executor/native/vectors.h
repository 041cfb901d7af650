// Vectors of one instruction set: included within its namespace by each kernel, which defines HRM_WIDTH and HRM_TARGET.
//
// Rows of numbers are read in units of two vectors (2 * W elements). A bfloat16 unit is widened by a shift and a mask,
// which leaves even elements in the first vector and odd ones in the second; what a row is multiplied with is kept in
// that order, so that nothing is shuffled per row. `slot` gives the place of an element within its unit.

constexpr int W = HRM_WIDTH;
constexpr int kUnit = 2 * W;

typedef float Vec __attribute__((vector_size(4 * W), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * W), may_alias));
typedef float LooseVec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef uint32_t LooseBits __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef uint16_t Narrow __attribute__((vector_size(2 * W), aligned(2), may_alias));

HRM_TARGET inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// Rounds to nearest, ties to even, into the upper halves; NaN stays NaN.
HRM_TARGET inline Bits rounded_to_bfloat16(Vec value) {
    const Bits bits = (Bits)value, quiet_nan = bits | 0x00400000u;
    const Bits is_nan = (Bits)(value != value);
    return ((is_nan & quiet_nan) | (~is_nan & (bits + 0x7fffu + ((bits >> 16) & 1u)))) & 0xffff0000u;
}

// W numbers of a row in their order, widened and narrowed.
template <bool kNarrow>
HRM_TARGET inline Vec load_row(const void* from, int64_t at) {
    if (!kNarrow) return *reinterpret_cast<const LooseVec*>(static_cast<const float*>(from) + at);
    return (Vec)(__builtin_convertvector(*reinterpret_cast<const Narrow*>(static_cast<const uint16_t*>(from) + at), Bits) << 16);
}

template <bool kNarrow>
HRM_TARGET inline void store_row(void* to, int64_t at, Vec value) {
    if (!kNarrow) {
        *reinterpret_cast<LooseVec*>(static_cast<float*>(to) + at) = value;
        return;
    }
    const Bits rounded = rounded_to_bfloat16(value) >> 16;
    *reinterpret_cast<Narrow*>(static_cast<uint16_t*>(to) + at) = __builtin_convertvector(rounded, Narrow);
}

// 2 ** x for x <= 0; 2 ** -126 below. Relative error under 2e-7 (degree 6 on [-0.5, 0.5]).
HRM_TARGET inline Vec exp2_of(Vec x) {
    const Vec magic = Vec{} + 12582912.0f;  // 1.5 * 2 ** 23: adding it rounds to an integer in the low bits
    x = larger(x, Vec{} - 126.0f);
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    Vec y = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    y = y * f + 9.618437357674640e-3f;
    y = y * f + 5.550332471162809e-2f;
    y = y * f + 2.402264791363012e-1f;
    y = y * f + 6.931472028550421e-1f;
    y = y * f + 1.0f;
    return (Vec)((Bits)y + ((Bits)shifted << 23));
}

// W vectors -> one vector of their sums, in order.
HRM_TARGET inline Vec sum_each(const Vec* v) {
#if HRM_WIDTH == 8
#define HRM_PAIR(a, b) (_mm256_shuffle_ps(a, b, 0x88) + _mm256_shuffle_ps(a, b, 0xDD))
    const Vec low = HRM_PAIR(HRM_PAIR(v[0], v[1]), HRM_PAIR(v[2], v[3]));
    const Vec high = HRM_PAIR(HRM_PAIR(v[4], v[5]), HRM_PAIR(v[6], v[7]));
#undef HRM_PAIR
    return _mm256_permute2f128_ps(low, high, 0x20) + _mm256_permute2f128_ps(low, high, 0x31);
#elif HRM_WIDTH == 16
#define HRM_PAIR(a, b) (_mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD))
#define HRM_FOUR(a, b) (_mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD))
    const Vec first = HRM_PAIR(HRM_PAIR(v[0], v[1]), HRM_PAIR(v[2], v[3]));
    const Vec second = HRM_PAIR(HRM_PAIR(v[4], v[5]), HRM_PAIR(v[6], v[7]));
    const Vec third = HRM_PAIR(HRM_PAIR(v[8], v[9]), HRM_PAIR(v[10], v[11]));
    const Vec fourth = HRM_PAIR(HRM_PAIR(v[12], v[13]), HRM_PAIR(v[14], v[15]));
    const Vec low = HRM_FOUR(first, second);
    const Vec high = HRM_FOUR(third, fourth);
    return HRM_FOUR(low, high);
#undef HRM_PAIR
#undef HRM_FOUR
#else
    Vec sums;
    for (int i = 0; i < W; ++i) {
        float sum = 0.0f;
        for (int j = 0; j < W; ++j) sum += v[i][j];
        sums[i] = sum;
    }
    return sums;
#endif
}

struct Float32 {
    using Element = float;
    HRM_TARGET static void load(const float* from, Vec& first, Vec& second) {
        first = *reinterpret_cast<const LooseVec*>(from);
        second = *reinterpret_cast<const LooseVec*>(from + W);
    }
    static int slot(int element) { return element; }
};

struct Bfloat16 {
    using Element = uint16_t;
    HRM_TARGET static void load(const uint16_t* from, Vec& first, Vec& second) {
        const Bits bits = *reinterpret_cast<const LooseBits*>(from);
        first = (Vec)(bits << 16);
        second = (Vec)(bits & 0xffff0000u);
    }
    static int slot(int element) { return (element & 1) * W + element / 2; }
};
