// Products with group-wise quantised weights: y[r, o] = sum_g scale[o, g] sum_{k in g} q[o, k] x[r, k] + bias[o].
//
// A row of the weight is its groups, one behind the other; the last one is filled up with zeros. int8: a byte is q, from -127 to 127. int4:
// byte i of a group of G holds q + 8 of its weights i (low half) and i + G/2 (high half). Scales are bfloat16.
//
// Activations become 16-bit integers, with one step a group and row: 1/32767 of its largest number, so that the error (half a step) lies far
// below that of the weights and the sum of a group is exact in 32 bits: a lane of W adds up G / W products, each at most 127 * 32767 < 2^22
// (int4: 15 * 32767); with G <= 256 and W >= 4 that is less than 64 * 2^22 = 2^28.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int64_t L = 2 * W;  // 16-bit lanes
constexpr int64_t kAhead = 2048;  // bytes: outputs lie one behind the other, but the hardware does not look beyond a page
constexpr bool kAsk = W < 16;     // measured: asking gains on Zen 3 (AVX2) and costs a third on Zen 4 (AVX-512)
typedef int16_t vs __attribute__((vector_size(L * 2)));
typedef int8_t vb __attribute__((vector_size(L)));
typedef uint8_t vub __attribute__((vector_size(L)));

STATESCAN_INLINE vs load_words(const int16_t* p) { vs v; memcpy(&v, p, sizeof v); return v; }

// Sums of neighbouring products.
STATESCAN_INLINE vi madd(vs a, vs b) {
#if defined(__AVX512BW__)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    vi v;
    for (int64_t i = 0; i < W; ++i) v[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return v;
#endif
}

template <bool nibbles>
STATESCAN_INLINE vs widen(const char* p) {
#if defined(__AVX512BW__)
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (vs)(nibbles ? _mm512_cvtepu8_epi16(bytes) : _mm512_cvtepi8_epi16(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vs)(nibbles ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes));
#else
    if (nibbles) { vub b; memcpy(&b, p, sizeof b); return __builtin_convertvector(b, vs); }
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vs);
#endif
}

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

// The activations of all rows: integers, the step of each group, and the sum of each group's integers times -8 (int4: the offset, taken off).
// Before a row's first step and offset stand W zeros.
struct Activations {
    int16_t* words;
    float *step, *offset;
    int64_t row_words, row_steps;
};

STATESCAN_INLINE int64_t groups(const Matrix& w) { return (w.in + w.group - 1) / w.group; }
// count numbers of one group, at most G; the rest are zeros.
static inline void encode(const float* x, int64_t count, int64_t group, int16_t* words, float* step, float* offset) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the low bits of the sum hold the nearest integer
    typedef int16_t half __attribute__((vector_size(L)));
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
    const float inverse = largest > 1e-30f ? 32767.0f / largest : 0.0f;
    *step = most < 0x7f800000 ? largest / 32767.0f : __builtin_nanf("");  // then all of the row's outputs are NaN
    for (int64_t k = 0; k < group; k += W) {
        const vi v = (vi)(load(x + k) * inverse + kShift) - (vi)splat(kShift);
        const half h = __builtin_convertvector(v, half);
        memcpy(words + k, &h, sizeof h);
        total += v;
    }
    *offset = -8.0f * sum(__builtin_convertvector(total, vf));
}

