#include "product.h"

#include "product_quantised.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

template <int type>
STATESCAN_INLINE vf weights(const char* row, int64_t k) {
    return type == kFloat ? load(reinterpret_cast<const float*>(row) + k) : from_bf16(row + 2 * k);
}

template <int type>
STATESCAN_INLINE float weight(const char* row, int64_t k) {
    if (type == kFloat) return reinterpret_cast<const float*>(row)[k];
    uint16_t half;
    memcpy(&half, row + 2 * k, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// What was measured to read a weight fastest for one row. AVX-512: output after output as one stream, asked for ahead and into the second-level
// cache; several streams, or lines asked for into the first, halve the rate of a Zen 4. Zen 3 (AVX2): four outputs side by side.
#if defined(__AVX512F__)
constexpr int kOutputs = 1, kCache = 2;
constexpr int kTogether = 4;  // outputs of several rows: as many sums as the registers hold
#else
constexpr int kOutputs = 4, kCache = 3;
constexpr int kTogether = 3;
#endif

// How far ahead one stream asks, in bytes: at most 2 KiB on a Zen 4; where memory lies further away 3 to 16 KiB are one as good as the other.
int64_t far(int64_t next) {
#if defined(__AVX512F__)
    if (!amd()) return 4096;
#endif
    return least(next, 2048);
}

// O outputs of R rows: O * R sums stay in registers. A weight's row is too short for the hardware to look ahead, so here we ask for the rows
// that come next: block `part` of `parts` blocks of activations asks for its share of them, so that memory is busy all the while.
template <int type, int O, int R>
void dots(const Matrix& w, const float* x, int64_t x_stride, int64_t o, float* y, int64_t y_stride, int64_t part, int64_t parts) {
    constexpr int64_t size = type == kFloat ? 4 : 2, line = 64 / size;
    const char* row[O];
    for (int i = 0; i < O; ++i) row[i] = w.weight.at(o + i);
    const int64_t next = (O * w.weight.stride[0] + w.in * part / parts) * size, pace = 64 / parts;
    const int64_t ahead = O == 1 ? far(next) : next;
    vf sums[R * O];  // row by row
#pragma GCC unroll 16
    for (int i = 0; i < R * O; ++i) sums[i] = vf{};
    const auto step = [&](int64_t k) {
        vf v[O];
        for (int i = 0; i < O; ++i) v[i] = weights<type>(row[i], k);
        for (int r = 0; r < R; ++r) {
            const vf u = keep<O>(load(x + r * x_stride + k));
            for (int i = 0; i < O; ++i) sums[r * O + i] += v[i] * u;
        }
    };
    int64_t k = 0;
    for (; k + line <= w.in; k += line) {
        for (int i = 0; i < O; ++i) __builtin_prefetch(row[i] + ahead + k / line * pace, 0, kCache);
        for (int64_t j = 0; j < line; j += W) step(k + j);
    }
    for (; k + W <= w.in; k += W) step(k);
    float totals[R][O], bias[O];
    if constexpr (O * R == W) {
        store(totals[0], sums_of(sums));
    } else {
        for (int i = 0; i < R * O; ++i) totals[i / O][i % O] = sum(sums[i]);
    }
    for (int i = 0; i < O && k < w.in; ++i)  // one by one: side by side, compilers round some of these products
        for (int r = 0; r < R; ++r) {
            float total = totals[r][i];
            for (int64_t j = k; j < w.in; ++j) total += weight<type>(row[i], j) * x[r * x_stride + j];
            totals[r][i] = total;
        }
    for (int i = 0; i < O; ++i) bias[i] = w.bias ? *w.bias.f(o + i) : 0.0f;
    for (int r = 0; r < R; ++r)
        for (int i = 0; i < O; ++i) y[r * y_stride + o + i] = totals[r][i] + bias[i];
}

template <int type, int O>
void outputs(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t o, float* y, int64_t y_stride) {
    const int64_t parts = rows / 4 + rows % 4 / 2 + rows % 2;
    int64_t r = 0, part = 0;
    for (; r + 4 <= rows; r += 4) dots<type, O, 4>(w, x + r * x_stride, x_stride, o, y + r * y_stride, y_stride, part++, parts);
    for (; r + 2 <= rows; r += 2) dots<type, O, 2>(w, x + r * x_stride, x_stride, o, y + r * y_stride, y_stride, part++, parts);
    for (; r < rows; ++r) dots<type, O, 1>(w, x + r * x_stride, x_stride, o, y + r * y_stride, y_stride, part++, parts);
}

template <int type>
void floats(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride) {
    int64_t o = first;
    if (rows == 1)
        for (; o + kOutputs <= last; o += kOutputs) outputs<type, kOutputs>(w, x, x_stride, rows, o, y, y_stride);
    for (; o + kTogether <= last; o += kTogether) outputs<type, kTogether>(w, x, x_stride, rows, o, y, y_stride);
    for (; o < last; ++o) outputs<type, 1>(w, x, x_stride, rows, o, y, y_stride);
}

}  // namespace

void product(const Matrix& w, const float* x, int64_t x_stride, int64_t rows, int64_t first, int64_t last, float* y, int64_t y_stride,
             Arena& arena, bool again) {
    if (w.weight.type == kInt8 || w.weight.type == kInt4) product_quantised(w, x, x_stride, rows, first, last, y, y_stride, arena, again);
    else if (w.weight.type == kFloat) floats<kFloat>(w, x, x_stride, rows, first, last, y, y_stride);
    else floats<kBFloat16>(w, x, x_stride, rows, first, last, y, y_stride);
}

int64_t product_scratch(const Matrix& w, int64_t rows) {
    return w.weight.type == kInt8 || w.weight.type == kInt4 ? product_quantised_scratch(w, rows) : 64;
}

namespace {

// Outputs a tile: a few tiles a thread, for each makes its own integers of quantised activations.
int64_t piece(const Product& a) { return ceil_to(a.matrix.out / (8 * a.threads), product_tile(a.matrix)) + product_tile(a.matrix); }

void run(const void* context, int64_t index, char* scratch) {
    const Product& a = *static_cast<const Product*>(context);
    Arena arena{scratch};
    const int64_t first = index * piece(a), last = least(a.matrix.out, first + piece(a));
    product(a.matrix, a.x.f(0), a.x.stride[0], a.rows, first, last, a.y.f(0), a.y.stride[0], arena, false);
}

}  // namespace

void product(const Product& a) { parallel(a.threads, (a.matrix.out + piece(a) - 1) / piece(a), product_scratch(a.matrix, a.rows), run, &a); }

}  // namespace STATESCAN_ISA
}  // namespace statescan
