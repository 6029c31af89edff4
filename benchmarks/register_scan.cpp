// Two ceilings of this machine, measured by code that does nothing else: a selective scan whose operands never leave registers and the first
// cache, and a read of memory. Compiled when the benchmark runs; called by one thread a core at a time.
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

static inline Floats exp2_of(Floats t) {
#if defined(__AVX512F__)
    const Floats whole = (Floats)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Floats f = t - whole;
#else
    const Floats magic = Floats{} + 12582912.0f;
    Floats shifted = t + magic;
    Floats f = t - (shifted - magic);
#endif
    Floats p = 1.3333558e-3f * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return (Floats)((Ints)p + ((Ints)shifted << 23));
#endif
}

// Positions run one after another; kStates recurrences at a time, each a vector of channels.
template <int kStates>
static float scan(int64_t positions) {
    float decay[kStates], in[kStates], out[kStates];
    for (int n = 0; n < kStates; ++n) decay[n] = -0.01f * (n + 1), in[n] = 0.5f + n, out[n] = 1.0f / (n + 1);
    Floats h[kStates], x = Floats{} + 0.25f, delta = Floats{} + 0.1f, sum = {};
    std::memset(h, 0, sizeof h);
    for (int64_t t = 0; t < positions; ++t) {
        asm volatile("" : "+m"(decay), "+m"(in), "+m"(out), "+x"(delta));  // every position's are new
        Floats moved = delta * x, y = {};
#pragma GCC unroll 16
        for (int n = 0; n < kStates; ++n) {
            h[n] = exp2_of(delta * decay[n]) * h[n] + moved * in[n];
            y += h[n] * out[n];
        }
        sum += y;
    }
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += sum[i];
    return total;
}

extern "C" {

// Updates made: positions x states x lanes. `states` is 2, 4, 8 or 16: how many recurrences run side by side.
double scan_updates(int64_t positions, int states, float* sink) {
    *sink = states == 2 ? scan<2>(positions) : states == 4 ? scan<4>(positions) : states == 8 ? scan<8>(positions) : scan<16>(positions);
    return double(positions) * (states == 2 || states == 4 || states == 8 ? states : 16) * kLanes;
}

float read_memory(const float* data, int64_t count) {
    Floats sums[8] = {};
    const int64_t step = 8 * kLanes;
    for (int64_t i = 0; i + step <= count; i += step) {
        for (int j = 0; j < 8; ++j) {
            Floats value;
            std::memcpy(&value, data + i + j * kLanes, sizeof value);
            sums[j] += value;
        }
    }
    float total = 0;
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < kLanes; ++i) total += sums[j][i];
    return total;
}

// The same numbers again and again: what a recurrent matrix costs at least.
float read_again(const float* data, int64_t count, int64_t times) {
    float total = 0;
    for (int64_t i = 0; i < times; ++i) {
        asm volatile("" ::: "memory");
        total += read_memory(data, count);
    }
    return total;
}
}
