// The numbers that a quantised weight stands for, for products of many rows: product_quantised.h says how its bytes lie.
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kSide = 16;  // outputs a tile

// W bytes of one of 16 outputs, four of which stand together.
typedef int8_t bytes __attribute__((vector_size(W)));
STATESCAN_INLINE bytes gather(const char* q) {
    typedef int32_t fours __attribute__((vector_size(W)));
    fours v{};
    for (int64_t i = 0; i < W / 4; ++i) {
        int32_t four;
        memcpy(&four, q + 4 * kSide * i, sizeof four);
        v[i] = four;
    }
    return (bytes)v;
}

// Numbers k to k + W of a row of `in`, which may end before.
STATESCAN_INLINE void put(bytes q, float scale, float* row, int64_t k, int64_t in) {
    const vf values = __builtin_convertvector(__builtin_convertvector(q, vi), vf) * scale;
    if (k + W <= in) return store(row + k, values);
    float rest[W];
    store(rest, values);
    for (int64_t i = k; i < in; ++i) row[i] = rest[i - k];
}

template <bool nibbles>
void run(const void* context, int64_t index, char*) {
    const Dequantize& a = *static_cast<const Dequantize*>(context);
    const Matrix& w = a.matrix;
    const int64_t count = (w.in + w.group - 1) / w.group, size = nibbles ? w.group / 2 : w.group;
    const char *q = w.weight.at(0) + index * count * size * kSide, *scales = w.scale.at(0) + 2 * index * count * kSide;
    const int64_t outputs = least(kSide, w.out - index * kSide);
    for (int64_t g = 0; g < count; ++g, q += size * kSide, scales += 2 * kSide) {
        float scale[kSide];
        load_row(scales, kBFloat16, kSide, scale);
        for (int64_t o = 0; o < outputs; ++o) {
            float* row = a.y.f(index * kSide + o);
            for (int64_t k = 0; k < size; k += W) {
                const bytes v = gather(q + kSide * k + 4 * o);
                put(nibbles ? (v & 15) - 8 : v, scale[o], row, g * w.group + k, w.in);
                if (nibbles) put(((v >> 4) & 15) - 8, scale[o], row, g * w.group + size + k, w.in);
            }
        }
    }
}

}  // namespace

void dequantize(const Dequantize& a) {
    parallel(a.threads, (a.matrix.out + kSide - 1) / kSide, 64, a.matrix.weight.type == kInt4 ? run<true> : run<false>, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
