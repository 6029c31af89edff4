// Weights and activations byte by byte, for product_quantised.h: VNNI multiplies unsigned bytes with signed ones and adds up four neighbours, so
// weights are made unsigned (q + 128, q + 8), and activations are two planes, 256 h + l. A vector is 64 bytes of a weight: all of a group, a
// part of it, or two groups (4 bits, G = 64).
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int kTogether = 2;      // outputs of several rows
constexpr int64_t kAhead = 4096;  // bytes; measured on Zen 4, into the second-level cache: 3 to 16 KiB are alike, less is slower
typedef int8_t vb __attribute__((vector_size(64)));
typedef uint8_t vub __attribute__((vector_size(64)));

template <bool nibbles>
constexpr float kZero = nibbles ? 8.0f : 128.0f;

// Numbers k to k + W of group g: for 64 bytes of a weight, h and l of what their low halves (or bytes) meet, then of what the high halves do.
template <bool nibbles>
STATESCAN_INLINE void put(vi v, char* numbers, int64_t g, int64_t k, int64_t group) {
    typedef int8_t quarter __attribute__((vector_size(W)));
    const bool high = nibbles && k >= group / 2;
    const int64_t byte = nibbles ? (g * group + (high ? 2 * k - group : 2 * k)) / 2 : g * group + k;
    char* to = numbers + byte / 64 * (nibbles ? 256 : 128) + (high ? 128 : 0) + byte % 64;
    const vi h = (v + 128) >> 8;
    const quarter first = __builtin_convertvector(h, quarter), second = __builtin_convertvector(v - (h << 8), quarter);
    memcpy(to, &first, sizeof first);
    memcpy(to + 64, &second, sizeof second);
}

STATESCAN_INLINE vi dot(vi sum, vub weight, vb x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weight, (__m512i)x); }

STATESCAN_INLINE vb load_bytes(const char* p) { vb v; memcpy(&v, p, sizeof v); return v; }

// O outputs of R rows: a weight is read and taken apart once for all rows, an activation read once for all outputs. Sums of a group are exact and
// groups are added in a fixed order: a row has the same bits in any batch.
template <bool nibbles, int G, int R, int O>
STATESCAN_INLINE void dots(const Matrix& w, const Activations& a, int64_t r, int64_t o, int64_t count, float* y, int64_t y_stride) {
    constexpr int64_t bytes = nibbles ? G / 2 : G;
    constexpr int64_t pair = bytes < 64 ? 2 : 1;  // groups of a vector
    constexpr int64_t planes = (nibbles ? 2 : 1) * (bytes < 64 ? 1 : bytes / 64);
    const int64_t row = count * bytes;
    const char *q = w.weight.at(0) + o * row, *scale = w.scale.at(0) + 2 * o * count, *numbers = a.numbers + r * a.row_bytes;
    vf total[O][R] = {};
    for (int64_t first = 0; first < count; first += W) {
        // The factors of the groups up to `end` stand in the last lanes: at the end of a row lanes before them are groups that were done.
        const int64_t end = least(first + W, count), some = end - first;
        const vi there = lanes() >= static_cast<int32_t>(W - some);
        vf factor[O][R];
        for (int n = 0; n < O; ++n) {
            const vf s = scales(scale + 2 * n * count, end);
            for (int i = 0; i < R; ++i) {
                const int64_t at = (r + i) * a.row_steps + end;
                factor[n][i] = s * load(a.step + at);
                total[n][i] += (vf)((vi)(factor[n][i] * load(a.offset + at)) & there);
            }
        }
        vi lane = (pair == 2 ? lanes() >> 3 : vi{}) + static_cast<int32_t>(W - some);
        const auto vector = [&](uint64_t mask) {
            vub weight[O][planes];
            if (r == 0)  // rows that follow find it in the cache
                for (int n = 0; n < O; ++n)
                    for (int64_t u = 0; u < bytes * pair; u += 64) __builtin_prefetch(q + n * row + u + kAhead, 0, 2);
            for (int n = 0; n < O; ++n)
                for (int64_t u = 0; u < (nibbles ? planes / 2 : planes); ++u) {
                    const vub v = (vub)_mm512_maskz_loadu_epi8(mask, q + n * row + 64 * u);
                    if (nibbles) {
                        weight[n][2 * u] = v & 15;
                        weight[n][2 * u + 1] = (vub)_mm512_srli_epi16((__m512i)v, 4) & 15;
                    } else {
                        weight[n][u] = v ^ 128;
                    }
                }
            for (int i = 0; i < R; ++i) {
                const char* x = numbers + i * a.row_bytes;
                vi part[O] = {};
                for (int64_t p = 0; p < planes; ++p) {
                    const vb h = keep<O>(load_bytes(x + 128 * p));
                    for (int n = 0; n < O; ++n) part[n] = dot(part[n], weight[n][p], h);
                }
                for (int n = 0; n < O; ++n) part[n] <<= 8;
                for (int64_t p = 0; p < planes; ++p) {
                    const vb l = keep<O>(load_bytes(x + 128 * p + 64));
                    for (int n = 0; n < O; ++n) part[n] = dot(part[n], weight[n][p], l);
                }
                for (int n = 0; n < O; ++n)
                    total[n][i] += __builtin_convertvector(part[n], vf) * (vf)_mm512_permutexvar_ps((__m512i)lane, (__m512)factor[n][i]);
            }
            q += pair * bytes;
            numbers += 128 * planes;
            lane += static_cast<int32_t>(pair);
        };
        for (int64_t g = 0; g + pair <= some; g += pair) vector(~0ull);
        if (pair == 2 && some % 2) vector(0xffffffffull);  // the second half does not exist: its weights are zeros
    }
    for (int n = 0; n < O; ++n) {
        const float bias = w.bias ? *w.bias.f(o + n) : 0.0f;
        for (int i = 0; i < R; ++i) y[(r + i) * y_stride + o + n] = sum(total[n][i]) + bias;
    }
}

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
