// Gradients of ssd, chunk by chunk from the end; each chunk starts from its saved state. Summed over tiles or batch rows afterwards, in a
// fixed order: part_B, part_C (tiles, L, N), part_A, part_bias (B, H), part_D (B, H, P), part_interval (tiles, L).
#include "ssd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

struct GradChunk {
    int64_t np, pp;
    float *B, *C, *scaled, *tmp, *gB, *gC;                 // (T, Np)
    float *Bt, *Xt;                                        // (N, T), (P, T)
    float *S, *M, *G;                                      // (T, T)
    float *X, *gY, *gX;                                    // (T, Pp)
    float *state, *turned;                                 // (N, Pp), (P, Np)
    float *origin, *gstate, *greset;                       // (heads, N, Pp)
    float *gA, *gbias, *gD;                                // (heads,), (heads,), (heads, Pp)
    float *gd, *interval;                                  // (T,)
    double *gsum, *column;                                 // (T,): of the running sum of d A
    Steps steps;

    static int64_t bytes(int64_t np, int64_t pp) {
        return 4 * (7 * T * np + 4 * T * pp + 3 * T * T + 2 * np * pp + 3 * kHeads * np * pp + 2 * kHeads + kHeads * pp + 6 * T +
                    Steps::kRows * T) + 64 * 48;
    }
    GradChunk(Arena& arena, const Ssd& a) : np(ceil_to(a.n, W)), pp(ceil_to(a.p, W)) {
        B = arena.floats(T * np); C = arena.floats(T * np); scaled = arena.floats(T * np); tmp = arena.floats(T * np);
        gB = arena.floats(T * np); gC = arena.floats(T * np); Bt = arena.floats(T * np); Xt = arena.floats(T * pp);
        S = arena.floats(T * T); M = arena.floats(T * T); G = arena.floats(T * T);
        X = arena.floats(T * pp); gY = arena.floats(T * pp); gX = arena.floats(T * pp);
        state = arena.floats(np * pp); turned = arena.floats(np * pp);
        origin = arena.floats(kHeads * np * pp); gstate = arena.floats(kHeads * np * pp); greset = arena.floats(kHeads * np * pp);
        gA = arena.floats(kHeads); gbias = arena.floats(kHeads); gD = arena.floats(kHeads * pp);
        gd = arena.floats(T); interval = arena.floats(T);
        gsum = reinterpret_cast<double*>(arena.floats(2 * T));
        column = reinterpret_cast<double*>(arena.floats(2 * T));
        steps.take(arena);
    }
};

void add_rows(const float* in, const float* by, int64_t count, int64_t width, float* out) {
    for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < width; i += W) store(out + t * width + i, load(out + t * width + i) + load(in + t * width + i) * by[t]);
}

typedef double vd __attribute__((vector_size(W * 8)));

// The products inside the chunk: M, its gradient's parts G (of S), gd and gsum. What a row adds to gsum, columns
// take away again, so these sums are in double precision.
void within(GradChunk& c, int64_t count) {
    const Steps& s = c.steps;
    for (int64_t t = 0; t < count; ++t) {
        vd row = {};
        for (int64_t j = 0; j < T; j += W) {
            float *M = c.M + t * T + j, *G = c.G + t * T + j;
            if (j > t) {
                store(M, splat(0));
                store(G, splat(0));
                continue;
            }
            const vf e = decay(s, t, j), d = load(s.d + j), g = load(G);
            const vi some = e != splat(0);
            const vf se = some ? e * load(c.S + t * T + j) : splat(0), gm = some ? g : splat(0);
            const vi earlier = load(s.index + j) < splat(s.index[t]);  // on the diagonal nothing has decayed
            const vf m = se * d, q = earlier ? gm * m : splat(0);
            store(M, m);
            store(G, gm * e * d);
            store(c.gd + j, load(c.gd + j) + gm * se);
            const vd exact = __builtin_convertvector(q, vd);
            vd column;
            memcpy(&column, c.column + j, sizeof column);
            column += exact;
            memcpy(c.column + j, &column, sizeof column);
            row += exact;
        }
        for (int64_t l = 0; l < W; ++l) c.gsum[t] += row[l];
    }
    for (int64_t t = 0; t < count; ++t) c.gsum[t] -= c.column[t];
}

// What came out of a state through C: gC, and the gradient of the decay `by` since it. tmp is gY times that state.
void through_state(GradChunk& c, const float* state, const float* by, int64_t n, int64_t p, int64_t count, bool reset) {
    Steps& s = c.steps;
    zero(c.turned, c.np * c.pp);
    transpose(state, n, p, c.pp, c.turned, c.np);
    zero(c.tmp, count * c.np);
    multiply(Shape::full, count, c.np, p, c.gY, c.pp, 1, c.turned, c.np, c.tmp, c.np);
    add_rows(c.tmp, by, count, c.np, c.gC);
    for (int64_t t = 0; t < count; ++t) {
        const double v = by[t] * dot(c.C + t * c.np, c.tmp + t * c.np, c.np);
        c.gsum[t] += v;
        if (reset && s.segment[t] > 0 && s.start[t] > 0) c.gsum[s.start[t] - 1] -= v;
    }
}

