// Where the largest number of a row is; included by each_path.h.

namespace HRM_NAMESPACE {

#include "vectors.h"

// The largest of a stretch; NaN when there is one.
template <bool kNarrow>
HRM_TARGET float largest_of(const void* row, int64_t first, int64_t last) {
    float top = read(row, first, kNarrow);
    bool is_number = top == top;
    int64_t at = first;
    if (at + W <= last) {
        Vec tops = load_row<kNarrow>(row, at);
        Bits numbers = (Bits)(tops == tops);
        for (at += W; at + W <= last; at += W) {
            const Vec value = load_row<kNarrow>(row, at);
            numbers &= (Bits)(value == value);
            tops = larger(value, tops);
        }
        for (int i = 0; i < W; ++i) {
            is_number = is_number && numbers[i] != 0;
            top = std::max(top, tops[i]);
        }
    }
    for (; at < last; ++at) {
        const float value = read(row, at, kNarrow);
        is_number = is_number && value == value;
        top = std::max(top, value);
    }
    return is_number ? top : float_of(0x7fc00000u);
}

// The first of equal ones; of NaN, which nothing is larger than, the first.
template <bool kNarrow>
HRM_TARGET int64_t first_largest(const void* row, int64_t width) {
    int64_t block = 0;
    float top = largest_of<kNarrow>(row, 0, std::min(kBlock, width));
    for (int64_t first = kBlock; first < width && top == top; first += kBlock) {
        const float here = largest_of<kNarrow>(row, first, std::min(first + kBlock, width));
        if (here <= top) continue;
        top = here;
        block = first;
    }
    for (int64_t at = block;; ++at) {
        const float value = read(row, at, kNarrow);
        if (value == top || (value != value && top != top)) return at;
    }
}

constexpr Kernels kernels{{first_largest<false>, first_largest<true>}};

}  // namespace HRM_NAMESPACE
