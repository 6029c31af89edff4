// Root-mean-square norms over equal parts of a row, gated before or after. The backward pass gets the inputs and finds the rows' scales anew.
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t E = 4 * kTile;  // columns a tile of the sum over blocks

enum Gate { kNone, kFirst, kLast };

Gate gate_of(const RmsNorm& a) { return !a.z ? kNone : a.gate_last ? kLast : kFirst; }

int64_t blocks(const RmsNorm& a) { return (a.rows + a.block - 1) / a.block; }
int64_t part(const RmsNorm& a) { return a.width / a.groups; }
int64_t lanes(const RmsNorm& a) { return ceil_to(part(a), W); }

// `count` numbers as whole vectors: where they lie, if they are that already, else copied and filled up with zeros.
STATESCAN_INLINE const float* vectors(const View& v, const char* row, int64_t count, float* room) {
    if (v.type == kFloat && count % W == 0) return reinterpret_cast<const float*>(row);
    load_row(row, v.type, count, room);
    return room;
}

// Where whole vectors may be written: at once in their place, or in a room from which `deliver` takes them.
STATESCAN_INLINE float* place(const View& v, char* row, int64_t count, float* room) {
    return v.type == kFloat && count % W == 0 ? reinterpret_cast<float*>(row) : room;
}

STATESCAN_INLINE void deliver(const View& v, char* row, int64_t count, const float* from) {
    if (reinterpret_cast<const char*>(from) != row) store_row(row, v.type, count, from);
}

// The weight in whole vectors a group; ones where there is none.
const float* weights(const RmsNorm& a, Arena& arena) {
    const int64_t n = lanes(a);
    float* weight = arena.floats(a.groups * n);
    for (int64_t g = 0; g < a.groups; ++g)
        if (a.weight) load_row(a.weight.at(g * part(a)), a.weight.type, part(a), weight + g * n);
        else for (int64_t i = 0; i < n; i += W) store(weight + g * n + i, splat(1));
    return weight;
}

// 1 / sqrt(mean(u^2) + eps)
STATESCAN_INLINE float inverse_root(const float* u, int64_t n, int64_t count, float eps) {
    vf a = splat(0), b = splat(0), c = splat(0), d = splat(0);
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        const vf p = load(u + i), q = load(u + i + W), r = load(u + i + 2 * W), s = load(u + i + 3 * W);
        a += p * p, b += q * q, c += r * r, d += s * s;
    }
    for (; i < n; i += W) a += load(u + i) * load(u + i);
    return 1.0f / __builtin_sqrtf(sum((a + b) + (c + d)) / static_cast<float>(count) + eps);
}

STATESCAN_INLINE void gate(const float* x, const float* z, int64_t n, float* u) {
    for (int64_t i = 0; i < n; i += W) {
        const vf v = load(z + i);
        store(u + i, load(x + i) * v * sigmoid(v));
    }
}

template <int kind>
void block(const RmsNorm& a, int64_t first, int64_t last, Arena& arena) {
    const int64_t count = part(a), n = lanes(a);
    const float* weight = weights(a, arena);
    float *x_room = arena.floats(n), *z_room = arena.floats(n), *y_room = arena.floats(n);
    for (int64_t r = first; r < last; ++r)
        for (int64_t g = 0; g < a.groups; ++g) {
            const int64_t e = g * count;
            const float *u = vectors(a.x, a.x.at(r, e), count, x_room), *w = weight + g * n;
            const float* z = kind == kNone ? nullptr : vectors(a.z, a.z.at(r, e), count, z_room);
            float* y = place(a.y, a.y.at(r, e), count, y_room);
            if (kind == kFirst) {
                gate(u, z, n, y);
                u = y;
            }
            const float scale = inverse_root(u, n, count, a.eps);
            for (int64_t i = 0; i < n; i += W) store(y + i, load(u + i) * scale * load(w + i));
            if (kind == kLast) gate(y, z, n, y);
            deliver(a.y, a.y.at(r, e), count, y);
        }
}

void run(const void* context, int64_t index, char* scratch) {
    const RmsNorm& a = *static_cast<const RmsNorm*>(context);
    Arena arena{scratch};
    const int64_t first = index * a.block, last = least(a.rows, first + a.block);
    switch (gate_of(a)) {
        case kNone: return block<kNone>(a, first, last, arena);
        case kFirst: return block<kFirst>(a, first, last, arena);
        case kLast: return block<kLast>(a, first, last, arena);
    }
}

// -- backwards ---------------------------------------------------------------------------------------------------------------

