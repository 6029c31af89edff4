// The mesa layer, block by block: G_t + Diag(ridge) is never formed at a position. Conjugate gradients run for a few positions side by side, and
// their product with it is linear attention: with the keys of the block, (rows, rows), and with the matrix before it, (K, K). All of a block
// stays in the cache. A position stops by its own residual, so what stands beside it changes nothing.
#include "decay_block.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kBeside = 12;         // positions that are solved side by side
constexpr float kRounding = 1.42e-14f;  // the square of float32's

struct Tile {
    const Mesa& a;
    int64_t b, head, kp, ks, vs;
    int64_t at[kBlock];
    float *q, *k, *put, *kt;              // (rows, ks) three times, (kp, kLine)
    float *within, *met;                  // (rows, kLine): decay from a write, times its strength; (kBeside, kLine)
    float *v, *y;                         // (rows, vs), (kBeside, vs)
    float *x, *r, *p, *t, *image;         // (kBeside, ks)
    float *G, *other, *S;                 // (K, ks), the same, (K, vs)
    float *decay, *beta, *entry, *left, *row, *ridge;
    bool any = false;                     // whether G and S hold anything

    static int64_t bytes(const Mesa& a) {
        const int64_t kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width);
        return 4 * ((3 * kBlock + 5 * kBeside + 2 * kp) * ks + (kp + kBlock + kBeside + 5) * kLine + (kBlock + kBeside + a.keys) * vs + ks) + 64 * 24;
    }
    Tile(const Mesa& a, int64_t index, char* scratch) : a(a), b(index / a.heads), head(index % a.heads) {
        kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width);
        Arena arena{scratch};
        q = arena.floats(kBlock * ks), k = arena.floats(kBlock * ks), put = arena.floats(kBlock * ks), kt = arena.floats(kp * kLine);
        within = arena.floats(kBlock * kLine), met = arena.floats(kBeside * kLine);
        v = arena.floats(kBlock * vs), y = arena.floats(kBeside * vs);
        float **const solved[] = {&x, &r, &p, &t, &image}, **const line[] = {&decay, &beta, &entry, &left, &row};
        for (float** m : solved) *m = arena.floats(kBeside * ks);
        for (float** m : line) *m = arena.floats(kLine);
        G = arena.floats(a.keys * ks), other = arena.floats(a.keys * ks), S = arena.floats(a.keys * vs), ridge = arena.floats(ks);
    }

    static const char* raw(const float* p) { return reinterpret_cast<const char*>(p); }
    void load_state() {
        vi some{};
        for (int64_t c = 0; c < a.keys; ++c) {
            load_row(raw(a.G.f(b, head, c)), kFloat, a.keys, G + c * ks);
            load_row(raw(a.S.f(b, head, c)), kFloat, a.width, S + c * vs);
            for (int64_t i = 0; i < kp; i += W) some |= load(G + c * ks + i) != splat(0);
            for (int64_t i = 0; i < a.width; i += W) some |= load(S + c * vs + i) != splat(0);
        }
        zero(other, a.keys * ks);
        any = !all(some == 0);
        load_row(raw(a.ridge.f(head)), kFloat, a.keys, ridge);
    }
    void store_state() const {
        for (int64_t c = 0; c < a.keys; ++c) {
            memcpy(a.G_last.f(b, head, c), G + c * ks, static_cast<size_t>(a.keys * 4));
            memcpy(a.S_last.f(b, head, c), S + c * vs, static_cast<size_t>(a.width * 4));
        }
    }
    void clear() {
        zero(G, a.keys * ks);
        zero(S, a.keys * vs);
        any = false;
    }

    void load_block(int64_t n);
    void meet(int64_t first, int64_t n, const float* rows);
    void times(int64_t first, int64_t n, const float* rows, float* out);
    void solve(int64_t first, int64_t n);
    void block(int64_t n);
};

void add_row(const float* in, float by, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += W) store(out + i, load(out + i) + load(in + i) * by);
}

