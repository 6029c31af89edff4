// One position of linear attention and the delta rule, straight from the old state to the new one: a head is a tile, and its state is gone
// over once, or twice where what is written depends on what is read.
#include "rows.h"
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

// R rows: S = d S + k u^T, and y += (d S)^T q where there is a query.
template <int R, bool kQuery>
void write_rows(int64_t width, const float* s, float* to, const float* d, const float* k, const float* q, const float* u, float* y) {
    int64_t v = 0;
    for (; v + W <= width; v += W) {
        const vf w = load(u + v);
        vf out = kQuery ? load(y + v) : splat(0);
        for (int64_t i = 0; i < R; ++i) {
            const vf h = load(s + i * width + v) * d[i];
            if (kQuery) out += h * q[i];
            store(to + i * width + v, h + w * k[i]);
        }
        if (kQuery) store(y + v, out);
    }
    for (; v < width; ++v)
        for (int64_t i = 0; i < R; ++i) {
            const float h = s[i * width + v] * d[i];
            if (kQuery) y[v] += h * q[i];
            to[i * width + v] = h + u[v] * k[i];
        }
}

template <bool kQuery>
void write_state(int64_t keys, int64_t width, const float* s, float* to, const float* d, const float* k, const float* q, const float* u,
                 float* y) {
    int64_t c = 0;
    for (; c + 4 <= keys; c += 4) write_rows<4, kQuery>(width, s + c * width, to + c * width, d + c, k + c, q + c, u, y);
    for (; c < keys; ++c) write_rows<1, kQuery>(width, s + c * width, to + c * width, d + c, k + c, q + c, u, y);
}

void by_keys(const MatrixStep& a, float* row, int64_t head, const float* before, float* after, Arena& arena) {
    const int64_t K = a.keys, V = a.width, group = head / (a.heads / a.groups), padded = ceil_to(K, W);
    float *d = arena.floats(padded), *w = arena.floats(padded), *t = arena.floats(ceil_to(V, W));
    const float* q = row + a.q + group * K;
    float* y = row + a.y + head * V;
    for (int64_t c = 0; c < K; ++c) d[c] = a.decay < 0 ? 1 : row[a.decay + (a.by_channel ? head * K + c : head)];
    const float* s = before;
    for (int64_t j = 0; j < a.writes; ++j, s = after) {
        const float* k = row + a.key + (j * a.groups + group) * K;
        const float* value = row + a.value + ((a.read < 0 ? j : j - 1) * a.heads + head) * V;
        const float* u = value;
        if (a.read >= 0 && j == 0) {
            read_state(K, V, s, row + a.read + head * K, t);
            for (int64_t v = 0; v < V; ++v) t[v] = -t[v];
            u = t;
        } else if (a.beta >= 0) {
            const float beta = row[a.beta + j * a.heads + head];
            for (int64_t c = 0; c < K; ++c) w[c] = d[c] * k[c];
            read_state(K, V, s, w, t);
            for (int64_t v = 0; v < V; ++v) t[v] = beta * (value[v] - t[v]);
            u = t;
        }
        if (j + 1 < a.writes) {
            write_state<false>(K, V, s, after, d, k, q, u, y);
            for (int64_t c = 0; c < K; ++c) d[c] = 1;
            continue;
        }
        // A query sees what is written now through q^T k, as in matrix_state.cpp.
        const float met = dot(q, k, K);
        for (int64_t v = 0; v < V; ++v) y[v] = met * u[v];
        write_state<true>(K, V, s, after, d, k, q, u, y);
    }
    for (int64_t v = 0; v < V; ++v) y[v] *= a.scale;
}

// State (V, K): a row is a value channel, and all writes and queries meet it at once. N: writes, Q: queries.
template <int N, int Q>
void by_values(const MatrixStep& a, float* row, int64_t head, const float* before, float* after) {
    const int64_t K = a.keys, V = a.width, group = head / (a.heads / a.groups);
    const float d = a.decay < 0 ? 1 : row[a.decay + head];
    const float *k = row + a.key + group * K, *q = row + a.q + group * K, *value = row + a.value + head * V;
    float* y = row + a.y + head * V;
    for (int64_t v = 0; v < V; ++v, before += K, after += K) {
        float u[N], rest[Q] = {};
        vf out[Q] = {};
        for (int j = 0; j < N; ++j) u[j] = value[j * a.heads * V + v];
        int64_t c = 0;
        for (; c + W <= K; c += W) {
            vf h = load(before + c) * d;
            for (int j = 0; j < N; ++j) h += u[j] * load(k + j * a.groups * K + c);
            for (int i = 0; i < Q; ++i) out[i] += h * load(q + i * a.groups * K + c);
            store(after + c, h);
        }
        for (; c < K; ++c) {
            float h = before[c] * d;
            for (int j = 0; j < N; ++j) h += u[j] * k[j * a.groups * K + c];
            for (int i = 0; i < Q; ++i) rest[i] += h * q[i * a.groups * K + c];
            after[c] = h;
        }
        for (int i = 0; i < Q; ++i) y[i * a.heads * V + v] = a.scale * (sum(out[i]) + rest[i]);
    }
}

}  // namespace

int64_t matrix_step_scratch(const MatrixStep& a) { return 4 * (2 * ceil_to(a.keys, W) + ceil_to(a.width, W)) + 3 * 64; }

void matrix_step(const ProgramRun& run, const MatrixStep& a, int64_t tile, char* scratch) {
    const int64_t head = tile % a.heads, b = tile / a.heads, at = tile * a.keys * a.width;
    float* row = run.workspace + b * run.program.stride;
    const float* before = run.before[a.state] + at;
    float* after = run.after[a.state] + at;
    Arena arena{scratch};
    if (!a.transposed) return by_keys(a, row, head, before, after, arena);
    switch (a.queries) {  // as many writes of this position as queries, and as many of the one before
        case 1: return by_values<2, 1>(a, row, head, before, after);
        case 2: return by_values<4, 2>(a, row, head, before, after);
        case 3: return by_values<6, 3>(a, row, head, before, after);
        default: return by_values<8, 4>(a, row, head, before, after);
    }
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