void head_chunk(const SsdGrad& a, const SsdTile& tile, GradChunk& c, int64_t i, int64_t t0, int64_t count) {
    const Ssd& f = a.forward;
    const int64_t head = tile.head + i, np = c.np, pp = c.pp, n = f.n, b = tile.b, end = count - 1;
    float *origin = c.origin + i * np * pp, *gstate = c.gstate + i * np * pp, *greset = c.greset + i * np * pp;
    Steps& s = c.steps;
    find_steps(f, b, head, t0, count, s);
    read_rows(f, f.x, b, head, t0, count, f.p, pp, c.X);
    read_rows(f, a.gy, b, head, t0, count, f.p, pp, c.gY);
    zero(c.state, n * pp);
    for (int64_t j = 0; j < n; ++j) memcpy(c.state + j * pp, f.chunks.f(b, t0 / T, head, j), static_cast<size_t>(f.p * 4));
    zero(c.gd, T);
    for (int64_t t = 0; t < T; ++t) c.gsum[t] = c.column[t] = 0;

    zero(c.Xt, pp * T);
    transpose(c.X, count, f.p, pp, c.Xt, T);
    zero(c.G, T * T);
    multiply(Shape::out_lower, count, T, f.p, c.gY, pp, 1, c.Xt, T, c.G, T);
    within(c, count);
    multiply(Shape::lower, count, np, count, c.G, T, 1, c.B, np, c.gC, np);
    multiply(Shape::upper, count, np, count, c.G, 1, T, c.C, np, c.gB, np);

    zero(c.gX, count * pp);
    if (f.D) {
        float* gD = c.gD + i * pp;
        load_row(f.D.at(head), kFloat, f.p, c.tmp);
        for (int64_t t = 0; t < count; ++t)
            for (int64_t j = 0; j < pp; j += W) {
                const vf g = load(c.gY + t * pp + j);
                store(c.gX + t * pp + j, load(c.tmp + j) * g);
                store(gD + j, load(gD + j) + g * load(c.X + t * pp + j));
            }
    }
    multiply(Shape::upper, count, pp, count, c.M, 1, T, c.gY, pp, c.gX, pp);
    scale_rows(c.B, s.weight, count, np, c.scaled);
    multiply(Shape::full, count, pp, n, c.scaled, np, 1, gstate, pp, c.gX, pp);

    through_state(c, c.state, s.from_state, n, f.p, count, false);
    if (s.has_reset()) through_state(c, origin, s.from_reset, n, f.p, count, true);

    zero(c.turned, np * pp);
    transpose(gstate, n, f.p, pp, c.turned, np);
    zero(c.tmp, count * np);
    multiply(Shape::full, count, np, f.p, c.X, pp, 1, c.turned, np, c.tmp, np);
    add_rows(c.tmp, s.weight, count, np, c.gB);
    for (int64_t t = 0; t < count; ++t) {
        const float q = dot(c.B + t * np, c.tmp + t * np, np);
        c.gd[t] += s.to_end[t] * q;
        c.gsum[t] -= static_cast<double>(s.weight[t]) * q;
        c.gsum[end] += static_cast<double>(s.weight[t]) * q;
    }
    const double kept = static_cast<double>(s.total) * dot(gstate, s.has_reset() ? origin : c.state, n * pp);
    c.gsum[end] += kept;
    if (s.has_reset()) {
        if (s.start[end] > 0) c.gsum[s.start[end] - 1] -= kept;
        for (int64_t j = 0; j < n * pp; j += W) {
            store(greset + j, load(greset + j) + load(gstate + j) * s.total);
            store(gstate + j, splat(0));
        }
        scale_rows(c.C, s.from_reset, count, np, c.scaled);
        multiply(Shape::full, n, pp, count, c.scaled, 1, np, c.gY, pp, greset, pp);
    } else {
        for (int64_t j = 0; j < n * pp; j += W) store(gstate + j, load(gstate + j) * s.total);
    }
    scale_rows(c.C, s.from_state, count, np, c.scaled);
    multiply(Shape::full, n, pp, count, c.scaled, 1, np, c.gY, pp, gstate, pp);

    double later = 0, gA = 0;
    const double A = *f.A.f(head);
    float gate[T];  // slope of the positive step over the raw one; the bounds of the clamp still pass
    for (int64_t t = 0; t < T; t += W) {
        const vf raw = load(s.raw + t), step = f.softplus ? softplus(raw) : raw;
        const vi inside = (step >= splat(f.low)) & (step <= splat(f.high));
        store(gate + t, inside ? (f.softplus ? sigmoid(raw) : splat(1)) : splat(0));
    }
    for (int64_t t = end; t >= 0; --t) {
        later += c.gsum[t];
        float out[W] = {};
        if (f.line.exists(b, t0 + t)) {
            const float gd = c.gd[t] + static_cast<float>(A * later);
            gA += s.d[t] * later;
            c.interval[t] += gd * s.positive[t];
            out[0] = gd * f.line.time(b, t0 + t) * gate[t];
            c.gbias[i] += out[0];
        } else {
            zero(c.gX + t * pp, pp);
        }
        store_row(a.gdelta.at(b, t0 + t, head), a.gdelta.type, 1, out);
        store_row(a.gx.at(b, t0 + t, head), a.gx.type, f.p, c.gX + t * pp);
    }
    c.gA[i] += static_cast<float>(gA);
}

