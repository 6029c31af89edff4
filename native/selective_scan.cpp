// The selective scan: h_t = exp(d_t A) h_{t-1} + d_t B_t x_t, y_t = C_t h_t + D x_t, gated by silu(z).
#include "selective_scan.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

// K states of one vector of channels over positions [first, last): states and A stay in registers.
template <int K>
void advance(const ScanChunk& s, int64_t n, int64_t k, int64_t lane, int64_t first, int64_t last) {
    vf h[K], A[K];
    for (int i = 0; i < K; ++i) {
        h[i] = load(s.h + (k + i) * R + lane);
        A[i] = load(s.A + (k + i) * R + lane);
    }
    for (int64_t t = first; t < last; ++t) {
        const vf d = load(s.d + t * R + lane), u = load(s.u + t * R + lane);
        const float *B = s.B + t * n + k, *C = s.C + t * n + k;
        vf y = load(s.y + t * R + lane);
        for (int i = 0; i < K; ++i) {
            h[i] = exp2(d * A[i]) * h[i] + u * B[i];
            y += h[i] * C[i];
        }
        store(s.y + t * R + lane, y);
    }
    for (int i = 0; i < K; ++i) store(s.h + (k + i) * R + lane, h[i]);
}

void outputs(const SelectiveScan& a, const ScanTile& tile, ScanChunk& s, int64_t t0, int64_t count) {
    const int64_t lanes = tile.vectors * W;
    for (int64_t t = 0; t < count; ++t) {
        float* y = s.y + t * R;
        if (!a.line.exists(tile.b, t0 + t)) {
            zero(y, lanes);
        } else if (a.z) {
            const char* z_row = a.z.at(tile.b, t0 + t, tile.e);
            prefetch_row(a.z, z_row, kAhead, tile.width);
            load_row(z_row, a.z.type, tile.width, s.row);
            for (int64_t i = 0; i < lanes; i += W) {
                const vf z = load(s.row + i);
                store(y + i, load(y + i) * z * sigmoid(z));
            }
        }
        store_row(a.y.at(tile.b, t0 + t, tile.e), a.y.type, tile.width, y);
    }
}

// A few positions (decoding): turning A and the state so that lanes are channels would cost more than the scan. Here lanes are states,
// which lie side by side in memory; V vectors of them a channel.
constexpr int64_t kFew = 2;

bool few(const SelectiveScan& a) {
    return a.length <= kFew && !a.chunks && (a.n == W || a.n == 2 * W || a.n == 4 * W) && a.A.stride[1] == 1 && a.state.stride[2] == 1 &&
           a.last.stride[2] == 1 && (!a.reset_to || a.reset_to.stride[2] == 1);
}

template <int V>
void advance_few(const SelectiveScan& a, const ScanTile& tile, ScanChunk& s) {
    for (int64_t c = 0; c < tile.width; ++c) {
        const int64_t e = tile.e + c;
        vf h[V], A[V];
        for (int v = 0; v < V; ++v) {
            h[v] = load(a.state.f(tile.b, e) + v * W);
            A[v] = load(a.A.f(e) + v * W) * kLog2e;
        }
        for (int64_t t = 0; t < a.length; ++t) {
            if (a.line.resets(tile.b, t))
                for (int v = 0; v < V; ++v) h[v] = load(a.reset_to.f(tile.b, e) + v * W);
            const float d = s.d[t * R + c], u = s.u[t * R + c];
            vf y = splat(0.0f);
            for (int v = 0; v < V; ++v) {
                h[v] = exp2(d * A[v]) * h[v] + u * load(s.B + t * a.n + v * W);
                y += h[v] * load(s.C + t * a.n + v * W);
            }
            float sum = 0;
            for (int64_t i = 0; i < W; ++i) sum += y[i];
            s.y[t * R + c] += sum;
        }
        for (int v = 0; v < V; ++v) store(a.last.f(tile.b, e) + v * W, h[v]);
    }
}

void run_few(const void* context, int64_t index, char* scratch) {
    const SelectiveScan& a = *static_cast<const SelectiveScan*>(context);
    const ScanTile tile = scan_tile(a, index);
    Arena arena{scratch};
    ScanChunk s;
    s.take(arena, a.n);
    scan_rows(a, tile, s);
    scan_inputs(a, tile, s, 0, a.length);
    if (a.n == W) advance_few<1>(a, tile, s);
    else if (a.n == 2 * W) advance_few<2>(a, tile, s);
    else advance_few<4>(a, tile, s);
    outputs(a, tile, s, 0, a.length);
}

void run(const void* context, int64_t index, char* scratch) {
    const SelectiveScan& a = *static_cast<const SelectiveScan*>(context);
    const ScanTile tile = scan_tile(a, index);
    const int64_t n = a.n;
    Arena arena{scratch};
    ScanChunk s;
    s.take(arena, n);
    scan_constants(a, tile, s);
    gather_state(a.state, tile, n, s.h, 1.0f);
    for (int64_t t0 = 0, chunk = 0; t0 < a.length; t0 += T, ++chunk) {
        const int64_t count = least(T, a.length - t0);
        if (a.chunks)
            for (int64_t i = 0; i < n; ++i) memcpy(a.chunks.f(tile.b, chunk, i, tile.e), s.h + i * R, static_cast<size_t>(tile.width * 4));
        scan_inputs(a, tile, s, t0, count);
        stretches(a.line, tile.b, t0, count, [&](int64_t first, int64_t last, bool from_reset) {
            if (from_reset) memcpy(s.h, s.origin, static_cast<size_t>(n * R * 4));
            for (int64_t lane = 0; lane < tile.vectors * W; lane += W) {
                int64_t k = 0;
                for (; k + 4 <= n; k += 4) advance<4>(s, n, k, lane, first, last);
                for (; k < n; ++k) advance<1>(s, n, k, lane, first, last);
            }
        });
        outputs(a, tile, s, t0, count);
    }
    scatter_state(a.last, tile, n, s.h);
}

}  // namespace

Work selective_scan_work(const SelectiveScan& a) {
    return {a.batch * a.groups * tiles_per_group(a), ScanChunk::bytes(a.n), few(a) ? run_few : run};
}

void selective_scan(const SelectiveScan& a) {
    const Work work = selective_scan_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
