// What the mesa layer's kernels share: the two matrices of a head, its blocks of positions, and the solutions in them. G_t + Diag(ridge) is never
// formed at a position. Conjugate gradients run for a few positions side by side, and their product with it is linear attention: with the keys
// of the block, (rows, rows), and with the matrix before it, (K, K). A position stops by its own residual, so what stands beside it changes
// nothing.
#pragma once
#include "decay_block.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t kBeside = 12;         // positions that are solved side by side
constexpr float kRounding = 1.42e-14f;  // the square of float32's

static inline const char* raw(const float* p) { return reinterpret_cast<const char*>(p); }

struct MesaHead {
    const Mesa& a;
    int64_t b, head, kp, vp, ks, vs;  // kp, vp: whole vectors; ks, vs: floats of a row
    const int64_t* at = nullptr;      // positions of the block
    float *k, *put, *kt;              // (rows, ks) twice, (kp, kLine)
    float *within, *met;              // (rows, kLine): decay from a write, times its strength; (kBeside, kLine)
    float* v;                         // (rows, vs)
    float *r, *p, *t, *image;         // (kBeside, ks)
    float *G, *other, *S;             // (K, ks), its symmetric part, (K, vs)
    float *decay, *beta, *entry, *left, *row, *ridge;
    bool any = false;                 // whether G and S hold anything