void Tile::load_block(int64_t n) {
    const int64_t columns = ceil_to(n, W);
    const View* const inputs[] = {&a.q, &a.k, &a.v};
    for (const View* view : inputs) touch_rows(*view, b, at[0], at[n - 1] + 1, head, view == &a.v ? a.width : a.keys);
    zero(decay, kLine), zero(beta, kLine), zero(row, kLine);
    for (int64_t i = 0; i < n; ++i) {
        load_row(a.q.at(b, at[i], head), a.q.type, a.keys, q + i * ks);
        load_row(a.k.at(b, at[i], head), a.k.type, a.keys, k + i * ks);
        load_row(a.v.at(b, at[i], head), a.v.type, a.width, v + i * vs);
        decay[i] = number(a.decay, b, at[i], head), beta[i] = number(a.beta, b, at[i], head);
    }
    block_decays(n, decay, entry, left);
    for (int64_t i = 0; i < n; ++i) {
        scale_row(k + i * ks, left[i] * beta[i], kp, put + i * ks);
        decay_further(row, decay[i], columns);
        row[i] = 1;
        for (int64_t j = 0; j < columns; j += W) store(within + i * kLine + j, load(row + j) * load(beta + j));
    }
    zero(kt, kp * kLine);
    transpose(k, n, kp, ks, kt, kLine);
    for (int64_t c = 0; c < a.keys && any; ++c)  // a state that was given may not be symmetric
        for (int64_t d = 0; d <= c; ++d) other[c * ks + d] = other[d * ks + c] = 0.5f * (G[c * ks + d] + G[d * ks + c]);
}

// met (n, positions so far): how rows read the writes of the block, for n positions from `first` on.
void Tile::meet(int64_t first, int64_t n, const float* rows) {
    const int64_t columns = ceil_to(first + n, W);
    zero(met, n * kLine);
    multiply(Shape::full, n, columns, a.keys, rows, ks, 1, kt, kLine, met, kLine);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < columns; j += W)
            store(met + i * kLine + j, load(met + i * kLine + j) * load(within + (first + i) * kLine + j));
}

// out = (G_t + Diag(ridge)) rows
void Tile::times(int64_t first, int64_t n, const float* rows, float* out) {
    meet(first, n, rows);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < kp; c += W) store(out + i * ks + c, load(rows + i * ks + c) * load(ridge + c));
    multiply(Shape::full, n, kp, first + n, met, kLine, 1, k, ks, out, ks);
    if (!any) return;
    for (int64_t i = 0; i < n; ++i) scale_row(rows + i * ks, entry[first + i], kp, t + i * ks);
    multiply(Shape::full, n, kp, a.keys, t, ks, 1, other, ks, out, ks);
}

// x with (G_t + Diag(ridge)) x = q at n positions.
void Tile::solve(int64_t first, int64_t n) {
    float rr[kBeside], enough[kBeside];
    zero(x, n * ks);
    for (int64_t i = 0; i < n; ++i) {
        memcpy(r + i * ks, q + (first + i) * ks, static_cast<size_t>(kp * 4));
        memcpy(p + i * ks, q + (first + i) * ks, static_cast<size_t>(kp * 4));
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

void Tile::block(int64_t n) {
    const int64_t vp = ceil_to(a.width, W);
    load_block(n);
    for (int64_t first = 0; first < n; first += kBeside) {
        const int64_t some = least(kBeside, n - first);
        solve(first, some);
        meet(first, some, x);
        zero(y, some * vs);
        multiply(Shape::full, some, vp, first + some, met, kLine, 1, v, vs, y, vs);
        if (any) {
            for (int64_t i = 0; i < some; ++i) scale_row(x + i * ks, entry[first + i], kp, t + i * ks);
            multiply(Shape::full, some, vp, a.keys, t, ks, 1, S, vs, y, vs);
        }
        for (int64_t i = 0; i < some; ++i) store_row(a.y.at(b, at[first + i], head), a.y.type, a.width, y + i * vs);
    }
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

void run(const void* context, int64_t index, char* scratch) {
    const Mesa& a = *static_cast<const Mesa*>(context);
    Tile x(a, index, scratch);
    x.load_state();
    for (int64_t t = 0; t < a.length;) {
        int64_t n = 0;
        for (; t < a.length && n < kBlock; ++t) {
            if (a.line.resets(x.b, t)) {
                if (n > 0) break;
                x.clear();
            }
            if (a.line.exists(x.b, t)) x.at[n++] = t;
            else memset(a.y.at(x.b, t, x.head), 0, static_cast<size_t>(a.width * a.y.bytes()));
        }
        if (n > 0) x.block(n);
    }
    x.store_state();
}

}  // namespace

Work mesa_work(const Mesa& a) { return {a.batch * a.heads, Tile::bytes(a), run}; }

void mesa(const Mesa& a) {
    const Work work = mesa_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
