// Gradients of the mesa layer. A first pass over time makes the matrices before each block; then block by block from the end. Those of a long call
// are kept part by part, and each part is gone through forwards once more. The forward kept its solutions x. With y_t = S_t^T x_t and A_t = G_t + Diag(ridge), A_t x_t = q_t, the solution for the negative cotangent of x,
//     A_t h_t = -S_t gy_t,
// is the negative gradient of q, and A_t has the gradient h_t x_t^T. What is left are two linear attentions with the same decays, queries x and
// keys: one has the values v and the cotangents gy, the other the values k and the cotangents h. Between a write j and a position i of a block
// all that counts is
//     E_ij = gy_i . v_j + h_i . k_j    and    M_ij = decay from j to i times x_i . k_j
// and the gradient of a decay is the sum of M_ij E_ij times the strength of j over the writes before it and the positions from it on: sums of
// what decays with them, and none is subtracted.
#include "mesa.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kKept = 128;  // blocks a part

struct Span {
    int64_t first, count;  // positions, in the list of those that exist
    bool fresh, any;       // a reset came before it; whether the matrices before it hold anything
};

struct Grad : MesaHead {
    const MesaGrad& g;
    int64_t* place;
    Span* spans;
    int64_t count = 0;
    float *kept, *begun;            // G and S before the blocks of a part, and before each part
    float *x, *h, *from, *right;    // (rows, ks)
    float *gy, *gv;                 // (rows, vs)
    float *vt, *E, *M;              // (vp, kLine), (rows, kLine) twice
    float *HG, *HS, *turned, *all;  // gradients of G and S: (K, ks), (K, vs); (K or V, ks); of the ridge: (ks,)
    float *reads, *arrives, *gdecay, *gbeta;

    static int64_t slots(const Mesa& a) { return least(kKept, a.length + 1) + a.length / kKept + 1; }
    static int64_t matrices(const Mesa& a) { return a.keys * (padded(a.keys) + padded(a.width)); }
    static int64_t floats(int64_t bytes) { return (bytes + 3) / 4; }
    static int64_t bytes(const Mesa& a) {
        const int64_t vp = ceil_to(a.width, W), ks = padded(a.keys), vs = padded(a.width), larger = a.keys > a.width ? a.keys : a.width;
        const int64_t numbers = 4 * kBlock * ks + 2 * kBlock * vs + (vp + 2 * kBlock + 4) * kLine + matrices(a) * (1 + slots(a)) + (larger + 1) * ks;
        return MesaHead::bytes(a) + 4 * numbers + a.length * 8 + (a.length + 1) * static_cast<int64_t>(sizeof(Span)) + 64 * 24;
    }
    Grad(const MesaGrad& g, int64_t index, Arena arena) : MesaHead(g.forward, index, arena), g(g) {
        const int64_t larger = a.keys > a.width ? a.keys : a.width;
        float **const by_key[] = {&x, &h, &from, &right}, **const numbers[] = {&reads, &arrives, &gdecay, &gbeta};
        for (float** m : by_key) *m = arena.floats(kBlock * ks);
        for (float** m : numbers) *m = arena.floats(kLine);
        gy = arena.floats(kBlock * vs), gv = arena.floats(kBlock * vs), vt = arena.floats(vp * kLine);
        E = arena.floats(kBlock * kLine), M = arena.floats(kBlock * kLine);
        HG = arena.floats(a.keys * ks), HS = arena.floats(a.keys * vs), turned = arena.floats(larger * ks), all = arena.floats(ks);
        kept = arena.floats(slots(a) * matrices(a)), begun = kept + least(kKept, a.length + 1) * matrices(a);
        place = reinterpret_cast<int64_t*>(arena.floats(floats(a.length * 8)));
        spans = reinterpret_cast<Span*>(arena.floats(floats((a.length + 1) * static_cast<int64_t>(sizeof(Span)))));
    }

