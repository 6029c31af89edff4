// Gradients of the selective scan. Each chunk is run again from its saved state, then backwards. What is summed over tiles or batch rows
// (B, C, A, D, bias, interval) goes to part_* first and is added up in a fixed order afterwards:
// part_B, part_C (tiles, L, N), part_A (B, N, E), part_D, part_bias (B, E), part_interval (tiles, L).
#include "selective_scan.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

struct GradChunk {
    float *gy, *gd, *gu;             // (T, R): before the gate; of the step through the decay, over ln 2; of step * x
    float *before, *decay;           // (T, 4, W): state before the position, decay
    float *gB, *gC;                  // (T, 4, W)
    float *carry, *gA, *greset;      // (N, R)
    float *gD, *gbias, *sums, *out;  // (R,), (R,), (4 T,), (R,)

    static int64_t bytes(int64_t n) { return 4 * (3 * T * R + 16 * T * W + 3 * n * R + 3 * R + 4 * T) + 64 * 16; }
    void take(Arena& arena, int64_t n) {
        gy = arena.floats(T * R); gd = arena.floats(T * R); gu = arena.floats(T * R);
        before = arena.floats(4 * T * W); decay = arena.floats(4 * T * W);
        gB = arena.floats(4 * T * W); gC = arena.floats(4 * T * W);
        carry = arena.floats(n * R); gA = arena.floats(n * R); greset = arena.floats(n * R);
        gD = arena.floats(R); gbias = arena.floats(R); sums = arena.floats(4 * T); out = arena.floats(R);
    }
};

template <int K>
void lane_block(const ScanChunk& s, const GradChunk& g, const bool* reset, int64_t n, int64_t k, int64_t lane, int64_t count) {
    vf h[K], A[K];
    for (int i = 0; i < K; ++i) {
        h[i] = load(s.h + (k + i) * R + lane);
        A[i] = load(s.A + (k + i) * R + lane);
    }
    for (int64_t t = 0; t < count; ++t) {
        const vf d = load(s.d + t * R + lane), u = load(s.u + t * R + lane);
        const float *B = s.B + t * n + k, *C = s.C + t * n + k;
        if (reset[t])
            for (int i = 0; i < K; ++i) h[i] = load(s.origin + (k + i) * R + lane);
        vf y = load(s.y + t * R + lane);
        for (int i = 0; i < K; ++i) {
            const vf decay = exp2(d * A[i]);
            store(g.before + (t * K + i) * W, h[i]);
            store(g.decay + (t * K + i) * W, decay);
            h[i] = decay * h[i] + u * B[i];
            y += h[i] * C[i];
        }
        store(s.y + t * R + lane, y);
    }
    vf carry[K], gA[K];
    for (int i = 0; i < K; ++i) {
        carry[i] = load(g.carry + (k + i) * R + lane);
        gA[i] = load(g.gA + (k + i) * R + lane);
    }
    for (int64_t t = count - 1; t >= 0; --t) {
        const vf d = load(s.d + t * R + lane), u = load(s.u + t * R + lane), gy = load(g.gy + t * R + lane);
        const float *B = s.B + t * n + k, *C = s.C + t * n + k;
        vf gu = load(g.gu + t * R + lane), gd = load(g.gd + t * R + lane);
        for (int i = 0; i < K; ++i) {
            const vf before = load(g.before + (t * K + i) * W), decay = load(g.decay + (t * K + i) * W);
            float *gB = g.gB + (t * K + i) * W, *gC = g.gC + (t * K + i) * W;
            const vf gh = carry[i] + gy * C[i];
            store(gC, load(gC) + gy * (decay * before + u * B[i]));
            store(gB, load(gB) + gh * u);
            gu += gh * B[i];
            carry[i] = gh * decay;
            const vf through = carry[i] * before;
            gd += through * A[i];
            gA[i] += through * d;
        }
        store(g.gu + t * R + lane, gu);
        store(g.gd + t * R + lane, gd);
        if (reset[t])
            for (int i = 0; i < K; ++i) {
                float* p = g.greset + (k + i) * R + lane;
                store(p, load(p) + carry[i]);
                carry[i] = splat(0);
            }
    }
    for (int i = 0; i < K; ++i) {
        store(g.carry + (k + i) * R + lane, carry[i]);
        store(g.gA + (k + i) * R + lane, gA[i]);
    }
}

// Folds v[j + width] into v[j]: the lane's bit `width` chooses between the two. In the end lane i of v[0] is the sum of v[i]'s lanes.
template <int64_t width>
STATESCAN_INLINE void fold(vf* v) {
    vi low, high;
    for (int64_t l = 0; l < W; ++l) {
        low[l] = static_cast<int32_t>(l & width ? W + l - width : l);
        high[l] = static_cast<int32_t>(l & width ? W + l : l + width);
    }
    for (int64_t j = 0; j < width; ++j) v[j] = __builtin_shuffle(v[j], v[j + width], low) + __builtin_shuffle(v[j], v[j + width], high);
    if constexpr (width > 1) fold<width / 2>(v);
}

