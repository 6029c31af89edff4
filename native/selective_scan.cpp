// The selective scan: h_t = exp(d_t A) h_{t-1} + d_t B_t x_t, y_t = C_t h_t + D x_t, gated by silu(z).
// A tile streams over time with its state in the first-level cache; two vectors of channels at a time run through all states.
#include "selective_scan.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

// V vectors of channels from `lane` on through all states at one position.
template <int V, bool inside>
STATESCAN_INLINE void states(const ScanMemory& s, const ScanRow& row, int64_t n, int64_t lane) {
    const float* __restrict A = s.A + lane;
    float* __restrict h = s.h + lane;
    vf d[V], u[V], y[V];
    for (int v = 0; v < V; ++v) {
        d[v] = load(row.d + lane + v * W);
        u[v] = load(row.u + lane + v * W);
        y[v] = load(row.y + lane + v * W);
    }
    for (int64_t k = 0; k < n; ++k, A += R, h += R)
        for (int v = 0; v < V; ++v) {
            const vf t = d[v] * load(A + v * W);
            const vf moved = (inside ? exp2_inside(t) : exp2(t)) * load(h + v * W) + u[v] * row.B[k];
            store(h + v * W, moved);
            y[v] += moved * row.C[k];
        }
    for (int v = 0; v < V; ++v) store(row.y + lane + v * W, y[v]);
}

template <bool inside>
void advance(const ScanMemory& s, const ScanRow& row, int64_t n, int64_t lanes) {
    int64_t lane = 0;
    for (; lane + 2 * W <= lanes; lane += 2 * W) states<2, inside>(s, row, n, lane);
    if (lane < lanes) states<1, inside>(s, row, n, lane);
}

void output(const SelectiveScan& a, const ScanTile& tile, int64_t t, float* y, float* scratch) {
    if (a.z) {
        const float* row = floats(a.z.at(tile.b, t, tile.e), a.z.type, tile.width, scratch);
        for (int64_t i = 0; i < tile.vectors * W; i += W) {
            const vf z = load(row + i);
            store(y + i, load(y + i) * z * sigmoid(z));
        }
    }
    store_row(a.y.at(tile.b, t, tile.e), a.y.type, tile.width, y);
}

void no_output(const SelectiveScan& a, const ScanTile& tile, int64_t t) {
    memset(a.y.at(tile.b, t, tile.e), 0, static_cast<size_t>(tile.width * a.y.bytes()));
}

// A few positions (decoding): turning A and the state so that lanes are channels would cost more than the scan. Here lanes are states,
// which lie side by side in memory; V vectors of them a channel.
constexpr int64_t kFew = 2;

bool few(const SelectiveScan& a) {
    return a.length <= kFew && !a.chunks && !a.weight && (a.n == W || a.n == 2 * W || a.n == 4 * W) && a.A.stride[1] == 1 && a.state.stride[2] == 1 &&
           a.last.stride[2] == 1 && (!a.reset_to || a.reset_to.stride[2] == 1);
}

// One position of W channels from c on.
template <int V>
STATESCAN_INLINE void step(const SelectiveScan& a, const ScanTile& tile, const ScanRow& row, int64_t c) {
    vf y[W];
    const int64_t coming = R * a.last.stride[1];  // to the next tile, most often this thread's: the hardware starts anew at each page
    for (int64_t i = 0; i < W; ++i) {
        const int64_t e = tile.e + c + i;
        const float *h = a.state.f(tile.b, e), *A = a.A.f(e);
        float* to = a.last.f(tile.b, e);
        for (int v = 0; v < V * W; v += 16) __builtin_prefetch(to + coming + v, 1, 2);
        y[i] = splat(0.0f);
        for (int v = 0; v < V * W; v += W) {
            const vf moved = exp2(row.d[c + i] * (load(A + v) * kLog2e)) * load(h + v) + row.u[c + i] * load(row.B + v);
            y[i] += moved * load(row.C + v);
            store(to + v, moved);
        }
    }
    store(row.y + c, load(row.y + c) + sums_of(y));
}

template <int V>
void advance_few(const SelectiveScan& a, const ScanTile& tile, const ScanRow* rows) {
    int64_t c = 0;
    if (a.length == 1 && a.line.exists(tile.b, 0) && !a.line.resets(tile.b, 0))
        for (; c + W <= tile.width; c += W) step<V>(a, tile, rows[0], c);
    for (; c < tile.width; ++c) {
        const int64_t e = tile.e + c;
        vf h[V], A[V];
        for (int v = 0; v < V; ++v) {
            h[v] = load(a.state.f(tile.b, e) + v * W);
            A[v] = load(a.A.f(e) + v * W) * kLog2e;
        }
        for (int64_t t = 0; t < a.length; ++t) {
            if (a.line.resets(tile.b, t))
                for (int v = 0; v < V; ++v) h[v] = load(a.reset_to.f(tile.b, e) + v * W);
            if (!a.line.exists(tile.b, t)) continue;
            const ScanRow& row = rows[t];
            vf y = splat(0.0f);
            for (int v = 0; v < V; ++v) {
                h[v] = exp2(row.d[c] * A[v]) * h[v] + row.u[c] * load(row.B + v * W);
                y += h[v] * load(row.C + v * W);
            }
            row.y[c] += sum(y);
        }
        for (int v = 0; v < V; ++v) store(a.last.f(tile.b, e) + v * W, h[v]);
    }
}

