// Weights and activations as 16-bit words, for product_quantised.h: neighbouring products are summed by one instruction.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int64_t L = 2 * W;             // 16-bit lanes: four numbers of L / 4 outputs
constexpr int64_t kAhead = 2048;         // bytes
constexpr int64_t kFour = 8, kRow = 8;   // four numbers of R rows
typedef int16_t vs __attribute__((vector_size(L * 2)));
typedef int8_t vb __attribute__((vector_size(L)));
typedef uint8_t vub __attribute__((vector_size(L)));

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

// Sums of neighbours: those of a, then those of b.
STATESCAN_INLINE vi pairs(vi a, vi b) {
#if defined(__AVX2__)
    return (vi)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xd8);
#elif defined(__SSE2__)
    return (vi)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88) + (vi)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd);
#else
    vi v;
    for (int64_t i = 0; i < W / 2; ++i) v[i] = a[2 * i] + a[2 * i + 1], v[W / 2 + i] = b[2 * i] + b[2 * i + 1];
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
constexpr int32_t kZero = nibbles ? 8 : 0;

// W numbers of one of so many rows.
STATESCAN_INLINE void put(vi v, char* to, int64_t together) {
    typedef int16_t half __attribute__((vector_size(L)));
    const half words = __builtin_convertvector(v, half);
    for (int64_t i = 0; i < W; i += 4, to += together * kFour) memcpy(to, reinterpret_cast<const char*>(&words) + 2 * i, kRow);
}

// Four numbers, for as many outputs as a vector has.
STATESCAN_INLINE vs fours(const char* p) {
    typedef int64_t wide __attribute__((vector_size(L * 2)));
    int64_t x;
    memcpy(&x, p, sizeof x);
    return (vs)(wide{} + x);
}

// 16 outputs of R rows, eight at a time (their sums stay in registers): a weight is read and widened once for all rows.
template <bool nibbles, int R>
STATESCAN_INLINE void dots(const char* q, const char* scale, const Activations& a, int64_t count, int64_t group, bool ask, float (*sums)[16]) {
    constexpr int64_t S = 32 / L, T = 8 / W;  // vectors of eight outputs' sums: in pairs, added up
    const int64_t bytes = nibbles ? group / 2 : group;
    const char* x = a.numbers;
    memset(sums, 0, R * sizeof *sums);
    for (int64_t g = 0; g < count; ++g, q += 16 * bytes, x += group / 4 * R * kFour)
        for (int64_t half = 0; half < 2; ++half) {
            vi part[R][S] = {};
            for (int64_t k = 0; k < bytes; k += 4) {
                if (ask && half == 0) __builtin_prefetch(q + 16 * k + kAhead);
                vs low[S], high[S];
                for (int64_t s = 0; s < S; ++s) {
                    const vs v = widen<nibbles>(q + 16 * k + 32 * half + s * L);
                    low[s] = nibbles ? v & 15 : v;
                    high[s] = v >> 4;
                }
                for (int i = 0; i < R; ++i) {
                    const vs one = fours(x + (k / 4 * R + i) * kFour);
                    for (int64_t s = 0; s < S; ++s) part[i][s] += madd(low[s], one);
                    if (!nibbles) continue;
                    const vs other = fours(x + ((k + bytes) / 4 * R + i) * kFour);
                    for (int64_t s = 0; s < S; ++s) part[i][s] += madd(high[s], other);
                }
            }
            for (int64_t t = 0; t < T; ++t) {
                const vf factor = from_bf16(scale + 32 * g + 16 * half + 2 * W * t);
                for (int i = 0; i < R; ++i) {
                    const vi sum = pairs(part[i][2 * t], part[i][2 * t + 1]) - a.offset[g * R + i];
                    float* to = sums[i] + 8 * half + W * t;
                    store(to, load(to) + __builtin_convertvector(sum, vf) * (factor * a.step[g * R + i]));
                }
            }
        }
}

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
