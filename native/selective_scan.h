// Shared by the forward and the backward of the selective scan: a tile of channels within one group, one chunk of positions at a time.
// Lanes are channels. Scratch rows hold kTile channels; lanes beyond the tile's width hold zeros.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t T = kChunk;
constexpr int64_t R = kTile;
constexpr int64_t kAhead = 8;

struct ScanTile {
    int64_t b, g, e, width, vectors, index;  // first channel, channels, vectors; index: b's tiles one after the other
};

static inline int64_t tiles_per_group(const SelectiveScan& a) { return (a.width / a.groups + R - 1) / R; }

static inline ScanTile scan_tile(const SelectiveScan& a, int64_t tile) {
    const int64_t per_group = tiles_per_group(a), group_width = a.width / a.groups;
    ScanTile t;
    t.index = tile;
    t.b = tile / (per_group * a.groups);
    t.g = tile / per_group % a.groups;
    const int64_t first = tile % per_group * R;
    t.e = t.g * group_width + first;
    t.width = least(R, group_width - first);
    t.vectors = (t.width + W - 1) / W;
    return t;
}

// Scratch of one chunk.
struct ScanChunk {
    float *d, *u, *y;       // (T, R): step, step * x, output before the gate
    float *B, *C;           // (T, N)
    float *A, *h, *origin;  // (N, R): A * log2(e), the state, the state after a reset
    float *D, *bias, *row, *row2;  // (R,)

    static int64_t bytes(int64_t n) { return 4 * (3 * T * R + 2 * T * n + 3 * n * R + 4 * R) + 64 * 12; }
    void take(Arena& arena, int64_t n) {
        d = arena.floats(T * R); u = arena.floats(T * R); y = arena.floats(T * R);
        B = arena.floats(T * n); C = arena.floats(T * n);
        A = arena.floats(n * R); h = arena.floats(n * R); origin = arena.floats(n * R);
        D = arena.floats(R); bias = arena.floats(R); row = arena.floats(R); row2 = arena.floats(R);
    }
};

// (channels, N) with any strides to (N, R)
static inline void gather_state(const View& v, const ScanTile& tile, int64_t n, float* out, float scale) {
    zero(out, n * R);
    for (int64_t c = 0; c < tile.width; ++c) {
        const float* from = v.f(tile.b, tile.e + c);
        for (int64_t i = 0; i < n; ++i) out[i * R + c] = from[i * v.stride[2]] * scale;
    }
}

static inline void scatter_state(const View& v, const ScanTile& tile, int64_t n, const float* in) {
    for (int64_t c = 0; c < tile.width; ++c) {
        float* to = v.f(tile.b, tile.e + c);
        for (int64_t i = 0; i < n; ++i) to[i * v.stride[2]] = in[i * R + c];
    }
}

static inline void scan_rows(const SelectiveScan& a, const ScanTile& tile, ScanChunk& s) {
    zero(s.D, R);
    zero(s.bias, R);
    if (a.D) load_row(a.D.at(tile.e), kFloat, tile.width, s.D);
    if (a.bias) load_row(a.bias.at(tile.e), kFloat, tile.width, s.bias);
}

static inline void scan_constants(const SelectiveScan& a, const ScanTile& tile, ScanChunk& s) {
    View matrix = a.A;  // (E, N) seen as (1, E, N)
    matrix.stride[2] = a.A.stride[1];
    matrix.stride[1] = a.A.stride[0];
    matrix.stride[0] = 0;
    gather_state(matrix, tile, a.n, s.A, kLog2e);
    if (a.reset_to) gather_state(a.reset_to, tile, a.n, s.origin, 1.0f);
    scan_rows(a, tile, s);
}

// Reads the inputs of positions [t0, t0 + count): a position that does not exist becomes a step of zero with zero input,
// which holds the state exactly, whatever stands there.
static inline void scan_inputs(const SelectiveScan& a, const ScanTile& tile, ScanChunk& s, int64_t t0, int64_t count) {
    const int64_t lanes = tile.vectors * W;
    for (int64_t t = 0; t < count; ++t) {
        float *d = s.d + t * R, *u = s.u + t * R, *y = s.y + t * R, *B = s.B + t * a.n, *C = s.C + t * a.n;
        if (!a.line.exists(tile.b, t0 + t)) {
            zero(d, lanes); zero(u, lanes); zero(y, lanes); zero(B, a.n); zero(C, a.n);
            continue;
        }
        float rest[W];
        const char* rows[2] = {a.B.at(tile.b, t0 + t, tile.g), a.C.at(tile.b, t0 + t, tile.g)};
        float* to[2] = {B, C};
        for (int k = 0; k < 2; ++k) {
            const View& v = k == 0 ? a.B : a.C;
            const int64_t whole = a.n / W * W;
            load_row(rows[k], v.type, whole, to[k]);
            if (whole < a.n) {
                load_row(rows[k] + whole * v.bytes(), v.type, a.n - whole, rest);
                memcpy(to[k] + whole, rest, static_cast<size_t>((a.n - whole) * 4));
            }
        }
        const char *x_row = a.x.at(tile.b, t0 + t, tile.e), *delta_row = a.delta.at(tile.b, t0 + t, tile.e);
        prefetch_row(a.x, x_row, kAhead, tile.width);
        prefetch_row(a.delta, delta_row, kAhead, tile.width);
        load_row(x_row, a.x.type, tile.width, s.row);
        load_row(delta_row, a.delta.type, tile.width, d);
        const float interval = a.line.time(tile.b, t0 + t);
        for (int64_t i = 0; i < lanes; i += W) {
            vf step = load(d + i) + load(s.bias + i);
            if (a.softplus) step = softplus(step);
            step = step * interval;
            const vf x = load(s.row + i);
            store(d + i, step);
            store(u + i, step * x);
            store(y + i, load(s.D + i) * x);
        }
        for (int64_t i = tile.width; i < lanes; ++i) d[i] = u[i] = y[i] = 0;
    }
}

// Calls fn(first, last, from_reset) for the stretches of [0, count) between resets, in order.
template <class Fn>
static inline void stretches(const Line& line, int64_t b, int64_t t0, int64_t count, Fn fn) {
    int64_t first = 0;
    bool from_reset = line.resets(b, t0);
    for (int64_t t = 1; t <= count; ++t) {
        if (t < count && !line.resets(b, t0 + t)) continue;
        fn(first, t, from_reset);
        first = t;
        from_reset = true;
    }
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