void run_few(const void* context, int64_t index, char* scratch) {
    const SelectiveScan& a = *static_cast<const SelectiveScan*>(context);
    const ScanTile tile = scan_tile(a, index);
    Arena arena{scratch};
    ScanMemory s;
    s.take(arena, a.n);
    scan_rows(a, tile, s);
    ScanRow rows[kFew];
    for (int64_t t = 0; t < a.length; ++t) {
        rows[t].take(arena, a.n);
        if (a.line.exists(tile.b, t)) scan_row(a, tile, s, t, rows[t]);
    }
    if (a.n == W) advance_few<1>(a, tile, rows);
    else if (a.n == 2 * W) advance_few<2>(a, tile, rows);
    else advance_few<4>(a, tile, rows);
    for (int64_t t = 0; t < a.length; ++t) {
        if (a.line.exists(tile.b, t)) output(a, tile, t, rows[t].y, rows[t].x);
        else no_output(a, tile, t);
    }
}

// The raw steps of a tile where they are a product: made here, a few positions ahead, they never cross memory.
struct RawSteps {
    static constexpr int64_t kPositions = 24;
    float *weight, *rows;  // (rank, R), (kPositions, R)

    static int64_t bytes(const SelectiveScan& a) { return a.weight ? 4 * (a.rank + kPositions) * R : 0; }

    RawSteps(const SelectiveScan& a, const ScanTile& tile, Arena& arena) {
        if (!a.weight) return;
        weight = arena.floats(a.rank * R), rows = arena.floats(kPositions * R);
        zero(weight, a.rank * R);
        transpose(a.weight.f(tile.e), tile.width, a.rank, a.weight.stride[0], weight, R);
    }

    // Those of position t, which follows the one before; null where they are in memory.
    const float* at(const SelectiveScan& a, const ScanTile& tile, int64_t t) {
        if (!a.weight) return nullptr;
        const int64_t row = t % kPositions;
        if (row == 0) {
            zero(rows, kPositions * R);
            multiply(Shape::full, least(kPositions, a.length - t), tile.vectors * W, a.rank, a.delta.f(tile.b, t), a.delta.stride[1], 1, weight, R,
                     rows, R);
        }
        return rows + row * R;
    }
};

void run(const void* context, int64_t index, char* scratch) {
    const SelectiveScan& a = *static_cast<const SelectiveScan*>(context);
    const ScanTile tile = scan_tile(a, index);
    const int64_t n = a.n, lanes = tile.vectors * W;
    Arena arena{scratch};
    ScanMemory s;
    ScanRow row;
    s.take(arena, n);
    row.take(arena, n);
    RawSteps raw(a, tile, arena);
    scan_memory(a, tile, s);
    gather_state(a.state, tile, n, s.h, 1.0f);
    for (int64_t t = 0; t < a.length; ++t) {
        if (a.chunks && t % T == 0)
            for (int64_t i = 0; i < n; ++i) memcpy(a.chunks.f(tile.b, t / T, i, tile.e), s.h + i * R, static_cast<size_t>(tile.width * 4));
        if (a.line.resets(tile.b, t)) memcpy(s.h, s.origin, static_cast<size_t>(n * R * 4));
        if (a.weight) bring_rows({&a.x, &a.z, &a.y}, tile.b, t, a.length, tile.e, tile.width);
        else bring_rows({&a.x, &a.delta, &a.z, &a.y}, tile.b, t, a.length, tile.e, tile.width);
        const float* steps = raw.at(a, tile, t);
        if (!a.line.exists(tile.b, t)) {
            no_output(a, tile, t);
            continue;
        }
        if (scan_row(a, tile, s, t, row, steps)) advance<true>(s, row, n, lanes);
        else advance<false>(s, row, n, lanes);
        output(a, tile, t, row.y, row.x);
    }
    scatter_state(a.last, tile, n, s.h);
}

}  // namespace

Work selective_scan_work(const SelectiveScan& a) {
    const int64_t tiles = a.batch * a.groups * tiles_per_group(a), memory = ScanMemory::bytes(a.n), row = ScanRow::bytes(a.n);
    return few(a) ? Work{tiles, memory + kFew * row, run_few} : Work{tiles, memory + row + RawSteps::bytes(a), run};
}

void selective_scan(const SelectiveScan& a) {
    const Work work = selective_scan_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
