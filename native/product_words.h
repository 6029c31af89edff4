// Weights and activations as 16-bit words, for product_quantised.h: neighbouring products are summed by one instruction.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int64_t L = 2 * W;      // 16-bit lanes
constexpr int64_t kAhead = 2048;  // bytes; outputs lie one behind the other, but the hardware does not look beyond a page
constexpr int kTogether = 1;      // outputs of several rows
typedef int16_t vs __attribute__((vector_size(L * 2)));
typedef int8_t vb __attribute__((vector_size(L)));
typedef uint8_t vub __attribute__((vector_size(L)));

STATESCAN_INLINE vs load_words(const char* p) { vs v; memcpy(&v, p, sizeof v); return v; }

// Sums of neighbouring products.
STATESCAN_INLINE vi madd(vs a, vs b) {
#if defined(__AVX2__)
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
#if defined(__AVX2__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return (vs)(nibbles ? _mm256_cvtepu8_epi16(bytes) : _mm256_cvtepi8_epi16(bytes));
#else
    if (nibbles) { vub b; memcpy(&b, p, sizeof b); return __builtin_convertvector(b, vs); }
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vs);
#endif
}

template <bool nibbles>
constexpr float kZero = nibbles ? 8.0f : 0.0f;

// Numbers k to k + W of group g.
template <bool nibbles>
STATESCAN_INLINE void put(vi v, char* numbers, int64_t g, int64_t k, int64_t group) {
    typedef int16_t half __attribute__((vector_size(L)));
    const half h = __builtin_convertvector(v, half);
    memcpy(numbers + 2 * (g * group + k), &h, sizeof h);
}

// O outputs of R rows: a weight is read and widened once for all rows, an activation read once for all outputs. Sums of a group are exact, and
// groups are added in a fixed order, every other one to a sum of its own (one chain of additions would be what everything waits for): a row
// has the same bits in any batch.
template <bool nibbles, int G, int R, int O>
STATESCAN_INLINE void dots(const Matrix& w, const Activations& a, int64_t r, int64_t o, int64_t count, float* y, int64_t y_stride) {
    constexpr int64_t bytes = nibbles ? G / 2 : G;
    const int64_t row = count * bytes;
    const char *q = w.weight.at(0) + o * row, *scale = w.scale.at(0) + 2 * o * count;
    const char* words = a.numbers + r * a.row_bytes;
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
            if (R == 1 && (bytes >= 64 || chain == 0))  // it waits for memory; several rows compute
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
                    const vs x = keep<O>(load_words(words + i * a.row_bytes + 2 * k));
                    for (int n = 0; n < O; ++n) part[n][i] += madd(low[n], x);
                    if (!nibbles) continue;
                    const vs more = keep<O>(load_words(words + i * a.row_bytes + 2 * (k + bytes)));
                    for (int n = 0; n < O; ++n) part[n][i] += madd(high[n], more);
                }
            }
            for (int n = 0; n < O; ++n)
                for (int i = 0; i < R; ++i) total[n][i][chain] += __builtin_convertvector(part[n][i], vf) * factor[n][i][W - some + g];
            q += bytes;
            words += 2 * G;
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

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