    void find_blocks();
    void keep(float* to) const;
    void forward(int64_t from, int64_t to, bool all);
    void backward(const Span& o, float* record);
    void solve_all(int64_t n);
    void meet_all(int64_t n);
    void through_matrices(int64_t n);
    void write(int64_t n);
    void go_before(const Span& o);
    void write_nothing(int64_t t);
};

void Grad::find_blocks() {
    int64_t found = 0;
    for (int64_t t = 0; t < a.length; ++count) {
        Span& o = spans[count];
        o.first = found;
        o.count = next(t, place + found, o.fresh);
        if (o.count == 0 && !o.fresh) return;
        found += o.count;
    }
}

void Grad::keep(float* to) const {
    memcpy(to, G, static_cast<size_t>(a.keys * ks * 4));
    memcpy(to + a.keys * ks, S, static_cast<size_t>(a.keys * vs * 4));
}

// Goes on from G and S through blocks [from, to), and keeps what stands before parts, or before all of them.
void Grad::forward(int64_t from, int64_t to, bool all) {
    for (int64_t i = from; i < to; ++i) {
        Span& o = spans[i];
        if (o.fresh) clear();
        o.any = any;
        if (i % kKept == 0) keep(begun + i / kKept * matrices(a));
        if (all) keep(kept + i % kKept * matrices(a));
        if (o.count == 0 || i == count - 1) return;  // nobody asks for the last state
        at = place + o.first;
        load_writes(o.count);
        advance(o.count);
    }
}

// x and h; from: what the cotangents read in the matrix S before the block.
void Grad::solve_all(int64_t n) {
    const int64_t columns = ceil_to(n, W);
    touch_rows(g.gy, b, at[0], at[n - 1] + 1, head, a.width);
    touch_rows(a.x, b, at[0], at[n - 1] + 1, head, a.keys);
    for (int64_t i = 0; i < n; ++i) {
        load_row(g.gy.at(b, at[i], head), g.gy.type, a.width, gy + i * vs);
        load_row(a.x.at(b, at[i], head), kFloat, a.keys, x + i * ks);
    }
    zero(vt, vp * kLine);
    transpose(v, n, vp, vs, vt, kLine);
    zero(E, n * kLine);
    multiply(Shape::out_lower, n, columns, a.width, gy, vs, 1, vt, kLine, E, kLine);
    zero(from, n * ks);
    if (any) {
        zero(turned, a.width * ks);
        transpose(S, a.keys, a.width, vs, turned, ks);
        multiply(Shape::full, n, kp, a.width, gy, vs, 1, turned, ks, from, ks);
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < columns; j += W) store(M + i * kLine + j, -load(E + i * kLine + j) * load(within + i * kLine + j));
        scale_row(from + i * ks, -entry[i], kp, right + i * ks);
    }
    multiply(Shape::lower, n, kp, n, M, kLine, 1, k, ks, right, ks);
    for (int64_t first = 0; first < n; first += kBeside) solve(first, least(kBeside, n - first), right + first * ks, h + first * ks);
}

// M; E, times the decay; within: what the decays between a write and a position scale.
void Grad::meet_all(int64_t n) {
    const int64_t columns = ceil_to(n, W);
    zero(M, n * kLine);
    multiply(Shape::out_lower, n, columns, a.keys, x, ks, 1, kt, kLine, M, kLine);
    multiply(Shape::out_lower, n, columns, a.keys, h, ks, 1, kt, kLine, E, kLine);
    zero(row, kLine);
    for (int64_t i = 0; i < n; ++i) {
        decay_further(row, decay[i], columns);
        row[i] = 1;
        for (int64_t j = 0; j < columns; j += W) {
            const vf since = load(row + j), m = load(M + i * kLine + j) * since, e = load(E + i * kLine + j);
            store(M + i * kLine + j, m);
            store(E + i * kLine + j, e * since);
            store(within + i * kLine + j, m * e * load(beta + j));
        }
    }
}

