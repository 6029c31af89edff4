// Blocks of positions with one decay a head, which log-linear attention and the mesa layer take as small matrices. Factors of decay are products
// of their own, row by row: none is divided, and no sums are subtracted.
#pragma once
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t kBlock = 64;
constexpr int64_t kLine = kBlock + 16;  // rows a power of two apart would evict each other

// From logarithms, (n,) and zeros up to whole vectors: the decays, from before the block to behind each row, and from each row to the block's end.
static inline void block_decays(int64_t n, float* decay, float* entry, float* left) {
    for (int64_t i = 0; i < n; i += W) store(decay + i, exp(load(decay + i)));
    float since = 1, until = 1;
    for (int64_t i = 0; i < n; ++i) entry[i] = since *= decay[i];
    for (int64_t i = n - 1; i >= 0; --i) {
        left[i] = until;
        until *= decay[i];
    }
}

// What is left of earlier rows after one more decay; next to nothing becomes nothing, for such numbers are slow.
static inline void decay_further(float* row, float by, int64_t columns) {
    for (int64_t j = 0; j < columns; j += W) {
        const vf w = load(row + j) * by;
        store(row + j, w <= splat(1e-30f) ? splat(0) : w);
    }
}

static inline void add_row(const float* in, float by, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += W) store(out + i, load(out + i) + load(in + i) * by);
}

static inline void scale_row(const float* in, float by, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += W) store(out + i, load(in + i) * by);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
