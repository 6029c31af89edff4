// Weights and activations byte by byte, for product_quantised.h: VNNI multiplies unsigned bytes with signed ones and adds up four neighbours, so
// weights are made unsigned (q + 128, q + 8), and activations are two planes, 256 h + l.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int64_t kAhead = 4096;         // bytes; measured on Zen 4, into the second-level cache: 3 to 16 KiB are alike, less is slower
constexpr int64_t kFour = 8, kRow = 4;   // four numbers of R rows: R times four h, R times four l
typedef uint8_t vub __attribute__((vector_size(64)));

template <bool nibbles>
constexpr int32_t kZero = nibbles ? 8 : 128;

// W numbers of one of so many rows.
STATESCAN_INLINE void put(vi v, char* to, int64_t together) {
    typedef int8_t quarter __attribute__((vector_size(W)));
    const vi h = (v + 128) >> 8;
    const quarter first = __builtin_convertvector(h, quarter), second = __builtin_convertvector(v - (h << 8), quarter);
    for (int64_t i = 0; i < W; i += kRow, to += together * kFour) {
        memcpy(to, reinterpret_cast<const char*>(&first) + i, kRow);
        memcpy(to + together * kRow, reinterpret_cast<const char*>(&second) + i, kRow);
    }
}

// sum + weight * four numbers
STATESCAN_INLINE vi dot(vi sum, vub weight, const char* four) {
    int32_t x;
    memcpy(&x, four, sizeof x);
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weight, _mm512_set1_epi32(x));
}

// 16 outputs of R rows: a weight is read and taken apart once for all rows.
template <bool nibbles, int R>
STATESCAN_INLINE void dots(const char* q, const char* scale, const Activations& a, int64_t count, int64_t group, bool ask, float (*sums)[16]) {
    const char* x = a.numbers;
    vf total[R] = {};
    for (int64_t g = 0; g < count; ++g) {
        vi h[R] = {}, l[R];
        for (int i = 0; i < R; ++i) l[i] = vi{} - a.offset[g * R + i];
#pragma GCC unroll 4
        for (int64_t k = 0; k < (nibbles ? group / 2 : group); k += 4, q += 64, x += R * kFour) {
            vub v;
            memcpy(&v, q, sizeof v);
            if (ask) __builtin_prefetch(q + kAhead, 0, 2);
            const vub weight = nibbles ? v & 15 : v ^ 128, high = (vub)_mm512_srli_epi16((__m512i)v, 4) & 15;
            for (int i = 0; i < R; ++i) {
                h[i] = dot(h[i], weight, x + i * kRow);
                l[i] = dot(l[i], weight, x + (R + i) * kRow);
            }
            for (int i = 0; nibbles && i < R; ++i) {
                const char* other = x + group / 8 * R * kFour;
                h[i] = dot(h[i], high, other + i * kRow);
                l[i] = dot(l[i], high, other + (R + i) * kRow);
            }
        }
        if (nibbles) x += group / 8 * R * kFour;
        const vf s = from_bf16(scale + 32 * g);
        for (int i = 0; i < R; ++i) total[i] += __builtin_convertvector((h[i] << 8) + l[i], vf) * (s * a.step[g * R + i]);
    }
    for (int i = 0; i < R; ++i) store(sums[i], total[i]);
}

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
