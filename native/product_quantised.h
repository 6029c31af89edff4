// Products with group-wise quantised weights: y[r, o] = sum_g scale[o, g] sum_{k in g} q[o, k] x[r, k] + bias[o].
//
// A weight lies as it is read: 16 outputs side by side, four bytes of each, then the next four, so that the sums of 16 outputs are neighbours and
// nothing is added up across a vector. int8: a byte is q, from -127 to 127. int4: byte i of a group of G holds q + 8 of its weights i (low half) and
// i + G/2 (high half). The last group is filled up with zeros, the last 16 outputs with anything. Scales, bfloat16, are (outputs / 16, groups, 16).
//
// Activations become integers with one step a group and row: 1/kTop of its largest number, so that the error (half a step) lies far below that
// of the weights. kTop = 127 * 256 + 127: 256 h + l with h and l signed bytes. Their products are summed as 16-bit words (product_words.h) or, with
// AVX-512's VNNI, byte by byte (product_bytes.h). The sum of a group is exact in 32 bits: a weight is at most 2^7, a number less than 2^15, a group
// has at most 2^8. Groups are added one after the other: a row has the same bits in any batch.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int32_t kTop = 32639;
constexpr int64_t kSide = 16;  // outputs side by side

// Activations of R rows that go together: for each group a step and a row, and its offset: the sum of its integers times what is added to each
// weight to make it unsigned, to be taken off; for four numbers and a row their `kFour` bytes.
struct Activations {
    const char* numbers;
    const float* step;
    const int32_t* offset;
};

STATESCAN_INLINE int64_t groups(const Matrix& w) { return (w.in + w.group - 1) / w.group; }

// How many of the rows that are left go together.
STATESCAN_INLINE int64_t together(int64_t rows) { return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1; }

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan

#if defined(__AVX512VNNI__)
#include "product_bytes.h"
#else
#include "product_words.h"
#endif
#include "product_tiles.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

// A group of one of the rows that go together, of which `count` numbers are there; the rest are zeros. `planes`: as tiles have them.
template <bool nibbles>
void encode(const float* x, int64_t count, int64_t group, int64_t together, bool planes, char* numbers, float* step, int32_t* offset) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the low bits of the sum hold the nearest integer
    float rest[256];
    if (count < group) {
        memcpy(rest, x, static_cast<size_t>(4 * count));
        memset(rest + count, 0, static_cast<size_t>(4 * (group - count)));
        x = rest;
    }
    vi top = {}, total = {};  // the bits of a number without its sign are in the order of its size, and above them all come infinity and NaN
    for (int64_t k = 0; k < group; k += W) {
        const vi bits = (vi)load(x + k) & 0x7fffffff;
        top = top > bits ? top : bits;
    }
    int32_t lane[W], most = 0;
    memcpy(lane, &top, sizeof lane);
    for (int64_t i = 0; i < W; ++i) most = lane[i] > most ? lane[i] : most;
    float largest;
    memcpy(&largest, &most, 4);
    const float inverse = largest > 1e-30f ? kTop / largest : 0.0f;
    *step = most < 0x7f800000 ? largest / kTop : __builtin_nanf("");  // then all of the row's outputs are NaN
    for (int64_t k = 0; k < group; k += W) {
        const vi v = (vi)(load(x + k) * inverse + kShift) - (vi)splat(kShift);
        if (planes) put_apart(v, numbers + k, together * group);
        else put(v, numbers + k / 4 * together * kFour, together);
        total += v;
    }
    memcpy(lane, &total, sizeof lane);
    int32_t sum = 0;
    for (int64_t i = 0; i < W; ++i) sum += lane[i];
    *offset = kZero<nibbles> * sum;
}

// R rows of outputs [first, last), of which the first is one of 16.
template <bool nibbles, int R, bool planes = false>
void rows_of(const Matrix& w, const Activations& a, int64_t first, int64_t last, float* y, int64_t y_stride, bool ask) {
    const Tiles tiles(planes ? R : 0);
    const int64_t count = groups(w), bytes = count * w.group * kSide / (nibbles ? 2 : 1);
    for (int64_t o = first; o < last; o += kSide) {
        float sums[R][kSide], bias[kSide] = {};
        const int64_t there = least(kSide, last - o);
        if (w.bias) for (int64_t n = 0; n < there; ++n) bias[n] = *w.bias.f(o + n);
        const char *q = w.weight.at(0) + o / kSide * bytes, *scale = w.scale.at(0) + 2 * o * count;
        if (planes) tile_dots<nibbles, R>(q, scale, a, count, w.group, ask, sums);
        else dots<nibbles, R>(q, scale, a, count, w.group, ask, sums);
        for (int64_t i = 0; i < R; ++i) {
            float* to = there == kSide ? y + i * y_stride + o : sums[i];
            for (int64_t n = 0; n < kSide; n += W) store(to + n, load(sums[i] + n) + load(bias + n));
            if (there < kSide) memcpy(y + i * y_stride + o, to, static_cast<size_t>(4 * there));
        }
    }
}

template <bool nibbles>
void run(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride, Arena& arena,
         bool again) {
    const int64_t count = groups(w), in = count * w.group;
    char* numbers = reinterpret_cast<char*>(arena.floats(rows * in / 4 * kFour / 4));
    float* step = arena.floats(rows * count);
    int32_t* offset = reinterpret_cast<int32_t*>(arena.floats(rows * count));
    for (int64_t r = 0, R; r < rows; r += R) {
        R = together(rows - r);
        const bool planes = by_tiles(R);
        char* at = numbers + r * in / 4 * kFour;
        for (int64_t i = 0; i < R && !again; ++i)
            for (int64_t g = 0; g < count; ++g)
                encode<nibbles>(x + (r + i) * x_stride + g * w.group, least(w.group, w.in - g * w.group), w.group, R, planes,
                                at + g * w.group / 4 * R * kFour + i * (planes ? w.group : kRow), step + r * count + g * R + i, offset + r * count + g * R + i);
        const auto few = R == 8 ? rows_of<nibbles, 8> : R == 4 ? rows_of<nibbles, 4> : R == 2 ? rows_of<nibbles, 2> : rows_of<nibbles, 1>;
        const auto of = !planes ? few : R == 8 ? rows_of<nibbles, 8, true> : rows_of<nibbles, 4, true>;
        of(w, {at, step + r * count, offset + r * count}, first, last, y + r * y_stride, y_stride, r == 0);  // later rows find it in the cache
    }
}

}  // namespace quantised

static inline int64_t product_quantised_scratch(const Matrix& w, int64_t rows) {
    const int64_t count = quantised::groups(w);
    return ceil_to(rows * count * w.group / 4 * quantised::kFour, 64) + 2 * ceil_to(4 * rows * count, 64);
}

// As product(), for a weight of type kInt8 or kInt4; `first` is a multiple of 16.
static inline void product_quantised(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y,
                                     int64_t y_stride, Arena& arena, bool again) {
    const auto run = w.weight.type == kInt4 ? quantised::run<true> : quantised::run<false>;
    run(w, x, x_stride, rows, first, last, y, y_stride, arena, again);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