// from and right: the gradients of the keys, as keys of both attentions and as the values of one, before their strengths; gv and gdecay.
void Grad::through_matrices(int64_t n) {
    float carried = 0;
    zero(reads, kLine);
    if (any) {
        zero(right, n * ks);
        multiply(Shape::full, n, kp, a.keys, x, ks, 1, other, ks, right, ks);
        for (int64_t i = 0; i < n; ++i)
            reads[i] = entry[i] * (dot(x + i * ks, from + i * ks, kp) + dot(h + i * ks, right + i * ks, kp));
        for (int64_t c = 0; c < a.keys; ++c) carried += dot(G + c * ks, HG + c * ks, kp) + dot(S + c * vs, HS + c * vs, vp);
        carried *= entry[n - 1];
    }
    zero(turned, a.width * ks);
    transpose(HS, a.keys, a.width, vs, turned, ks);
    zero(from, n * ks);
    multiply(Shape::full, n, kp, a.width, v, vs, 1, turned, ks, from, ks);
    symmetric(HG, other);
    zero(right, n * ks);
    multiply(Shape::full, n, kp, a.keys, k, ks, 1, other, ks, right, ks);
    zero(gv, n * vs);
    multiply(Shape::full, n, vp, a.keys, k, ks, 1, HS, vs, gv, vs);
    for (int64_t j = 0; j < n; ++j) {
        scale_row(gv + j * vs, left[j], vp, gv + j * vs);
        scale_row(right + j * ks, left[j], kp, right + j * ks);
        scale_row(from + j * ks, left[j], kp, from + j * ks);
        add_row(right + j * ks, 1, kp, from + j * ks);
        arrives[j] = beta[j] * dot(k + j * ks, from + j * ks, kp);
    }
    multiply(Shape::upper, n, kp, n, E, 1, kLine, x, ks, from, ks);
    multiply(Shape::upper, n, kp, n, M, 1, kLine, h, ks, right, ks);
    multiply(Shape::upper, n, vp, n, M, 1, kLine, gy, vs, gv, vs);

    for (int64_t i = 0; i < n; ++i) {
        gdecay[i] = carried;
        carried += arrives[i];
    }
    float later = 0;
    zero(row, kLine);
    for (int64_t i = n - 1; i >= 0; --i) {
        for (int64_t j = 0; j <= i; j += W) store(row + j, load(row + j) + load(within + i * kLine + j));
        later += reads[i];
        float between = 0;
        for (int64_t j = 0; j < i; ++j) between += row[j];
        gdecay[i] += later + between;
    }
}

void Grad::write(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t now = at[i];
        store_number(g.gdecay, g.gdecay.at(b, now, head), gdecay[i]);
        store_number(g.gbeta, g.gbeta.at(b, now, head), dot(k + i * ks, from + i * ks, kp));
        add_row(right + i * ks, 1, kp, from + i * ks);
        scale_row(from + i * ks, beta[i], kp, from + i * ks);
        store_row(g.gk.at(b, now, head), g.gk.type, a.keys, from + i * ks);
        scale_row(gv + i * vs, beta[i], vp, gv + i * vs);
        store_row(g.gv.at(b, now, head), g.gv.type, a.width, gv + i * vs);
        scale_row(h + i * ks, -1, kp, t);
        store_row(g.gq.at(b, now, head), g.gq.type, a.keys, t);
    }
}

// HG and HS from behind the block to before it; the gradient of the ridge.
void Grad::go_before(const Span& o) {
    const int64_t n = o.count;
    for (int64_t c = 0; c < kp && n > 0; c += W) {
        vf total = splat(0);
        for (int64_t i = 0; i < n; ++i) total += load(x + i * ks + c) * load(h + i * ks + c);
        store(all + c, load(all + c) + total);
    }
    if (o.fresh) {
        zero(HG, a.keys * ks);
        zero(HS, a.keys * vs);
        return;
    }
    for (int64_t i = 0; i < n; ++i) scale_row(x + i * ks, entry[i], kp, x + i * ks);
    zero(turned, a.keys * ks);
    multiply(Shape::full, a.keys, kp, n, x, 1, ks, h, ks, turned, ks);
    symmetric(turned, turned);  // that is what was solved with; the gradient of the last G is not symmetric
    for (int64_t c = 0; c < a.keys; ++c) {
        scale_row(HG + c * ks, entry[n - 1], kp, HG + c * ks);
        add_row(turned + c * ks, 1, kp, HG + c * ks);
        scale_row(HS + c * vs, entry[n - 1], vp, HS + c * vs);
    }
    multiply(Shape::full, a.keys, vp, n, x, 1, ks, gy, vs, HS, vs);
}

