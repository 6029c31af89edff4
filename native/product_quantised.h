// Products with group-wise quantised weights: y[r, o] = sum_g scale[o, g] sum_{k in g} q[o, k] x[r, k] + bias[o].
//
// A row of the weight is its groups, one behind the other; the last one is filled up with zeros. int8: a byte is q, from -127 to 127. int4:
// byte i of a group of G holds q + 8 of its weights i (low half) and i + G/2 (high half). Scales are bfloat16.
//
// Activations become integers with one step a group and row: 1/kTop of its largest number, so that the error (half a step) lies far below that
// of the weights. kTop = 127 * 256 + 127: 256 h + l with h and l signed bytes. Their products are summed as 16-bit words (product_words.h) or, with
// AVX-512's VNNI, byte by byte (product_bytes.h); a lane's sum of a group is exact in 32 bits either way: a weight is less than 2^8, a number less
// than 2^15, a lane adds up at most G / 4 <= 64 products.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int32_t kTop = 32639;

// The activations of all rows: integers, the step of each group, and its offset: the sum of its integers times what is added to each weight to
// make it unsigned, to be taken off. Before a row's first step and offset stand W zeros.
struct Activations {
    char* numbers;
    float *step, *offset;
    int64_t row_bytes, row_steps;
};

STATESCAN_INLINE vi lanes() {
    vi v;
    for (int32_t i = 0; i < W; ++i) v[i] = i;
    return v;
}

// The scales of W groups up to `end`; of fewer than W, with zeros before them.
STATESCAN_INLINE vf scales(const char* p, int64_t end) {
    if (end >= W) return from_bf16(p + 2 * (end - W));
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 there = static_cast<__mmask16>(0xffff << (W - end));
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, p + 2 * (end - W))), 16);
#else
    char rest[2 * W] = {};
    memcpy(rest + 2 * (W - end), p, static_cast<size_t>(2 * end));
    return from_bf16(rest);
#endif
}

STATESCAN_INLINE int64_t groups(const Matrix& w) { return (w.in + w.group - 1) / w.group; }
STATESCAN_INLINE int64_t row_bytes(const Matrix& w) { return ceil_to(2 * groups(w) * w.group, 256); }

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan

#if defined(__AVX512VNNI__)
#include "product_bytes.h"
#else
#include "product_words.h"
#endif

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

// Group g of a row, of which `count` numbers are there; the rest are zeros.
template <bool nibbles>
void encode(const float* x, int64_t count, int64_t group, int64_t g, char* numbers, float* step, float* offset) {
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
        put<nibbles>(v, numbers, g, k, group);
        total += v;
    }
    *offset = -kZero<nibbles> * sum(__builtin_convertvector(total, vf));
}

// R rows of all outputs; those that one pass over the activations serves are as many as the registers hold.
template <bool nibbles, int G, int R>
void rows_of(const Matrix& w, const Activations& a, int64_t r, int64_t first, int64_t last, float* y, int64_t y_stride) {
    constexpr int O = R > 1 ? kTogether : 1;
    const int64_t count = groups(w);
    int64_t o = first;
    for (; o + O <= last; o += O) dots<nibbles, G, R, O>(w, a, r, o, count, y, y_stride);
    for (; o < last; ++o) dots<nibbles, G, R, 1>(w, a, r, o, count, y, y_stride);
}

template <bool nibbles, int G>
void outputs(const Matrix& w, const Activations& a, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) rows_of<nibbles, G, 4>(w, a, r, first, last, y, y_stride);
    for (; r + 2 <= rows; r += 2) rows_of<nibbles, G, 2>(w, a, r, first, last, y, y_stride);
    if (r < rows) rows_of<nibbles, G, 1>(w, a, r, first, last, y, y_stride);
}

template <bool nibbles>
void outputs(const Matrix& w, const Activations& a, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride) {
    if (w.group == 64) outputs<nibbles, 64>(w, a, rows, first, last, y, y_stride);
    else if (w.group == 128) outputs<nibbles, 128>(w, a, rows, first, last, y, y_stride);
    else outputs<nibbles, 256>(w, a, rows, first, last, y, y_stride);
}

}  // namespace quantised

static inline int64_t product_quantised_scratch(const Matrix& w, int64_t rows) {
    return ceil_to(rows * quantised::row_bytes(w), 64) + 2 * ceil_to(4 * rows * (W + quantised::groups(w)), 64);
}

namespace quantised {

template <bool nibbles>
void run(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride, Arena& arena,
         bool again) {
    const int64_t count = groups(w), steps = W + count, bytes = row_bytes(w);
    char* numbers = reinterpret_cast<char*>(arena.floats(rows * bytes / 4));
    float *step = arena.floats(rows * steps), *offset = arena.floats(rows * steps);
    for (int64_t r = 0; r < rows && !again; ++r) {
        for (int64_t g = 0; g < count; ++g)
            encode<nibbles>(x + r * x_stride + g * w.group, least(w.group, w.in - g * w.group), w.group, g, numbers + r * bytes,
                            step + r * steps + W + g, offset + r * steps + W + g);
        store(step + r * steps, vf{});
        store(offset + r * steps, vf{});
    }
    outputs<nibbles>(w, {numbers, step, offset, bytes, steps}, rows, first, last, y, y_stride);
}

}  // namespace quantised

// As product(), for a weight of type kInt8 or kInt4.
static inline void product_quantised(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y,
                                     int64_t y_stride, Arena& arena, bool again) {
    const auto run = w.weight.type == kInt4 ? quantised::run<true> : quantised::run<false>;
    run(w, x, x_stride, rows, first, last, y, y_stride, arena, again);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
