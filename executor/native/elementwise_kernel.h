// RMS norms and rotations by position, row by row; included by each_path.h. Arithmetic is float32; numbers are rounded where
// they are written. A row is computed alike whatever other rows there are.

namespace HRM_NAMESPACE {

#include "vectors.h"

// x / rms(x), rounded to the format of x, times the weight.
template <bool kNarrow, bool kNarrowWeight>
HRM_TARGET void norm_row(const void* x, const void* weight, void* out, int64_t width, float eps) {
    const int64_t whole = width / W * W;
    Vec squares = {};
    for (int64_t at = 0; at < whole; at += W) {
        const Vec value = load_row<kNarrow>(x, at);
        squares += value * value;
    }
    float sum = 0.0f;
    for (int i = 0; i < W; ++i) sum += squares[i];
    for (int64_t at = whole; at < width; ++at) sum += read(x, at, kNarrow) * read(x, at, kNarrow);
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
    for (int64_t at = 0; at < whole; at += W) {
        Vec normed = load_row<kNarrow>(x, at) * scale;
        if (kNarrow) normed = (Vec)rounded_to_bfloat16(normed);
        store_row<kNarrow>(out, at, normed * load_row<kNarrowWeight>(weight, at));
    }
    for (int64_t at = whole; at < width; ++at) {
        float normed = read(x, at, kNarrow) * scale;
        if (kNarrow) normed = float_of(uint32_t{bfloat16_of(normed)} << 16);
        write(out, at, kNarrow, normed * read(weight, at, kNarrowWeight));
    }
}

// Element i of a row of 2 * half is paired with i + half.
template <bool kNarrow, bool kNarrowOut, bool kNarrowTables>
HRM_TARGET void rotate_row(const void* x, const void* cos, const void* sin, void* out, int64_t half) {
    const int64_t whole = half / W * W;
    for (int64_t at = 0; at < whole; at += W) {
        const Vec first = load_row<kNarrow>(x, at), second = load_row<kNarrow>(x, half + at);
        const Vec c = load_row<kNarrowTables>(cos, at), s = load_row<kNarrowTables>(sin, at);
        store_row<kNarrowOut>(out, at, first * c - second * s);
        store_row<kNarrowOut>(out, half + at, second * c + first * s);
    }
    for (int64_t at = whole; at < half; ++at) {
        const float first = read(x, at, kNarrow), second = read(x, half + at, kNarrow);
        const float c = read(cos, at, kNarrowTables), s = read(sin, at, kNarrowTables);
        write(out, at, kNarrowOut, first * c - second * s);
        write(out, half + at, kNarrowOut, second * c + first * s);
    }
}

// Adds elements `first` to `last` (one past) of x.
template <bool kNarrow, bool kNarrowX>
HRM_TARGET void add_range(void* total, const void* x, int64_t first, int64_t last) {
    int64_t at = first;
    for (; at + W <= last; at += W) store_row<kNarrow>(total, at, load_row<kNarrow>(total, at) + load_row<kNarrowX>(x, at));
    for (; at < last; ++at) write(total, at, kNarrow, read(total, at, kNarrow) + read(x, at, kNarrowX));
}

constexpr Kernels kernels{
    {norm_row<false, false>, norm_row<false, true>, norm_row<true, false>, norm_row<true, true>},
    {rotate_row<false, false, false>, rotate_row<false, false, true>, rotate_row<false, true, false>, rotate_row<false, true, true>,
     rotate_row<true, false, false>, rotate_row<true, false, true>, rotate_row<true, true, false>, rotate_row<true, true, true>},
    {add_range<false, false>, add_range<false, true>, add_range<true, false>, add_range<true, true>}};

}  // namespace HRM_NAMESPACE