    static int64_t bytes(const Mesa& a) {
        const int64_t kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width);
        return 4 * ((2 * kBlock + 4 * kBeside + 2 * a.keys + 1) * ks + (kp + kBlock + kBeside + 5) * kLine + (kBlock + a.keys) * vs) + 64 * 18;
    }
    MesaHead(const Mesa& a, int64_t index, Arena& arena) : a(a), b(index / a.heads), head(index % a.heads) {
        kp = ceil_to(a.keys, W), vp = ceil_to(a.width, W), ks = padded(a.keys), vs = padded(a.width);
        k = arena.floats(kBlock * ks), put = arena.floats(kBlock * ks), kt = arena.floats(kp * kLine);
        within = arena.floats(kBlock * kLine), met = arena.floats(kBeside * kLine);
        v = arena.floats(kBlock * vs);
        float **const solved[] = {&r, &p, &t, &image}, **const line[] = {&decay, &beta, &entry, &left, &row};
        for (float** m : solved) *m = arena.floats(kBeside * ks);
        for (float** m : line) *m = arena.floats(kLine);
        G = arena.floats(a.keys * ks), other = arena.floats(a.keys * ks), S = arena.floats(a.keys * vs), ridge = arena.floats(ks);
        load_row(raw(a.ridge.f(head)), kFloat, a.keys, ridge);
        zero(other, a.keys * ks);
    }

    void load_state() {
        vi some{};
        for (int64_t c = 0; c < a.keys; ++c) {
            load_row(raw(a.G.f(b, head, c)), kFloat, a.keys, G + c * ks);
            load_row(raw(a.S.f(b, head, c)), kFloat, a.width, S + c * vs);
            for (int64_t i = 0; i < kp; i += W) some |= load(G + c * ks + i) != splat(0);
            for (int64_t i = 0; i < a.width; i += W) some |= load(S + c * vs + i) != splat(0);
        }
        any = !all(some == 0);
    }

    void clear() {
        zero(G, a.keys * ks);
        zero(S, a.keys * vs);
        any = false;
    }

    // The positions of the block from t on, which goes behind them; fresh: a reset came before them. With none, t is behind the last position.
    int64_t next(int64_t& t, int64_t* found, bool& fresh) const {
        int64_t n = 0;
        fresh = false;
        for (; t < a.length && n < kBlock; ++t) {
            if (a.line.resets(b, t)) {
                if (n > 0) break;
                fresh = true;
            }
            if (a.line.exists(b, t)) found[n++] = t;
        }
        return n;
    }

    // Keys, values, strengths and decays, and what is written for the block's end.
    void load_writes(int64_t n) {
        touch_rows(a.k, b, at[0], at[n - 1] + 1, head, a.keys);
        touch_rows(a.v, b, at[0], at[n - 1] + 1, head, a.width);
        zero(decay, kLine), zero(beta, kLine);
        for (int64_t i = 0; i < n; ++i) {
            load_row(a.k.at(b, at[i], head), a.k.type, a.keys, k + i * ks);
            load_row(a.v.at(b, at[i], head), a.v.type, a.width, v + i * vs);
            decay[i] = number(a.decay, b, at[i], head), beta[i] = number(a.beta, b, at[i], head);
        }
        block_decays(n, decay, entry, left);
        for (int64_t i = 0; i < n; ++i) scale_row(k + i * ks, left[i] * beta[i], kp, put + i * ks);
    }

    // What a product with the matrix of a position needs.
    void load_matrix(int64_t n) {
        const int64_t columns = ceil_to(n, W);
        zero(row, kLine);
        for (int64_t i = 0; i < n; ++i) {
            decay_further(row, decay[i], columns);
            row[i] = 1;
            for (int64_t j = 0; j < columns; j += W) store(within + i * kLine + j, load(row + j) * load(beta + j));
        }
        zero(kt, kp * kLine);
        transpose(k, n, kp, ks, kt, kLine);
        if (any) symmetric(G, other);  // a state that was given may not be symmetric
    }

    void symmetric(const float* in, float* out) const {
        for (int64_t c = 0; c < a.keys; ++c)
            for (int64_t d = 0; d <= c; ++d) out[c * ks + d] = out[d * ks + c] = 0.5f * (in[c * ks + d] + in[d * ks + c]);
    }

    // met (n, positions so far): how rows read the writes of the block, for n positions from `first` on.
    void meet(int64_t first, int64_t n, const float* rows) {
        const int64_t columns = ceil_to(first + n, W);
        zero(met, n * kLine);
        multiply(Shape::full, n, columns, a.keys, rows, ks, 1, kt, kLine, met, kLine);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < columns; j += W)
                store(met + i * kLine + j, load(met + i * kLine + j) * load(within + (first + i) * kLine + j));
    }

    // out = (G_t + Diag(ridge)) rows
    void times(int64_t first, int64_t n, const float* rows, float* out) {
        meet(first, n, rows);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < kp; c += W) store(out + i * ks + c, load(rows + i * ks + c) * load(ridge + c));
        multiply(Shape::full, n, kp, first + n, met, kLine, 1, k, ks, out, ks);
        if (!any) return;
        for (int64_t i = 0; i < n; ++i) scale_row(rows + i * ks, entry[first + i], kp, t + i * ks);
        multiply(Shape::full, n, kp, a.keys, t, ks, 1, other, ks, out, ks);
    }

    // x with (G_t + Diag(ridge)) x = right at n positions, (n, ks) both.
    void solve(int64_t first, int64_t n, const float* right, float* x) {
        float rr[kBeside], enough[kBeside];
        zero(x, n * ks);
        for (int64_t i = 0; i < n; ++i) {
            memcpy(r + i * ks, right + i * ks, static_cast<size_t>(kp * 4));
            memcpy(p + i * ks, right + i * ks, static_cast<size_t>(kp * 4));
            rr[i] = dot(r + i * ks, r + i * ks, kp);
            enough[i] = rr[i] * kRounding;
        }
        for (int64_t step = 0; step < a.iterations; ++step) {
            bool going = false;
            for (int64_t i = 0; i < n; ++i) going |= rr[i] > enough[i];
            if (!going) return;
            times(first, n, p, image);
            for (int64_t i = 0; i < n; ++i) {
                if (!(rr[i] > enough[i])) continue;
                const float alpha = rr[i] / dot(p + i * ks, image + i * ks, kp), old = rr[i];
                add_row(p + i * ks, alpha, kp, x + i * ks);
                add_row(image + i * ks, -alpha, kp, r + i * ks);
                rr[i] = dot(r + i * ks, r + i * ks, kp);
                const float beside = rr[i] > enough[i] ? rr[i] / old : 0;
                for (int64_t c = 0; c < kp; c += W) store(p + i * ks + c, load(r + i * ks + c) + load(p + i * ks + c) * beside);
            }
        }
    }

    // G and S from before the block to behind it.
    void advance(int64_t n) {
        if (any) {
            for (int64_t c = 0; c < a.keys; ++c) {
                scale_row(G + c * ks, entry[n - 1], kp, G + c * ks);
                scale_row(S + c * vs, entry[n - 1], vp, S + c * vs);
            }
        } else {
            clear();
        }
        any = true;
        multiply(Shape::full, a.keys, kp, n, put, 1, ks, k, ks, G, ks);
        multiply(Shape::full, a.keys, vp, n, put, 1, ks, v, vs, S, vs);
    }
};

}  // namespace STATESCAN_ISA
}  // namespace statescan