// Sums of `count` vectors, each over its lanes.
void sum_lanes(const float* vectors, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += W) {
        vf v[W];
        const int64_t have = least(W, count - i);
        for (int64_t j = 0; j < W; ++j) v[j] = j < have ? load(vectors + (i + j) * W) : splat(0);
        fold<W / 2>(v);
        memcpy(out + i, v, static_cast<size_t>(have * 4));
    }
}

template <int K>
void state_block(const SelectiveScanGrad& a, const ScanTile& tile, const ScanChunk& s, const GradChunk& g, const bool* reset, int64_t k,
                 int64_t t0, int64_t count) {
    zero(g.gB, count * K * W);
    zero(g.gC, count * K * W);
    for (int64_t lane = 0; lane < tile.vectors * W; lane += W) lane_block<K>(s, g, reset, a.forward.n, k, lane, count);
    const float* from[2] = {g.gB, g.gC};
    const View* to[2] = {&a.part_B, &a.part_C};
    for (int which = 0; which < 2; ++which) {
        sum_lanes(from[which], count * K, g.sums);
        for (int64_t t = 0; t < count; ++t) memcpy(to[which]->f(tile.index, t0 + t, k), g.sums + t * K, K * 4);
    }
}

void output_gradients(const SelectiveScanGrad& a, const ScanTile& tile, ScanChunk& s, GradChunk& g, int64_t t0, int64_t count) {
    const SelectiveScan& f = a.forward;
    for (int64_t t = 0; t < count; ++t) {
        float* gy = g.gy + t * R;
        if (!f.line.exists(tile.b, t0 + t)) {
            zero(gy, R);
            continue;
        }
        load_row(a.gy.at(tile.b, t0 + t, tile.e), a.gy.type, tile.width, gy);
        if (!f.z) continue;
        load_row(f.z.at(tile.b, t0 + t, tile.e), f.z.type, tile.width, s.row);
        for (int64_t i = 0; i < tile.vectors * W; i += W) {
            const vf z = load(s.row + i);
            store(gy + i, load(gy + i) * z * sigmoid(z));
        }
    }
}

void input_gradients(const SelectiveScanGrad& a, const ScanTile& tile, ScanChunk& s, GradChunk& g, int64_t t0, int64_t count) {
    const SelectiveScan& f = a.forward;
    const int64_t lanes = tile.vectors * W;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t b = tile.b, at = t0 + t;
        float *gu = g.gu + t * R, *gd = g.gd + t * R;
        vf elapsed = splat(0);
        if (!f.line.exists(b, at)) {
            zero(gu, lanes);
            zero(gd, lanes);
            zero(g.out, lanes);
            if (f.z) store_row(a.gz.at(b, at, tile.e), a.gz.type, tile.width, g.out);
        } else {
            if (f.z) {
                load_row(f.z.at(b, at, tile.e), f.z.type, tile.width, s.row);
                load_row(a.gy.at(b, at, tile.e), a.gy.type, tile.width, s.row2);
                for (int64_t i = 0; i < lanes; i += W) {
                    const vf z = load(s.row + i), gate = sigmoid(z);
                    store(g.out + i, load(s.row2 + i) * load(s.y + t * R + i) * gate * (1.0f + z * (1.0f - gate)));
                }
                store_row(a.gz.at(b, at, tile.e), a.gz.type, tile.width, g.out);
            }
            load_row(f.x.at(b, at, tile.e), f.x.type, tile.width, s.row);
            load_row(f.delta.at(b, at, tile.e), f.delta.type, tile.width, s.row2);
            const float interval = f.line.time(b, at);
            for (int64_t i = 0; i < lanes; i += W) {
                const vf x = load(s.row + i), raw = load(s.row2 + i) + load(s.bias + i), gy = load(g.gy + t * R + i), u = load(gu + i);
                vf gstep = load(gd + i) * 0.6931471805599453f + u * x;
                store(gu + i, u * load(s.d + t * R + i) + gy * load(s.D + i));
                store(g.gD + i, load(g.gD + i) + gy * x);
                if (f.line.interval) elapsed += gstep * (f.softplus ? softplus(raw) : raw);
                gstep = gstep * interval;
                if (f.softplus) gstep = gstep * sigmoid(raw);
                store(gd + i, gstep);
                store(g.gbias + i, load(g.gbias + i) + gstep);
            }
        }
        store_row(a.gx.at(b, at, tile.e), a.gx.type, tile.width, gu);
        store_row(a.gdelta.at(b, at, tile.e), a.gdelta.type, tile.width, gd);
        if (f.line.interval) *a.part_interval.f(tile.index, at) = sum(elapsed);
    }
}

