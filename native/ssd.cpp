// State-space duality: inside a chunk a masked matrix product, between chunks a state. A few positions run as the recurrence instead.
#include "ssd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kRecurrent = 4;  // up to this length the recurrence costs less than bringing the state into matrix form

struct Chunk {
    int64_t np, pp;
    float *B, *C;                 // (T, Np)
    float *Bt;                    // (N, T)
    float *S, *M;                 // (T, T)
    float *X, *Y, *D;             // (T, Pp); one row of D
    float *state, *origin;        // (heads, N, Pp)
    Steps steps;

    static int64_t bytes(int64_t np, int64_t pp) {
        return 4 * (3 * T * np + 2 * T * T + (2 * T + 1) * pp + 2 * kHeads * np * pp + Steps::kRows * T) + 64 * 32;
    }
    Chunk(Arena& arena, const Ssd& a) : np(ceil_to(a.n, W)), pp(ceil_to(a.p, W)) {
        B = arena.floats(T * np); C = arena.floats(T * np); Bt = arena.floats(T * np);
        S = arena.floats(T * T); M = arena.floats(T * T);
        X = arena.floats(T * pp); Y = arena.floats(T * pp); D = arena.floats(pp);
        state = arena.floats(kHeads * np * pp); origin = arena.floats(kHeads * np * pp);
        steps.take(arena);
    }
};

// Rows are too far apart for the hardware to look ahead: what the next head reads, or the next chunk, is asked for while this one computes, and
// so is where the outputs of this one go.
STATESCAN_INLINE void ask(const Ssd& a, const SsdTile& tile, int64_t i, int64_t t0, int64_t t) {
    const auto row = [&](const View& v, int64_t at, int64_t k, int64_t width) __attribute__((always_inline)) {  // else GCC sees no effect
        const char* p = v.at(tile.b, at, k);
        for (int64_t j = 0; j < width * (v.type == kFloat ? 4 : 2); j += 64) __builtin_prefetch(p + j, 0, 2);
    };
    row(a.y, t0 + t, tile.head + i, a.p);
    if (i + 1 < tile.heads) {
        row(a.x, t0 + t, tile.head + i + 1, a.p);
    } else if (t0 + T + t < a.length) {
        row(a.x, t0 + T + t, tile.head, a.p);
        row(a.B, t0 + T + t, tile.g, a.n);
        row(a.C, t0 + T + t, tile.g, a.n);
    }
}

void head_chunk(const Ssd& a, const SsdTile& tile, Chunk& c, int64_t i, int64_t t0, int64_t count) {
    const int64_t head = tile.head + i, np = c.np, pp = c.pp, n = a.n;
    float *state = c.state + i * np * pp, *origin = c.origin + i * np * pp;
    Steps& s = c.steps;
    find_steps(a, tile.b, head, t0, count, s);
    read_rows(a, a.x, tile.b, head, t0, count, a.p, pp, c.X);
    for (int64_t t = 0; t < count; ++t) {
        ask(a, tile, i, t0, t);
        for (int64_t j = 0; j < T; j += W) {
            const bool reaches = j <= t;
            const vf e = reaches ? decay(s, t, j) : splat(0);
            const vi some = e != splat(0);
            store(c.M + t * T + j, some ? e * load(c.S + t * T + j) * load(s.d + j) : splat(0));
        }
    }
    // Positions behind the chunk's first reset read the state of the reset; what it decayed since is applied to the product.
    zero(c.Y, count * pp);
    multiply(Shape::full, s.before_reset, pp, n, c.C, np, 1, state, pp, c.Y, pp);
    multiply(Shape::full, count - s.before_reset, pp, n, c.C + s.before_reset * np, np, 1, origin, pp, c.Y + s.before_reset * pp, pp);
    scale_rows(c.Y, s.from_state, s.before_reset, pp, c.Y);
    scale_rows(c.Y + s.before_reset * pp, s.from_reset + s.before_reset, count - s.before_reset, pp, c.Y + s.before_reset * pp);
    if (a.D) {
        load_row(a.D.at(head), kFloat, a.p, c.D);
        for (int64_t t = 0; t < count; ++t)
            for (int64_t j = 0; j < pp; j += W) store(c.Y + t * pp + j, load(c.Y + t * pp + j) + load(c.D + j) * load(c.X + t * pp + j));
    }
    multiply(Shape::lower, count, pp, count, c.M, T, 1, c.X, pp, c.Y, pp);
    for (int64_t t = 0; t < count; ++t) {
        if (!a.line.exists(tile.b, t0 + t)) zero(c.Y + t * pp, pp);
        store_row(a.y.at(tile.b, t0 + t, head), a.y.type, a.p, c.Y + t * pp);
    }
    const float* from = s.has_reset() ? origin : state;
    for (int64_t j = 0; j < n * pp; j += W) store(state + j, load(from + j) * s.total);
    scale_rows(c.X, s.weight, count, pp, c.X);
    multiply(Shape::full, n, pp, count, c.B, 1, np, c.X, pp, state, pp);
}

