// Gradients of the selective scan. Each chunk is run again from its saved state, then backwards. What is summed over tiles or batch rows
// (B, C, A, D, bias, interval) goes to part_* first and is added up in a fixed order afterwards:
// part_B, part_C (tiles, L, N), part_A (B, N, E), part_D, part_bias (B, E), part_interval (tiles, L).
#include "selective_scan.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

// A chunk's numbers of one kind, (vectors, T, W): a vector of channels streams over time through contiguous memory. The odd stride keeps
// the vectors of one position in different sets of the cache.
constexpr int64_t kColumn = (T + 4) * W, kColumns = R / W * kColumn;

struct GradChunk {
    float *d, *u, *y;                // columns: step, step * x, output before the gate
    float *gy, *gd, *gu;             // columns: before the gate; of the step through the decay, over ln 2; of step * x
    float *slope, *gate;             // columns: of the step by the raw one; of the gated output by z, over y
    float *B, *C;                    // (T, N)
    float *states;                   // (T + 1, 2, 4, W): the state before each position and after the last; its decay
    float *gBC;                      // (T, 2, 4, W)
    float *carry, *gA, *greset;      // (N, R)
    float *gD, *gbias, *sums, *out;  // (R,), (R,), (8 T,), (R,)

    static int64_t bytes(int64_t n) { return 4 * (8 * kColumns + 2 * T * n + (16 * T + 8) * W + 3 * n * R + 3 * R + 8 * T) + 64 * 20; }
    void take(Arena& arena, int64_t n) {
        float** const columns[] = {&d, &u, &y, &gy, &gd, &gu, &slope, &gate};
        for (float** column : columns) *column = arena.floats(kColumns);
        B = arena.floats(T * n); C = arena.floats(T * n);
        states = arena.floats(8 * (T + 1) * W); gBC = arena.floats(8 * T * W);
        carry = arena.floats(n * R); gA = arena.floats(n * R); greset = arena.floats(n * R);
        gD = arena.floats(R); gbias = arena.floats(R); sums = arena.floats(8 * T); out = arena.floats(R);
    }
};

// Where position t's vector of channels from `lane` on stands in a column.
STATESCAN_INLINE int64_t at(int64_t t, int64_t lane) { return lane / W * kColumn + t * W; }

// The chunk again, from its first state: states, decays and outputs of K states of one vector of channels.
template <int K, bool inside>
void forwards(const ScanMemory& s, const GradChunk& g, const bool* reset, int64_t n, int64_t k, int64_t lane, int64_t count) {
    const float *dc = g.d + at(0, lane), *uc = g.u + at(0, lane);
    float* yc = g.y + at(0, lane);
    vf h[K], A[K];
    for (int i = 0; i < K; ++i) {
        h[i] = load(s.h + (k + i) * R + lane);
        A[i] = load(s.A + (k + i) * R + lane);
    }
    for (int64_t t = 0; t < count; ++t) {
        const vf d = load(dc + t * W), u = load(uc + t * W);
        const float *B = g.B + t * n + k, *C = g.C + t * n + k;
        vf y = load(yc + t * W);
        for (int i = 0; i < K; ++i) {
            const vf exponent = d * A[i], decay = inside ? exp2_inside(exponent) : exp2(exponent);
            store(g.states + (2 * t * K + i) * W, h[i]);
            store(g.states + ((2 * t + 1) * K + i) * W, decay);
            if (reset[t]) h[i] = load(s.origin + (k + i) * R + lane);
            h[i] = decay * h[i] + u * B[i];
            y += h[i] * C[i];
        }
        store(yc + t * W, y);
    }
    for (int i = 0; i < K; ++i) store(g.states + (2 * count * K + i) * W, h[i]);
}

