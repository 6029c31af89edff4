// Products of small matrices in scratch: rows are whole vectors, and sums stay in registers.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

// Floats of a row: rows a power of two apart would evict each other.
static inline int64_t padded(int64_t width) {
    const int64_t whole = ceil_to(width, W);
    return whole % 64 == 0 ? whole + 16 : whole;
}

// Which entries of a product count: all; those of a lower triangular A; of its transpose; the lower triangle of the result. Triangles may be of
// squares, `corner` wide, in place of numbers.
enum class Shape { full, lower, upper, out_lower };

// Vectors of columns that six rows take at a time: as many sums as the registers hold, because each number of A is read once for all of them.
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

template <int M, int V>
static inline void micro(int64_t k0, int64_t k1, const float* A, int64_t am, int64_t ak, const float* B, int64_t ldb, float* C, int64_t ldc) {
    vf c[M][V];
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) c[m][v] = load(C + m * ldc + v * W);
    for (int64_t k = k0; k < k1; ++k) {
        vf b[V];
        for (int v = 0; v < V; ++v) b[v] = load(B + k * ldb + v * W);
        for (int m = 0; m < M; ++m) {
            const float a = A[m * am + k * ak];
            for (int v = 0; v < V; ++v) c[m][v] += a * b[v];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) store(C + m * ldc + v * W, c[m][v]);
}

template <int V>
static inline void micro_rows(int64_t rows, int64_t k0, int64_t k1, const float* A, int64_t am, int64_t ak, const float* B, int64_t ldb,
                              float* C, int64_t ldc) {
    switch (rows) {
        case 6: micro<6, V>(k0, k1, A, am, ak, B, ldb, C, ldc); break;
        case 5: micro<5, V>(k0, k1, A, am, ak, B, ldb, C, ldc); break;
        case 4: micro<4, V>(k0, k1, A, am, ak, B, ldb, C, ldc); break;
        case 3: micro<3, V>(k0, k1, A, am, ak, B, ldb, C, ldc); break;
        case 2: micro<2, V>(k0, k1, A, am, ak, B, ldb, C, ldc); break;
        default: micro<1, V>(k0, k1, A, am, ak, B, ldb, C, ldc);
    }
}

// C (rows, columns) += A B; entry (m, k) of A is A[m * am + k * ak]; columns is a multiple of W.
static inline void multiply(Shape shape, int64_t rows, int64_t columns, int64_t depth, const float* A, int64_t am, int64_t ak, const float* B,
                            int64_t ldb, float* C, int64_t ldc, int64_t corner = 1) {
    for (int64_t n = 0, wide; n < columns; n += wide) {
        // A triangle of the result is cut out of narrow columns.
        const int64_t most = shape == Shape::out_lower ? 2 : kVectors, vectors = least(most, (columns - n) / W);
        wide = (vectors == 3 ? 2 : vectors) * W;
        for (int64_t m = 0; m < rows; m += 6) {
            const int64_t have = least(6, rows - m);
            const int64_t behind = ceil_to(m + have, corner);
            if (shape == Shape::out_lower && n >= behind) continue;
            const int64_t k0 = shape == Shape::upper ? m / corner * corner : 0, k1 = shape == Shape::lower ? least(depth, behind) : depth;
            const auto block = wide == kVectors * W ? micro_rows<kVectors> : wide == 2 * W ? micro_rows<2> : micro_rows<1>;
            block(have, k0, k1, A + m * am, am, ak, B + n, ldb, C + m * ldc + n, ldc);
        }
    }
}

// (rows, columns) to (columns, rows); blocks of 8 keep both sides in the cache.
static inline void transpose(const float* in, int64_t rows, int64_t columns, int64_t ldi, float* out, int64_t ldo) {
    for (int64_t r0 = 0; r0 < rows; r0 += 8)
        for (int64_t c0 = 0; c0 < columns; c0 += 8) {
            const int64_t r1 = least(rows, r0 + 8), c1 = least(columns, c0 + 8);
            int64_t r = r0;
#if defined(__SSE2__)
            for (; r + 4 <= r1; r += 4) {
                int64_t c = c0;
                for (; c + 4 <= c1; c += 4) {
                    const float* from = in + r * ldi + c;
                    float* to = out + c * ldo + r;
                    __m128 a0 = _mm_loadu_ps(from), a1 = _mm_loadu_ps(from + ldi), a2 = _mm_loadu_ps(from + 2 * ldi),
                           a3 = _mm_loadu_ps(from + 3 * ldi);
                    _MM_TRANSPOSE4_PS(a0, a1, a2, a3);
                    _mm_storeu_ps(to, a0);
                    _mm_storeu_ps(to + ldo, a1);
                    _mm_storeu_ps(to + 2 * ldo, a2);
                    _mm_storeu_ps(to + 3 * ldo, a3);
                }
                for (; c < c1; ++c)
                    for (int64_t i = r; i < r + 4; ++i) out[c * ldo + i] = in[i * ldi + c];
            }
#endif
            for (; r < r1; ++r)
                for (int64_t c = c0; c < c1; ++c) out[c * ldo + r] = in[r * ldi + c];
        }
}

// t (V) = S^T w over R rows of S; t is begun by the first rows.
template <int R>
static inline void read_rows(int64_t width, const float* s, const float* w, float* t, bool begin) {
    int64_t v = 0;
    for (; v + W <= width; v += W) {
        vf total = begin ? splat(0) : load(t + v);
        for (int64_t i = 0; i < R; ++i) total += w[i] * load(s + i * width + v);
        store(t + v, total);
    }
    for (; v < width; ++v) {
        float total = begin ? 0 : t[v];
        for (int64_t i = 0; i < R; ++i) total += w[i] * s[i * width + v];
        t[v] = total;
    }
}

static inline void read_state(int64_t keys, int64_t width, const float* s, const float* w, float* t) {
    int64_t c = 0;
    for (; c + 4 <= keys; c += 4) read_rows<4>(width, s + c * width, w + c, t, c == 0);
    for (; c < keys; ++c) read_rows<1>(width, s + c * width, w + c, t, c == 0);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