void run(const void* context, int64_t index, char* scratch) {
    const Ssd& a = *static_cast<const Ssd*>(context);
    const SsdTile tile = ssd_tile(a, index);
    Arena arena{scratch};
    Chunk c(arena, a);
    const int64_t np = c.np, pp = c.pp;
    for (int64_t i = 0; i < tile.heads; ++i) {
        read_state(a.state, tile.b, tile.head + i, a.p, a.n, pp, c.state + i * np * pp);
        if (a.reset_to) read_state(a.reset_to, tile.b, tile.head + i, a.p, a.n, pp, c.origin + i * np * pp);
    }
    for (int64_t t0 = 0; t0 < a.length; t0 += T) {
        const int64_t count = least(T, a.length - t0);
        if (a.chunks)
            for (int64_t i = 0; i < tile.heads; ++i)
                for (int64_t j = 0; j < a.n; ++j)
                    memcpy(a.chunks.f(tile.b, t0 / T, tile.head + i, j), c.state + (i * np + j) * pp, static_cast<size_t>(a.p * 4));
        read_rows(a, a.B, tile.b, tile.g, t0, count, a.n, np, c.B);
        read_rows(a, a.C, tile.b, tile.g, t0, count, a.n, np, c.C);
        zero(c.Bt, a.n * T);
        transpose(c.B, count, a.n, np, c.Bt, T);
        zero(c.S, T * T);
        multiply(Shape::out_lower, count, T, a.n, c.C, np, 1, c.Bt, T, c.S, T);
        for (int64_t i = 0; i < tile.heads; ++i) head_chunk(a, tile, c, i, t0, count);
    }
    for (int64_t i = 0; i < tile.heads; ++i) transpose(c.state + i * np * pp, a.n, a.p, pp, a.last.f(tile.b, tile.head + i), a.n);
}

// One head, a few positions: h = decay h + d x B, y = h C, one row of the state at a time.
void recurrent(const void* context, int64_t index, char* scratch) {
    const Ssd& a = *static_cast<const Ssd*>(context);
    const int64_t b = index / a.heads, head = index % a.heads, g = head / (a.heads / a.groups), length = a.length;
    const int64_t np = ceil_to(a.n, W), pp = ceil_to(a.p, W);
    Arena arena{scratch};
    float *B = arena.floats(length * np), *C = arena.floats(length * np), *X = arena.floats(length * pp), *Y = arena.floats(length * pp);
    float *h = arena.floats(np), *D = arena.floats(pp);
    Steps s;
    s.take(arena);
    find_steps(a, b, head, 0, length, s);
    read_rows(a, a.B, b, g, 0, length, a.n, np, B);
    read_rows(a, a.C, b, g, 0, length, a.n, np, C);
    read_rows(a, a.x, b, head, 0, length, a.p, pp, X);
    zero(D, pp);
    if (a.D) load_row(a.D.at(head), kFloat, a.p, D);
    float step_decay[T];
    for (int64_t t = 0; t < T; t += W) store(step_decay + t, exp(load(s.d + t) * *a.A.f(head)));
    auto read = [&](const View& v, int64_t p) {
        if (v.stride[3] == 1) { load_row(v.at(b, head, p), kFloat, a.n, h); return; }
        zero(h, np);
        for (int64_t j = 0; j < a.n; ++j) h[j] = *v.f(b, head, p, j);
    };
    for (int64_t p = 0; p < a.p; ++p) {
        read(a.state, p);
        for (int64_t t = 0; t < length; ++t) {
            if (a.line.resets(b, t)) read(a.reset_to, p);
            const float u = s.d[t] * X[t * pp + p];
            vf y = splat(0);
            for (int64_t j = 0; j < np; j += W) {
                const vf moved = load(h + j) * step_decay[t] + load(B + t * np + j) * u;
                store(h + j, moved);
                y += moved * load(C + t * np + j);
            }
            Y[t * pp + p] = sum(y) + D[p] * X[t * pp + p];
        }
        memcpy(a.last.f(b, head, p), h, static_cast<size_t>(a.n * 4));
    }
    for (int64_t t = 0; t < length; ++t) {
        for (int64_t p = a.p; p < pp; ++p) Y[t * pp + p] = 0;
        if (!a.line.exists(b, t)) zero(Y + t * pp, pp);
        store_row(a.y.at(b, t, head), a.y.type, a.p, Y + t * pp);
    }
}

}  // namespace

Work ssd_work(const Ssd& a) {
    const int64_t np = ceil_to(a.n, W), pp = ceil_to(a.p, W);
    if (a.length <= kRecurrent && !a.chunks) {
        const int64_t bytes = 4 * (2 * a.length * (np + pp) + np + pp + Steps::kRows * T) + 64 * 32;
        return {a.batch * a.heads, bytes, recurrent};
    }
    return {a.batch * a.groups * head_tiles(a), Chunk::bytes(np, pp), run};
}

void ssd(const Ssd& a) {
    const Work work = ssd_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
