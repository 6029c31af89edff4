// Products of a weight with a few rows of activations, as in decoding: the time is that of reading the weight once.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

// y[r, o] = sum_k W[o, k] x[r, k] + bias[o] for outputs [first, last). x and y are float32; strides in floats. The order of a sum depends
// on nothing but k: a row has the same bits alone and in any batch. `again`: this thread's last call had the same x and the same place in its
// scratch, so what was made of x there (16-bit numbers, for a quantised weight) serves again.
void product(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride,
             Arena& arena, bool again);

// Outputs a tile: enough tiles that threads share the work evenly. Outputs of a quantised weight lie in sixteens.
static inline int64_t product_tile(const Matrix& w) {
    return w.out >= 1024 ? 64 : least(64, ceil_to((w.out + 15) / 16, w.group ? 16 : 4));
}

static inline int64_t product_tiles(const Matrix& w) { return (w.out + product_tile(w) - 1) / product_tile(w); }

// Scratch that product() takes for so many rows.
int64_t product_scratch(const Matrix& w, int64_t rows);

}  // namespace STATESCAN_ISA
}  // namespace statescan