// O outputs of R rows: a weight is read and widened once for all rows, an activation read once for all outputs. Sums of a group are exact, and
// groups are added in a fixed order, every other one to a sum of its own (one chain of additions would be what everything waits for): a row
// has the same bits in any batch.
template <bool nibbles, int G, int R, int O>
STATESCAN_INLINE void dots(const Matrix& w, const Activations& a, int64_t r, int64_t o, int64_t count, float* y, int64_t y_stride) {
    constexpr int64_t bytes = nibbles ? G / 2 : G;
    const int64_t row = count * bytes;
    const char *q = w.weight.at(0) + o * row, *scale = w.scale.at(0) + 2 * o * count;
    const int16_t* words = a.words + r * a.row_words;
    vf total[O][R][2] = {};
    for (int64_t first = 0; first < count; first += W) {
        // The factors of the groups up to `end` stand in the last lanes: at the end of a row lanes before them are groups that were done.
        const int64_t end = least(first + W, count), some = end - first;
        float factor[O][R][W];
        for (int n = 0; n < O; ++n) {
            const vf s = scales(scale + 2 * n * count, end);
            for (int i = 0; i < R; ++i) {
                const int64_t at = (r + i) * a.row_steps + end;
                const vf f = s * load(a.step + at);
                store(factor[n][i], f);
                if (nibbles) total[n][i][0] += (vf)((vi)(f * load(a.offset + at)) & (lanes() >= static_cast<int32_t>(W - some)));
            }
        }
        const auto group = [&](int64_t g, int chain) {
            vi part[O][R] = {};
            if (kAsk && R == 1 && (bytes >= 64 || chain == 0))  // it waits for memory; several rows compute
                for (int64_t i = 0; i < (bytes + 63) / 64; ++i) __builtin_prefetch(q + kAhead + 64 * i);
#pragma GCC unroll 16
            for (int64_t k = 0; k < bytes; k += L) {
                vs low[O], high[O];
                for (int n = 0; n < O; ++n) {
                    const vs v = widen<nibbles>(q + n * row + k);
                    low[n] = nibbles ? v & 15 : v;
                    high[n] = v >> 4;
                }
                for (int i = 0; i < R; ++i) {
                    const vs x = keep<O>(load_words(words + i * a.row_words + k));
                    for (int n = 0; n < O; ++n) part[n][i] += madd(low[n], x);
                    if (!nibbles) continue;
                    const vs more = keep<O>(load_words(words + i * a.row_words + k + bytes));
                    for (int n = 0; n < O; ++n) part[n][i] += madd(high[n], more);
                }
            }
            for (int n = 0; n < O; ++n)
                for (int i = 0; i < R; ++i) total[n][i][chain] += __builtin_convertvector(part[n][i], vf) * factor[n][i][W - some + g];
            q += bytes;
            words += G;
        };
        int64_t g = 0;
        for (; g + 2 <= some; g += 2) group(g, 0), group(g + 1, 1);
        if (g < some) group(g, 0);
    }
    for (int n = 0; n < O; ++n) {
        const float bias = w.bias ? *w.bias.f(o + n) : 0.0f;
        for (int i = 0; i < R; ++i) y[(r + i) * y_stride + o + n] = sum(total[n][i][0] + total[n][i][1]) + bias;
    }
}

// R rows of all outputs; those that one pass over the activations serves are as many as the registers hold.
template <bool nibbles, int G, int R>
void rows_of(const Matrix& w, const Activations& a, int64_t r, int64_t first, int64_t last, float* y, int64_t y_stride) {
    constexpr int O = W == 16 && R > 1 ? 2 : 1;
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
    const int64_t count = quantised::groups(w);
    return ceil_to(2 * rows * count * w.group, 64) + 2 * ceil_to(4 * rows * (W + count), 64);
}

// As product(), for a weight of type kInt8 or kInt4.
static inline void product_quantised(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y,
                                     int64_t y_stride, Arena& arena, bool again) {
    using namespace quantised;
    const int64_t count = groups(w), steps = W + count;
    const bool nibbles = w.weight.type == kInt4;
    Activations a{reinterpret_cast<int16_t*>(arena.floats(rows * count * w.group / 2)), arena.floats(rows * steps), arena.floats(rows * steps),
                  count * w.group, steps};
    for (int64_t r = 0; r < rows && !again; ++r) {
        float *step = a.step + r * steps, *offset = a.offset + r * steps;
        for (int64_t g = 0; g < count; ++g)
            encode(x + r * x_stride + g * w.group, least(w.group, w.in - g * w.group), w.group, a.words + r * a.row_words + g * w.group,
                   step + W + g, offset + W + g);
        store(step, vf{});
        store(offset, vf{});
    }
    if (nibbles) outputs<true>(w, a, rows, first, last, y, y_stride);
    else outputs<false>(w, a, rows, first, last, y, y_stride);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