void run(const void* context, int64_t index, char* scratch) {
    const SelectiveScanGrad& a = *static_cast<const SelectiveScanGrad*>(context);
    const SelectiveScan& f = a.forward;
    const ScanTile tile = scan_tile(f, index);
    const int64_t n = f.n;
    Arena arena{scratch};
    ScanChunk s;
    GradChunk g;
    s.take(arena, n);
    g.take(arena, n);
    scan_constants(f, tile, s);
    zero(g.carry, n * R);
    if (a.glast) gather_state(a.glast, tile, n, g.carry, 1.0f);
    zero(g.gA, n * R);
    zero(g.greset, n * R);
    zero(g.gD, R);
    zero(g.gbias, R);
    zero(s.h, n * R);
    bool reset[T];
    for (int64_t chunk = (f.length - 1) / T; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * T, count = least(T, f.length - t0);
        for (int64_t i = 0; i < n; ++i) memcpy(s.h + i * R, f.chunks.f(tile.b, chunk, i, tile.e), static_cast<size_t>(tile.width * 4));
        for (int64_t t = 0; t < count; ++t) reset[t] = f.line.resets(tile.b, t0 + t);
        scan_inputs(f, tile, s, t0, count);
        output_gradients(a, tile, s, g, t0, count);
        zero(g.gu, count * R);
        zero(g.gd, count * R);
        int64_t k = 0;
        for (; k + 4 <= n; k += 4) state_block<4>(a, tile, s, g, reset, k, t0, count);
        for (; k < n; ++k) state_block<1>(a, tile, s, g, reset, k, t0, count);
        input_gradients(a, tile, s, g, t0, count);
    }
    for (int64_t i = 0; i < n; ++i) memcpy(a.part_A.f(tile.b, i, tile.e), g.gA + i * R, static_cast<size_t>(tile.width * 4));
    memcpy(a.part_D.f(tile.b, tile.e), g.gD, static_cast<size_t>(tile.width * 4));
    memcpy(a.part_bias.f(tile.b, tile.e), g.gbias, static_cast<size_t>(tile.width * 4));
    scatter_state(a.gstate, tile, n, g.carry);
    if (a.greset) scatter_state(a.greset, tile, n, g.greset);
}

// Adds up the tiles' parts of B, C and the interval: one chunk of one batch row.
void sum_tiles(const void* context, int64_t index, char* scratch) {
    const SelectiveScanGrad& a = *static_cast<const SelectiveScanGrad*>(context);
    const SelectiveScan& f = a.forward;
    const int64_t chunks = (f.length + T - 1) / T, per_group = tiles_per_group(f), n = f.n;
    const int64_t b = index / chunks, t0 = index % chunks * T, t1 = least(f.length, t0 + T);
    float* total = reinterpret_cast<float*>(scratch);
    for (int64_t t = t0; t < t1; ++t) {
        for (int64_t g = 0; g < f.groups; ++g)
            for (int which = 0; which < 2; ++which) {
                const View &part = which == 0 ? a.part_B : a.part_C, &out = which == 0 ? a.gB : a.gC;
                zero(total, ceil_to(n, W));
                for (int64_t i = 0; i < per_group; ++i) {
                    const float* from = part.f((b * f.groups + g) * per_group + i, t);
                    for (int64_t k = 0; k < n; ++k) total[k] += from[k];
                }
                store_row(out.at(b, t, g), out.type, n, total);
            }
        if (a.ginterval) {
            float elapsed = 0;
            for (int64_t i = 0; i < f.groups * per_group; ++i) elapsed += *a.part_interval.f(b * f.groups * per_group + i, t);
            *a.ginterval.f(b, t) = elapsed;
        }
    }
}

// Adds up the batch rows' parts of A, D and the bias: kTile channels.
void sum_rows(const void* context, int64_t index, char*) {
    const SelectiveScanGrad& a = *static_cast<const SelectiveScanGrad*>(context);
    const SelectiveScan& f = a.forward;
    const int64_t last = least(f.width, (index + 1) * R);
    for (int64_t e = index * R; e < last; ++e) {
        for (int64_t i = 0; i < f.n; ++i) {
            float total = 0;
            for (int64_t b = 0; b < f.batch; ++b) total += *a.part_A.f(b, i, e);
            *a.gA.f(e, i) = total;
        }
        float gD = 0, gbias = 0;
        for (int64_t b = 0; b < f.batch; ++b) {
            gD += *a.part_D.f(b, e);
            gbias += *a.part_bias.f(b, e);
        }
        if (a.gD) *a.gD.f(e) = gD;
        if (a.gbias) *a.gbias.f(e) = gbias;
    }
}

}  // namespace

void selective_scan_backward(const SelectiveScanGrad& a) {
    const SelectiveScan& f = a.forward;
    parallel(f.threads, f.batch * f.groups * tiles_per_group(f), ScanChunk::bytes(f.n) + GradChunk::bytes(f.n), run, &a);
    parallel(f.threads, f.batch * ((f.length + T - 1) / T), 4 * ceil_to(f.n, W), sum_tiles, &a);
    parallel(f.threads, (f.width + R - 1) / R, 64, sum_rows, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