void run(const void* context, int64_t index, char* scratch) {
    const SsdGrad& a = *static_cast<const SsdGrad*>(context);
    const Ssd& f = a.forward;
    const SsdTile tile = ssd_tile(f, index);
    Arena arena{scratch};
    GradChunk c(arena, f);
    const int64_t np = c.np, pp = c.pp, n = f.n;
    zero(c.gA, kHeads);
    zero(c.gbias, kHeads);
    zero(c.gD, kHeads * pp);
    zero(c.gstate, kHeads * np * pp);
    zero(c.greset, kHeads * np * pp);
    for (int64_t i = 0; i < tile.heads; ++i) {
        if (f.reset_to) read_state(f.reset_to, tile.b, tile.head + i, f.p, n, pp, c.origin + i * np * pp);
        if (a.glast) read_state(a.glast, tile.b, tile.head + i, f.p, n, pp, c.gstate + i * np * pp);
    }
    for (int64_t chunk = (f.length - 1) / T; chunk >= 0; --chunk) {
        const int64_t t0 = chunk * T, count = least(T, f.length - t0);
        read_rows(f, f.B, tile.b, tile.g, t0, count, n, np, c.B);
        read_rows(f, f.C, tile.b, tile.g, t0, count, n, np, c.C);
        zero(c.Bt, n * T);
        transpose(c.B, count, n, np, c.Bt, T);
        zero(c.S, T * T);
        multiply(Shape::out_lower, count, T, n, c.C, np, 1, c.Bt, T, c.S, T);
        zero(c.gB, count * np);
        zero(c.gC, count * np);
        zero(c.interval, T);
        for (int64_t i = 0; i < tile.heads; ++i) head_chunk(a, tile, c, i, t0, count);
        for (int64_t t = 0; t < count; ++t) {
            memcpy(a.part_B.f(tile.index, t0 + t), c.gB + t * np, static_cast<size_t>(n * 4));
            memcpy(a.part_C.f(tile.index, t0 + t), c.gC + t * np, static_cast<size_t>(n * 4));
            if (f.line.interval) *a.part_interval.f(tile.index, t0 + t) = c.interval[t];
        }
    }
    for (int64_t i = 0; i < tile.heads; ++i) {
        const int64_t head = tile.head + i;
        *a.part_A.f(tile.b, head) = c.gA[i];
        *a.part_bias.f(tile.b, head) = c.gbias[i];
        memcpy(a.part_D.f(tile.b, head), c.gD + i * pp, static_cast<size_t>(f.p * 4));
        transpose(c.gstate + i * np * pp, n, f.p, pp, a.gstate.f(tile.b, head), n);
        if (a.greset) transpose(c.greset + i * np * pp, n, f.p, pp, a.greset.f(tile.b, head), n);
    }
}

// Adds up the tiles' parts of B, C and the interval: one chunk of one batch row.
void sum_tiles(const void* context, int64_t index, char* scratch) {
    const SsdGrad& a = *static_cast<const SsdGrad*>(context);
    const Ssd& f = a.forward;
    const int64_t chunks = (f.length + T - 1) / T, per_group = head_tiles(f), n = f.n;
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
            *a.ginterval.f(b, t) = f.line.exists(b, t) ? elapsed : 0.0f;
        }
    }
}

// Adds up the batch rows' parts of A, D and the bias: one head.
void sum_rows(const void* context, int64_t head, char*) {
    const SsdGrad& a = *static_cast<const SsdGrad*>(context);
    const Ssd& f = a.forward;
    float gA = 0, gbias = 0;
    for (int64_t b = 0; b < f.batch; ++b) {
        gA += *a.part_A.f(b, head);
        gbias += *a.part_bias.f(b, head);
    }
    *a.gA.f(head) = gA;
    if (a.gbias) *a.gbias.f(head) = gbias;
    if (!a.gD) return;
    for (int64_t p = 0; p < f.p; ++p) {
        float gD = 0;
        for (int64_t b = 0; b < f.batch; ++b) gD += *a.part_D.f(b, head, p);
        *a.gD.f(head, p) = gD;
    }
}

}  // namespace

void ssd_backward(const SsdGrad& a) {
    const Ssd& f = a.forward;
    const int64_t np = ceil_to(f.n, W), pp = ceil_to(f.p, W);
    parallel(f.threads, f.batch * f.groups * head_tiles(f), GradChunk::bytes(np, pp), run, &a);
    parallel(f.threads, f.batch * ((f.length + T - 1) / T), 4 * np, sum_tiles, &a);
    parallel(f.threads, f.heads, 64, sum_rows, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
