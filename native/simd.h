// Vectors of W floats and the functions on them, for one instruction set.
#pragma once
#include <stdint.h>
#include <string.h>

#include <initializer_list>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "parallel.h"

#ifndef STATESCAN_ISA
#error "compile the kernels with -DSTATESCAN_ISA=baseline, avx2 or avx512"
#endif

namespace statescan {
namespace STATESCAN_ISA {

#if defined(__AVX512F__)
constexpr int64_t W = 16;
#elif defined(__AVX2__)
constexpr int64_t W = 8;
#else
constexpr int64_t W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

static inline vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf splat(float s) { return vf{} + s; }

// b where either is NaN: what x86's instruction does, but compilers do not recognise it in the expression.
#if defined(__AVX512F__)
static inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
static inline vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE2__)
static inline vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
static inline vf min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
#else
static inline vf max(vf a, vf b) { return a > b ? a : b; }
static inline vf min(vf a, vf b) { return a < b ? a : b; }
#endif

static inline vf abs(vf v) { return (vf)((vi)v & 0x7fffffff); }

// Whether a comparison holds in every lane.
STATESCAN_INLINE bool all(vi condition) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)condition) == 0xffff;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)condition) == 0xff;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)condition) == 0xf;
#else
    for (int64_t i = 0; i < W; ++i)
        if (condition[i] == 0) return false;
    return true;
#endif
}

