// Shared by the forward and the backward of ssd. A tile is a few heads of one group; it walks the chunks in order and works on small
// dense matrices in scratch: rows of B and C have Np floats, rows of x and of the state (kept as (N, P)) have Pp, both whole vectors.
#pragma once
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t T = kChunk;

struct SsdTile {
    int64_t b, g, head, heads, index;
};

static inline int64_t head_tiles(const Ssd& a) { return (a.heads / a.groups + kHeads - 1) / kHeads; }

static inline SsdTile ssd_tile(const Ssd& a, int64_t index) {
    const int64_t per_group = head_tiles(a), group_heads = a.heads / a.groups;
    SsdTile tile;
    tile.index = index;
    tile.b = index / (per_group * a.groups);
    tile.g = index / per_group % a.groups;
    tile.head = tile.g * group_heads + index % per_group * kHeads;
    tile.heads = least(kHeads, (tile.g + 1) * group_heads - tile.head);
    return tile;
}

// The steps of one head in one chunk, and the decays that follow from them.
struct Steps {
    float *raw, *positive, *d;       // biased; after softplus and clamp; times the interval
    float *high, *low;               // the running sum of d A, as a sum of two floats
    float *segment, *index;          // resets so far in the chunk; 0, 1, 2 ...
    float *from_state, *from_reset;  // decay since the chunk's start (first segment), since the segment's reset (the others)
    float *to_end, *weight;          // decay to the chunk's end (last segment only), and that times d
    int64_t count, before_reset;     // positions, and those before the first reset
    int64_t start[T];                // where the position's segment begins
    float total;                     // decay over the last segment

    bool has_reset() const { return segment[count - 1] > 0; }
    static constexpr int64_t kRows = 11;
    void take(Arena& arena) {
        float** rows[kRows] = {&raw, &positive, &d, &high, &low, &segment, &index, &from_state, &from_reset, &to_end, &weight};
        for (float** row : rows) *row = arena.floats(T);
    }
};

static inline void find_steps(const Ssd& a, int64_t b, int64_t head, int64_t t0, int64_t count, Steps& s) {
    const float bias = a.bias ? *a.bias.f(head) : 0.0f, A = *a.A.f(head);
    s.count = count;
    for (int64_t t = 0; t < T; ++t) {
        const bool live = t < count && a.line.exists(b, t0 + t);
        s.raw[t] = live ? number(a.delta, b, t0 + t, head) + bias : 0.0f;
        s.index[t] = static_cast<float>(t);
    }
    for (int64_t t = 0; t < T; t += W) {
        vf v = load(s.raw + t);
        if (a.softplus) v = softplus(v);
        store(s.positive + t, min(splat(a.high), max(splat(a.low), v)));
    }
    double sum = 0;
    float resets = 0;
    int64_t start = 0;
    s.before_reset = count;
    for (int64_t t = 0; t < T; ++t) {
        const bool live = t < count && a.line.exists(b, t0 + t);
        s.d[t] = live ? s.positive[t] * a.line.time(b, t0 + t) : 0.0f;
        if (t < count && a.line.resets(b, t0 + t)) {
            if (resets == 0) s.before_reset = t;
            resets += 1;
            start = t;
        }
        s.segment[t] = resets;
        s.start[t] = start;
        sum += static_cast<double>(s.d[t]) * A;
        s.high[t] = static_cast<float>(sum);
        s.low[t] = static_cast<float>(sum - s.high[t]);
    }
    const float last = s.segment[count - 1];
    const int64_t end = count - 1;
    float exponent[3][T];
    for (int64_t t = 0; t < T; ++t) {
        const int64_t before = s.start[t] - 1;
        exponent[0][t] = s.high[t];
        exponent[1][t] = before < 0 ? s.high[t] : (s.high[t] - s.high[before]) + (s.low[t] - s.low[before]);
        exponent[2][t] = (s.high[end] - s.high[t]) + (s.low[end] - s.low[t]);
    }
    for (int64_t t = 0; t < T; t += W) {
        const vf segment = load(s.segment + t), none = splat(0);
        store(s.from_state + t, segment == none ? exp(load(exponent[0] + t)) : none);
        store(s.from_reset + t, segment == none ? none : exp(load(exponent[1] + t)));
        const vf to_end = segment == splat(last) ? exp(load(exponent[2] + t)) : none;
        store(s.to_end + t, to_end);
        store(s.weight + t, to_end * load(s.d + t));
    }
    s.total = last == 0 ? s.from_state[end] : s.from_reset[end];
}

// Decay from s to t for W values of s from s0 on; zero across a reset and for s > t.
STATESCAN_INLINE vf decay(const Steps& s, int64_t t, int64_t s0) {
    const vf e = exp((s.high[t] - load(s.high + s0)) + (s.low[t] - load(s.low + s0)));
    const vi related = (load(s.segment + s0) == splat(s.segment[t])) & (load(s.index + s0) <= splat(s.index[t]));
    return related ? e : splat(0);
}

// Rows of scratch times one number each.
static inline void scale_rows(const float* in, const float* by, int64_t count, int64_t width, float* out) {
    for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < width; i += W) store(out + t * width + i, load(in + t * width + i) * by[t]);
}

// Rows (b, t0 + t, k) of an input; zeros where the position does not exist.
static inline void read_rows(const Ssd& a, const View& v, int64_t b, int64_t k, int64_t t0, int64_t count, int64_t width, int64_t padded,
                             float* out) {
    for (int64_t t = 0; t < count; ++t) {
        if (a.line.exists(b, t0 + t)) load_row(v.at(b, t0 + t, k), v.type, width, out + t * padded);
        else zero(out + t * padded, padded);
    }
}

// A state (P, N) of any strides to (N, Pp), and back.
static inline void read_state(const View& v, int64_t b, int64_t head, int64_t p, int64_t n, int64_t pp, float* out) {
    zero(out, n * pp);
    if (v.stride[3] == 1) {
        transpose(v.f(b, head), p, n, v.stride[2], out, pp);
        return;
    }
    for (int64_t i = 0; i < p; ++i)
        for (int64_t j = 0; j < n; ++j) out[j * pp + i] = *v.f(b, head, i, j);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