// With u what is normed, s its scale, n = s u, h the gradient of n: the gradient of u is s (h - n mean(h n)).
template <int kind>
void reverse(const RmsNormGrad& a, int64_t index, Arena& arena) {
    const RmsNorm& f = a.forward;
    const int64_t count = part(f), n = lanes(f), first = index * f.block, last = least(f.rows, first + f.block);
    const float* weight = weights(f, arena);
    float *sums = arena.floats(f.groups * n), *x_room = arena.floats(n), *z_room = arena.floats(n), *gy_room = arena.floats(n);
    float *gx_room = arena.floats(n), *gz_room = arena.floats(n), *gated = arena.floats(n), *h = arena.floats(n);
    zero(sums, f.groups * n);
    for (int64_t r = first; r < last; ++r)
        for (int64_t g = 0; g < f.groups; ++g) {
            const int64_t e = g * count;
            const float *x = vectors(f.x, f.x.at(r, e), count, x_room), *gy = vectors(a.gy, a.gy.at(r, e), count, gy_room);
            const float *z = kind == kNone ? nullptr : vectors(f.z, f.z.at(r, e), count, z_room), *w = weight + g * n, *u = x;
            float *gx = place(a.gx, a.gx.at(r, e), count, gx_room), *total = sums + g * n;
            float* gz = kind == kNone ? nullptr : place(a.gz, a.gz.at(r, e), count, gz_room);
            if (kind == kFirst) {
                gate(x, z, n, gated);
                u = gated;
            }
            const float scale = inverse_root(u, n, count, f.eps);
            vf dot = splat(0);
            for (int64_t i = 0; i < n; i += W) {
                const vf normed = load(u + i) * scale;
                vf gradient = load(gy + i);
                if (kind == kLast) {
                    const vf v = load(z + i), s = sigmoid(v);
                    store(gz + i, gradient * load(w + i) * normed * s * (1.0f + v * (1.0f - s)));
                    gradient *= v * s;
                }
                store(total + i, load(total + i) + gradient * normed);
                gradient *= load(w + i);
                dot += gradient * normed;
                store(h + i, gradient);
            }
            const float mean = sum(dot) / static_cast<float>(count);
            for (int64_t i = 0; i < n; i += W) {
                const vf gu = scale * (load(h + i) - load(u + i) * scale * mean);
                if (kind == kFirst) {
                    const vf v = load(z + i), s = sigmoid(v);
                    store(gz + i, gu * load(x + i) * s * (1.0f + v * (1.0f - s)));
                    store(gx + i, gu * v * s);
                } else {
                    store(gx + i, gu);
                }
            }
            deliver(a.gx, a.gx.at(r, e), count, gx);
            if (kind != kNone) deliver(a.gz, a.gz.at(r, e), count, gz);
        }
    if (a.gweight)
        for (int64_t g = 0; g < f.groups; ++g) memcpy(a.part.f(index, g * count), sums + g * n, static_cast<size_t>(count * 4));
}

void run_backward(const void* context, int64_t index, char* scratch) {
    const RmsNormGrad& a = *static_cast<const RmsNormGrad*>(context);
    Arena arena{scratch};
    switch (gate_of(a.forward)) {
        case kNone: return reverse<kNone>(a, index, arena);
        case kFirst: return reverse<kFirst>(a, index, arena);
        case kLast: return reverse<kLast>(a, index, arena);
    }
}

// Adds up the blocks' parts in order.
void sum_blocks(const void* context, int64_t index, char* scratch) {
    const RmsNormGrad& a = *static_cast<const RmsNormGrad*>(context);
    const int64_t first = index * E, count = least(E, a.forward.width - first);
    Arena arena{scratch};
    float* total = arena.floats(E);
    zero(total, E);
    for (int64_t b = 0; b < blocks(a.forward); ++b) {
        const float* from = a.part.f(b, first);
        for (int64_t e = 0; e < count; ++e) total[e] += from[e];
    }
    store_row(a.gweight.at(first), a.gweight.type, count, total);
}

}  // namespace

void rms_norm(const RmsNorm& a) { parallel(a.threads, blocks(a), 4 * lanes(a) * (a.groups + 3) + 512, run, &a); }

void rms_norm_backward(const RmsNormGrad& a) {
    const RmsNorm& f = a.forward;
    parallel(f.threads, blocks(f), 4 * lanes(f) * (2 * f.groups + 7) + 1024, run_backward, &a);
    if (a.gweight) parallel(f.threads, (f.width + E - 1) / E, 4 * E + 64, sum_blocks, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