void Grad::backward(const Span& o, float* record) {
    const int64_t n = o.count;
    if (n > 0) {
        at = place + o.first;
        any = o.any;
        G = record, S = G + a.keys * ks;
        load_writes(n);
        load_matrix(n);
        solve_all(n);
        meet_all(n);
        through_matrices(n);
        write(n);
    }
    go_before(o);
}

// Zeros at a position that does not exist.
void Grad::write_nothing(int64_t t) {
    auto clear = [&](const View& v, int64_t numbers) { memset(v.at(b, t, head), 0, static_cast<size_t>(numbers * v.bytes())); };
    clear(g.gq, a.keys), clear(g.gk, a.keys), clear(g.gv, a.width), clear(g.gbeta, 1), clear(g.gdecay, 1);
}

void run(const void* context, int64_t index, char* scratch) {
    const MesaGrad& g = *static_cast<const MesaGrad*>(context);
    const Mesa& a = g.forward;
    Grad x(g, index, Arena{scratch});
    x.find_blocks();
    x.load_state();
    float *const G = x.G, *const S = x.S;
    const int64_t last = x.count > 0 ? (x.count - 1) / kKept * kKept : 0;  // where the last part begins
    x.forward(0, last, false);
    zero(x.HG, a.keys * x.ks);
    zero(x.HS, a.keys * x.vs);
    zero(x.all, x.ks);
    for (int64_t c = 0; c < a.keys; ++c) {
        if (g.gG_last) load_row(g.gG_last.at(x.b, x.head, c), kFloat, a.keys, x.HG + c * x.ks);
        if (g.gS_last) load_row(g.gS_last.at(x.b, x.head, c), kFloat, a.width, x.HS + c * x.vs);
    }
    for (int64_t part = last; x.count > 0 && part >= 0; part -= kKept) {
        x.G = G, x.S = S;
        if (part < last) {
            const float* from = x.begun + part / kKept * Grad::matrices(a);
            memcpy(G, from, static_cast<size_t>(a.keys * x.ks * 4));
            memcpy(S, from + a.keys * x.ks, static_cast<size_t>(a.keys * x.vs * 4));
            x.any = x.spans[part].any;
        }
        const int64_t stop = least(x.count, part + kKept);
        x.forward(part, stop, true);
        for (int64_t i = stop - 1; i >= part; --i) x.backward(x.spans[i], x.kept + i % kKept * Grad::matrices(a));
    }
    for (int64_t t = 0; t < a.length; ++t)
        if (!a.line.exists(x.b, t)) x.write_nothing(t);
    for (int64_t c = 0; c < a.keys; ++c) {
        store_row(g.gG.at(x.b, x.head, c), kFloat, a.keys, x.HG + c * x.ks);
        store_row(g.gS.at(x.b, x.head, c), kFloat, a.width, x.HS + c * x.vs);
    }
    store_row(g.part_ridge.at(x.b, x.head), kFloat, a.keys, x.all);
}

// Adds up the batch rows' parts of the ridge: one head.
void sum_rows(const void* context, int64_t head, char*) {
    const MesaGrad& g = *static_cast<const MesaGrad*>(context);
    for (int64_t c = 0; c < g.forward.keys; ++c) {
        float total = 0;
        for (int64_t b = 0; b < g.forward.batch; ++b) total += g.part_ridge.f(b, head)[c];
        g.gridge.f(head)[c] = total;
    }
}

}  // namespace

void mesa_backward(const MesaGrad& g) {
    const Mesa& a = g.forward;
    parallel(a.threads, a.batch * a.heads, Grad::bytes(a), run, &g);
    parallel(a.threads, a.heads, 64, sum_rows, &g);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