// 2^t for t within [-126, 127], relative error below 2e-7, exact at integers.
STATESCAN_INLINE vf exp2_inside(vf t) {
#if defined(__AVX512F__)
    const vf whole = (vf)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf f = t - whole;
#else
    const vf shifted = t + 12582912.0f;  // 1.5 * 2^23: the low bits now hold the nearest integer
    const vf f = t - (shifted - 12582912.0f);
#endif
    vf p = splat(0.0013264727206376316f);
    p = p * f + 0.009671512654796002f;
    p = p * f + 0.055507337433688936f;
    p = p * f + 0.24022242085142126f;
    p = p * f + 0.6931469775990168f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

// 2^t with t held within [-126, 127]; NaN stays NaN.
STATESCAN_INLINE vf exp2(vf t) { return exp2_inside(max(splat(-126.0f), min(splat(127.0f), t))); }

constexpr float kLog2e = 1.4426950408889634f;
static inline vf exp(vf v) { return exp2(v * kLog2e); }
static inline vf sigmoid(vf v) { return 1.0f / (1.0f + exp(-v)); }

// log(1 + u) for u in [0, 1], relative error below 2e-7; no division.
static inline vf log1p(vf u) {
    vf p = splat(0.005364810582250357f);
    p = p * u - 0.030065739527344704f;
    p = p * u + 0.07920445501804352f;
    p = p * u - 0.13753795623779297f;
    p = p * u + 0.19153651595115662f;
    p = p * u - 0.24857163429260254f;
    p = p * u + 0.3332132399082184f;
    p = p * u - 0.49999648332595825f;
    p = p * u + 1.0f;
    return p * u;
}

static inline vf softplus(vf v) {
    return max(splat(0.0f), v) + log1p(exp(min(v, -v)));
}

// The same bits, and its slope, sigmoid(v).
static inline vf softplus(vf v, vf& slope) {
    const vf e = exp(min(v, -v)), upper = 1.0f / (1.0f + e);
    slope = v >= splat(0.0f) ? upper : e * upper;
    return max(splat(0.0f), v) + log1p(e);
}

// sin and cos for x within [0, 2 pi], absolute error below 2e-7.
STATESCAN_INLINE void sincos(vf x, vf& s, vf& c) {
    const vf shifted = x * 0.6366197723675814f + 12582912.0f;  // 1.5 * 2^23: the low bits now hold the nearest quarter turn
    const vi quarter = (vi)shifted;
    const vf n = shifted - 12582912.0f;
    const vf r = (x - n * 1.5703125f) - n * 4.838267948966e-4f;  // pi / 2 in two parts
    const vf r2 = r * r;
    vf p = splat(-1.9515295891e-4f);
    p = p * r2 + 8.3321608736e-3f;
    p = p * r2 - 1.6666654611e-1f;
    const vf sine = p * r2 * r + r;
    p = splat(2.443315711809948e-5f);
    p = p * r2 - 1.388731625493765e-3f;
    p = p * r2 + 4.166664568298827e-2f;
    const vf cosine = p * r2 * r2 - 0.5f * r2 + 1.0f;
    const vi odd = (quarter & 1) != 0;
    const vi s_sign = (quarter & 2) << 30, c_sign = ((quarter + 1) & 2) << 30;
    s = (vf)((vi)(odd ? cosine : sine) ^ s_sign);
    c = (vf)((vi)(odd ? sine : cosine) ^ c_sign);
}

// Compilers widen a vector of 16-bit integers in halves, at twice the cost of the instruction.
static inline vf from_bf16(const char* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

// The vector in a register, where several products share it: compilers make it each one's operand in memory, and then loads are what limits.
template <int shared, typename V>
STATESCAN_INLINE V keep(V v) {
#if defined(__AVX512F__)
    if (shared > 1) asm("" : "+v"(v));
#endif
    return v;
}

// Round to nearest even; NaN stays NaN.
static inline void to_bf16(char* p, vf v) {
    const vu u = (vu)v;
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const vu chosen = v == v ? rounded : vu{} + 0x7fc0u;
    const vh h = __builtin_convertvector(chosen, vh);
    memcpy(p, &h, sizeof h);
}

// A row of `count` numbers into floats; the rest up to a multiple of W becomes zero.
static inline void load_row(const char* p, int32_t type, int64_t count, float* out) {
    int64_t i = 0;
    if (type == kFloat) {
        for (; i + W <= count; i += W) store(out + i, load(reinterpret_cast<const float*>(p) + i));
    } else {
        for (; i + W <= count; i += W) store(out + i, from_bf16(p + 2 * i));
    }
    if (i == count) return;
    char rest[W * 4] = {};
    const int64_t size = type == kFloat ? 4 : 2;
    memcpy(rest, p + i * size, static_cast<size_t>((count - i) * size));
    store(out + i, type == kFloat ? load(reinterpret_cast<const float*>(rest)) : from_bf16(rest));
}

static inline float number(const View& v, int64_t i, int64_t j, int64_t k, int64_t l = 0) {
    float out[W];
    load_row(v.at(i, j, k, l), v.type, 1, out);
    return out[0];
}

static inline void store_row(char* p, int32_t type, int64_t count, const float* in) {
    int64_t i = 0;
    if (type == kFloat) {
        memcpy(p, in, static_cast<size_t>(count * 4));
        return;
    }
    for (; i + W <= count; i += W) to_bf16(p + 2 * i, load(in + i));
    if (i == count) return;
    char rest[W * 2];
    to_bf16(rest, load(in + i));  // rows of scratch are whole vectors
    memcpy(p + 2 * i, rest, static_cast<size_t>((count - i) * 2));
}

// A row as floats: where it lies, or in scratch if it lies otherwise.
static inline const float* floats(const char* row, int32_t type, int64_t count, float* scratch) {
    if (type == kFloat && count % W == 0) return reinterpret_cast<const float*>(row);
    load_row(row, type, count, scratch);
    return scratch;
}

static inline void store_number(const View& v, char* at, float value) {
    const float out[W] = {value};
    store_row(at, v.type, 1, out);
}

// Asks for the row that comes a few positions later: rows lie a page or more apart, where the hardware does not look ahead. Into the
// second-level cache: their distance is often a multiple of a large power of two, and a few such rows evict each other from the first.
// Inlined by force: GCC drops calls of a function that does nothing but this.
constexpr int64_t kAhead = 8;
template <int for_writing = 0>
STATESCAN_INLINE void prefetch_row(const View& v, const char* row, int64_t count, int64_t ahead = kAhead) {
    const char* p = row + ahead * v.stride[1] * v.bytes();
    for (int64_t i = 0; i < count * v.bytes(); i += 64) __builtin_prefetch(p + i, for_writing, 2);
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline bool amd() {
#if defined(__x86_64__) || defined(_M_X64)
    static const bool is = __builtin_cpu_is("amd");
    return is;
#else
    return false;
#endif
}

// Brings rows [first, last) near: `count` numbers from element e on. Rows lie a page or more apart, where the hardware does not look
// ahead; loads side by side wait for memory once instead of once a row. Asks for the rows after them as well, which takes a sixth off a long scan
// on an Intel; asking alone gained nothing on a Zen.
constexpr int64_t kTouch = 8;  // rows at a time
static inline void touch_rows(const View& v, int64_t b, int64_t first, int64_t last, int64_t e, int64_t count) {
    if (!v) return;
    const int64_t bytes = count * v.bytes();
    for (int64_t t = first; t < last; ++t) {
        const volatile char* row = v.at(b, t, e);
        for (int64_t i = 0; i < bytes; i += 64) {
            (void)row[i];
            __builtin_prefetch(v.at(b, t + kTouch, e) + i, 0, 2);
        }
    }
}

// The same for a loop over rows that stands at row t: an Intel is faster by asking alone, four rows ahead; a Zen is not.
STATESCAN_INLINE void bring_rows(std::initializer_list<const View*> views, int64_t b, int64_t t, int64_t last, int64_t e, int64_t count) {
    const bool touch = amd();
    if (touch && t % kTouch != 0) return;
    for (const View* v : views) {
        if (!*v) continue;
        if (touch) touch_rows(*v, b, t, least(last, t + kTouch), e, count);
        else prefetch_row(*v, v->at(b, t, e), count, 4);
    }
}

static inline void zero(float* p, int64_t count) { memset(p, 0, static_cast<size_t>(count * 4)); }
static inline int64_t ceil_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline float sum(vf v) {  // upper half of the lanes onto the lower, until one is left
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 part = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    part = _mm_add_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_add_ss(part, _mm_movehdup_ps(part)));
#else
    float lane[W];
    store(lane, v);
    for (int64_t half = W / 2; half >= 1; half /= 2)
        for (int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
#endif
}

// Lane i: sum(v[i]). At once: a vector of each step holds the halves of twice as many as of the step before.
STATESCAN_INLINE vf sums_of(const vf (&v)[W]) {
#if defined(__AVX512F__)
    __m512 half[8], quarter[4], pair[2];
    for (int i = 0; i < 8; ++i) {  // lane 4 i + j is to come from v[4 i + j]: they meet in the order of j
        const __m512 a = (__m512)v[8 * (i % 2) + i / 2], b = (__m512)v[8 * (i % 2) + i / 2 + 4];
        half[i] = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    }
    for (int i = 0; i < 4; ++i)
        quarter[i] = _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd);
    for (int i = 0; i < 2; ++i) {
        const __m512d a = _mm512_castps_pd(quarter[2 * i]), b = _mm512_castps_pd(quarter[2 * i + 1]);
        pair[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
    return (vf)(_mm512_shuffle_ps(pair[0], pair[1], 0x88) + _mm512_shuffle_ps(pair[0], pair[1], 0xdd));
#else
    float lane[W];
    for (int64_t i = 0; i < W; ++i) lane[i] = sum(v[i]);
    return load(lane);
#endif
}

static inline float dot(const float* a, const float* b, int64_t width) {
    vf total = splat(0);
    float rest = 0;
    int64_t k = 0;
    for (; k + W <= width; k += W) total += load(a + k) * load(b + k);
    for (; k < width; ++k) rest += a[k] * b[k];
    return sum(total) + rest;
}

// N vectors, one by one: compilers keep an array that is filled in a loop in memory.
template <int N> struct Lanes {
    vf v{};
    Lanes<N - 1> rest;

    STATESCAN_INLINE void take(const float* p) { v = load(p); rest.take(p + W); }
    STATESCAN_INLINE void put(float* p) const { store(p, v); rest.put(p + W); }
    STATESCAN_INLINE void scale(float by) { v *= by; rest.scale(by); }
    STATESCAN_INLINE void add(float by, const Lanes& other) { v += by * other.v; rest.add(by, other.rest); }
    STATESCAN_INLINE void subtract_from(float* p) const { store(p, load(p) - v); rest.subtract_from(p + W); }
};
template <> struct Lanes<0> {
    STATESCAN_INLINE void take(const float*) {}
    STATESCAN_INLINE void put(float*) const {}
    STATESCAN_INLINE void scale(float) {}
    STATESCAN_INLINE void add(float, const Lanes&) {}
    STATESCAN_INLINE void subtract_from(float*) const {}
};

// Hands out pieces of a thread's scratch.
struct Arena {
    char* next;
    float* floats(int64_t count) {
        float* p = reinterpret_cast<float*>(next);
        next += ceil_to(count * 4, 64);
        return p;
    }
};

}  // namespace STATESCAN_ISA
}  // namespace statescan
