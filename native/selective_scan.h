// Shared by the forward and the backward of the selective scan. A tile is kTile channels of one group and one batch row; lanes are
// channels. Scratch rows hold kTile channels; lanes beyond the tile's width hold a step over zeros.
#pragma once
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t T = kScanChunk;
constexpr int64_t R = kTile;

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

// What a tile keeps from position to position.
struct ScanMemory {
    float *A, *h, *origin;      // (N, R): A * log2(e), the state, the state after a reset
    float *D, *bias, *steepest;  // (R,); the largest |A| * log2(e) of the channel

    static int64_t bytes(int64_t n) { return 4 * (3 * n * R + 3 * R); }
    void take(Arena& arena, int64_t n) {
        A = arena.floats(n * R); h = arena.floats(n * R); origin = arena.floats(n * R);
        D = arena.floats(R); bias = arena.floats(R); steepest = arena.floats(R);
    }
};

// The inputs of one position.
struct ScanRow {
    float *x, *d, *u, *y, *slope;  // (R,): d the step, u = d x, y = D x; slope: of the step by the raw one, if asked for
    float *B, *C;                  // (N,)

    static int64_t bytes(int64_t n) { return 4 * (5 * R + 2 * (n + 2 * W)) + 2 * 64; }
    void take(Arena& arena, int64_t n) {
        x = arena.floats(R); d = arena.floats(R); u = arena.floats(R); y = arena.floats(R); slope = arena.floats(R);
        B = arena.floats(ceil_to(n, W)); C = arena.floats(ceil_to(n, W));
    }
};

// (channels, N) with any strides to (N, R)
static inline void gather_state(const View& v, const ScanTile& tile, int64_t n, float* out, float scale) {
    zero(out, n * R);
    if (v.stride[2] == 1) {
        transpose(v.f(tile.b, tile.e), tile.width, n, v.stride[1], out, R);
    } else {
        for (int64_t c = 0; c < tile.width; ++c) {
            const float* from = v.f(tile.b, tile.e + c);
            for (int64_t i = 0; i < n; ++i) out[i * R + c] = from[i * v.stride[2]];
        }
    }
    if (scale != 1.0f)
        for (int64_t i = 0; i < n * R; i += W) store(out + i, load(out + i) * scale);
}

static inline void scatter_state(const View& v, const ScanTile& tile, int64_t n, const float* in) {
    if (v.stride[2] == 1) return transpose(in, n, tile.width, R, v.f(tile.b, tile.e), v.stride[1]);
    for (int64_t c = 0; c < tile.width; ++c) {
        float* to = v.f(tile.b, tile.e + c);
        for (int64_t i = 0; i < n; ++i) to[i * v.stride[2]] = in[i * R + c];
    }
}

static inline void scan_rows(const SelectiveScan& a, const ScanTile& tile, ScanMemory& s) {
    zero(s.D, R);
    zero(s.bias, R);
    if (a.D) load_row(a.D.at(tile.e), kFloat, tile.width, s.D);
    if (a.bias) load_row(a.bias.at(tile.e), kFloat, tile.width, s.bias);
}

static inline void scan_memory(const SelectiveScan& a, const ScanTile& tile, ScanMemory& s) {
    View matrix = a.A;  // (E, N) seen as (1, E, N)
    matrix.stride[2] = a.A.stride[1];
    matrix.stride[1] = a.A.stride[0];
    matrix.stride[0] = 0;
    gather_state(matrix, tile, a.n, s.A, kLog2e);
    if (a.reset_to) gather_state(a.reset_to, tile, a.n, s.origin, 1.0f);
    scan_rows(a, tile, s);
    for (int64_t i = 0; i < R; i += W) {
        vf most = splat(0);
        for (int64_t k = 0; k < a.n; ++k) {
            const vf size = abs(load(s.A + k * R + i));
            most = (size <= most) | (most != most) ? most : size;  // NaN stays: its channel is never inside
        }
        store(s.steepest + i, most);
    }
}

// Reads the inputs of an existing position; raw: its steps where they are not in memory. Whether every exponent lies where exp2_inside() holds.
template <bool with_slope = false>
static inline bool scan_row(const SelectiveScan& a, const ScanTile& tile, const ScanMemory& s, int64_t t, const ScanRow& row,
                            const float* raw = nullptr) {
    load_row(a.B.at(tile.b, t, tile.g), a.B.type, a.n, row.B);
    load_row(a.C.at(tile.b, t, tile.g), a.C.type, a.n, row.C);
    const float* xs = floats(a.x.at(tile.b, t, tile.e), a.x.type, tile.width, row.x);
    if (!raw) raw = floats(a.delta.at(tile.b, t, tile.e), a.delta.type, tile.width, row.d);
    const float interval = a.line.time(tile.b, t);
    vi inside = vi{} - 1;
    for (int64_t i = 0; i < tile.vectors * W; i += W) {
        vf step = load(raw + i) + load(s.bias + i), slope = splat(1.0f);
        if (a.softplus) step = with_slope ? softplus(step, slope) : softplus(step);
        step = step * interval;
        if (with_slope) store(row.slope + i, slope * interval);
        const vf x_i = load(xs + i);
        inside &= abs(step) * load(s.steepest + i) < splat(126.0f);
        store(row.d + i, step);
        store(row.u + i, step * x_i);
        store(row.y + i, load(s.D + i) * x_i);
    }
    return all(inside);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