// first: of the channels, so that sums over them begin; those over states begin with k = 0.
template <int K, bool first>
void backwards(const ScanMemory& s, const GradChunk& g, const bool* reset, int64_t n, int64_t k, int64_t lane, int64_t count) {
    const float *dc = g.d + at(0, lane), *uc = g.u + at(0, lane), *gyc = g.gy + at(0, lane);
    float *guc = g.gu + at(0, lane), *gdc = g.gd + at(0, lane);
    vf carry[K], gA[K], A[K];
    for (int i = 0; i < K; ++i) {
        carry[i] = load(g.carry + (k + i) * R + lane);
        gA[i] = load(g.gA + (k + i) * R + lane);
        A[i] = load(s.A + (k + i) * R + lane);
    }
    for (int64_t t = count - 1; t >= 0; --t) {
        const vf d = load(dc + t * W), u = load(uc + t * W), gy = load(gyc + t * W);
        const float *B = g.B + t * n + k, *C = g.C + t * n + k;
        const float* from = reset[t] ? s.origin + k * R + lane : g.states + 2 * t * K * W;
        const int64_t step = reset[t] ? R : W;
        vf gu = k == 0 ? splat(0) : load(guc + t * W), gd = k == 0 ? splat(0) : load(gdc + t * W);
        for (int i = 0; i < K; ++i) {
            const vf before = load(from + i * step), after = load(g.states + (2 * (t + 1) * K + i) * W);
            float *gB = g.gBC + (2 * t * K + i) * W, *gC = gB + K * W;
            const vf gh = carry[i] + gy * C[i];
            store(gC, first ? gy * after : load(gC) + gy * after);
            store(gB, first ? gh * u : load(gB) + gh * u);
            gu += gh * B[i];
            carry[i] = gh * load(g.states + ((2 * t + 1) * K + i) * W);
            const vf through = carry[i] * before;
            gd += through * A[i];
            gA[i] += through * d;
        }
        store(guc + t * W, gu);
        store(gdc + t * W, gd);
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
void state_block(const SelectiveScanGrad& a, const ScanTile& tile, const ScanMemory& s, const GradChunk& g, const bool* reset,
                 const bool* inside, int64_t k, int64_t t0, int64_t count) {
    const int64_t n = a.forward.n;
    for (int64_t lane = 0; lane < tile.vectors * W; lane += W) {
        if (inside[lane / W]) forwards<K, true>(s, g, reset, n, k, lane, count);
        else forwards<K, false>(s, g, reset, n, k, lane, count);
        if (lane == 0) backwards<K, true>(s, g, reset, n, k, lane, count);
        else backwards<K, false>(s, g, reset, n, k, lane, count);
    }
    sum_lanes(g.gBC, 2 * count * K, g.sums);
    for (int64_t t = 0; t < count; ++t) {
        memcpy(a.part_B.f(tile.index, t0 + t, k), g.sums + 2 * t * K, K * 4);
        memcpy(a.part_C.f(tile.index, t0 + t, k), g.sums + (2 * t + 1) * K, K * 4);
    }
}

// As bring_rows, for chunks that follow each other backwards: what comes after the last rows of one are the first of the chunk before.
STATESCAN_INLINE void bring_chunk(std::initializer_list<const View*> views, const ScanTile& tile, int64_t t0, int64_t t, int64_t count) {
    if (amd()) return bring_rows(views, tile.b, t0 + t, t0 + count, tile.e, tile.width);
    constexpr int64_t kNext = 4;
    const int64_t next = t + kNext < count ? t0 + t + kNext : t0 - T + t + kNext - count;
    for (const View* v : views)
        if (*v && next >= 0) prefetch_row(*v, v->at(tile.b, next, tile.e), tile.width, 0);
}

// The chunk's inputs and the gradients before the gate. A position that does not exist becomes a step of zero with zero input, which
// holds the state exactly, whatever stands there.
void inputs(const SelectiveScanGrad& a, const ScanTile& tile, const ScanMemory& s, const ScanRow& row, GradChunk& g, bool* inside,
            int64_t t0, int64_t count) {
    const SelectiveScan& f = a.forward;
    const int64_t n = f.n, lanes = tile.vectors * W;
    for (int64_t i = 0; i < lanes; i += W) inside[i / W] = true;
    for (int64_t t = 0; t < count; ++t) {
        bring_chunk({&f.x, &f.delta, &f.z, &a.gy}, tile, t0, t, count);
        if (!f.line.exists(tile.b, t0 + t)) {
            float* const columns[] = {g.d, g.u, g.y, g.gy};
            for (float* column : columns)
                for (int64_t i = 0; i < lanes; i += W) store(column + at(t, i), splat(0));
            zero(g.B + t * n, n);
            zero(g.C + t * n, n);
            continue;
        }
        scan_row<true>(f, tile, s, t0 + t, row);
        memcpy(g.B + t * n, row.B, static_cast<size_t>(n * 4));
        memcpy(g.C + t * n, row.C, static_cast<size_t>(n * 4));
        const float *gys = floats(a.gy.at(tile.b, t0 + t, tile.e), a.gy.type, tile.width, row.x), *zs = nullptr;
        if (f.z) zs = floats(f.z.at(tile.b, t0 + t, tile.e), f.z.type, tile.width, g.out);
        for (int64_t i = 0; i < lanes; i += W) {
            const vf d = load(row.d + i);
            inside[i / W] = inside[i / W] && all(abs(d) * load(s.steepest + i) < splat(126.0f));
            store(g.d + at(t, i), d);
            store(g.u + at(t, i), load(row.u + i));
            store(g.y + at(t, i), load(row.y + i));
            store(g.slope + at(t, i), load(row.slope + i));
            vf gy = load(gys + i);
            if (f.z) {
                const vf z = load(zs + i), gate = sigmoid(z);
                store(g.gate + at(t, i), gy * gate * (1.0f + z * (1.0f - gate)));
                gy = gy * z * gate;
            }
            store(g.gy + at(t, i), gy);
        }
    }
}

void no_gradients(const SelectiveScanGrad& a, const ScanTile& tile, int64_t t) {
    const View* const gradients[] = {&a.gx, &a.gdelta, &a.gz};
    for (const View* v : gradients)
        if (*v) memset(v->at(tile.b, t, tile.e), 0, static_cast<size_t>(tile.width * v->bytes()));
    if (a.forward.line.interval) *a.part_interval.f(tile.index, t) = 0;
}

void input_gradients(const SelectiveScanGrad& a, const ScanTile& tile, const ScanMemory& s, const ScanRow& row, GradChunk& g, int64_t t0,
                     int64_t count) {
    const SelectiveScan& f = a.forward;
    const int64_t b = tile.b, lanes = tile.vectors * W;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t now = t0 + t;
        bring_chunk({&a.gx, &a.gdelta, &a.gz}, tile, t0, t, count);
        if (!f.line.exists(b, now)) {
            no_gradients(a, tile, now);
            continue;
        }
        if (f.z) {
            for (int64_t i = 0; i < lanes; i += W) store(g.out + i, load(g.gate + at(t, i)) * load(g.y + at(t, i)));
            store_row(a.gz.at(b, now, tile.e), a.gz.type, tile.width, g.out);
        }
        const float *xs = floats(f.x.at(b, now, tile.e), f.x.type, tile.width, row.x), *raws = nullptr;
        if (f.line.interval) raws = floats(f.delta.at(b, now, tile.e), f.delta.type, tile.width, row.d);
        vf elapsed = splat(0);
        for (int64_t i = 0; i < lanes; i += W) {
            const vf x = load(xs + i), gy = load(g.gy + at(t, i)), u = load(g.gu + at(t, i));
            const vf gstep = load(g.gd + at(t, i)) * 0.6931471805599453f + u * x, gdelta = gstep * load(g.slope + at(t, i));
            store(row.u + i, u * load(g.d + at(t, i)) + gy * load(s.D + i));
            store(g.gD + i, load(g.gD + i) + gy * x);
            if (f.line.interval) {
                const vf raw = load(raws + i) + load(s.bias + i);
                elapsed += gstep * (f.softplus ? softplus(raw) : raw);
            }
            store(row.y + i, gdelta);
            store(g.gbias + i, load(g.gbias + i) + gdelta);
        }
        store_row(a.gx.at(b, now, tile.e), a.gx.type, tile.width, row.u);
        store_row(a.gdelta.at(b, now, tile.e), a.gdelta.type, tile.width, row.y);
        if (f.line.interval) *a.part_interval.f(tile.index, now) = sum(elapsed);
    }
}

void run(const void* context, int64_t index, char* scratch) {
    const SelectiveScanGrad& a = *static_cast<const SelectiveScanGrad*>(context);
    const SelectiveScan& f = a.forward;
    const ScanTile tile = scan_tile(f, index);
    const int64_t n = f.n;
    Arena arena{scratch};
    ScanMemory s;
    ScanRow row;
    GradChunk g;
    s.take(arena, n);
    row.take(arena, n);
    g.take(arena, n);
    scan_memory(f, tile, s);
    zero(g.carry, n * R);
    if (a.glast) gather_state(a.glast, tile, n, g.carry, 1.0f);
    zero(g.gA, n * R);
    if (a.greset) zero(g.greset, n * R);
    zero(g.gD, R);
    zero(g.gbias, R);
    zero(s.h, n * R);
    bool reset[T], inside[R / W];
    if (n == 0) zero(g.gu, kColumns), zero(g.gd, kColumns);
    for (int64_t chunk = (f.length + T - 1) / T - 1; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * T, count = least(T, f.length - t0);
        for (int64_t i = 0; i < n; ++i) memcpy(s.h + i * R, f.chunks.f(tile.b, chunk, i, tile.e), static_cast<size_t>(tile.width * 4));
        for (int64_t t = 0; t < count; ++t) reset[t] = f.line.resets(tile.b, t0 + t);
        inputs(a, tile, s, row, g, inside, t0, count);
        int64_t k = 0;
        for (; k + 4 <= n; k += 4) state_block<4>(a, tile, s, g, reset, inside, k, t0, count);
        for (; k < n; ++k) state_block<1>(a, tile, s, g, reset, inside, k, t0, count);
        input_gradients(a, tile, s, row, g, t0, count);
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
void sum_rows(const void* context, int64_t index, char* scratch) {
    const SelectiveScanGrad& a = *static_cast<const SelectiveScanGrad*>(context);
    const SelectiveScan& f = a.forward;
    const int64_t first = index * R, last = least(f.width, first + R);
    float* __restrict total = reinterpret_cast<float*>(scratch);  // (N, R)
    zero(total, f.n * R);
    for (int64_t b = 0; b < f.batch; ++b)
        for (int64_t i = 0; i < f.n; ++i) {
            const float* from = a.part_A.f(b, i, first);
            for (int64_t e = 0; e < last - first; ++e) total[i * R + e] += from[e];
        }
    transpose(total, f.n, last - first, R, a.gA.f(first), a.gA.stride[0]);
    for (int64_t e = first; e < last; ++e) {
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
    const int64_t scratch = ScanMemory::bytes(f.n) + ScanRow::bytes(f.n) + GradChunk::bytes(f.n);
    parallel(f.threads, f.batch * f.groups * tiles_per_group(f), scratch, run, &a);
    parallel(f.threads, f.batch * ((f.length + T - 1) / T), 4 * ceil_to(f.n, W), sum_tiles, &a);
    parallel(f.threads, (f.width + R - 1) / R, 4 * f.n * R, sum_rows, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
