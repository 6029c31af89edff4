// The mesa layer, block by block; all of a block stays in the cache. See mesa.h.
#include "mesa.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

struct Tile : MesaHead {
    int64_t place[kBlock];
    float *q, *x, *y;  // (kBeside, ks) twice, (kBeside, vs)

    static int64_t bytes(const Mesa& a) { return MesaHead::bytes(a) + 4 * kBeside * (2 * padded(a.keys) + padded(a.width)) + 64 * 3; }
    Tile(const Mesa& a, int64_t index, Arena arena) : MesaHead(a, index, arena) {
        at = place;
        q = arena.floats(kBeside * ks), x = arena.floats(kBeside * ks), y = arena.floats(kBeside * vs);
    }

    void store_state() const {
        for (int64_t c = 0; c < a.keys; ++c) {
            memcpy(a.G_last.f(b, head, c), G + c * ks, static_cast<size_t>(a.keys * 4));
            memcpy(a.S_last.f(b, head, c), S + c * vs, static_cast<size_t>(a.width * 4));
        }
    }

    void block(int64_t n) {
        load_writes(n);
        load_matrix(n);
        touch_rows(a.q, b, at[0], at[n - 1] + 1, head, a.keys);
        for (int64_t first = 0; first < n; first += kBeside) {
            const int64_t some = least(kBeside, n - first);
            for (int64_t i = 0; i < some; ++i) load_row(a.q.at(b, at[first + i], head), a.q.type, a.keys, q + i * ks);
            solve(first, some, q, x);
            for (int64_t i = 0; i < some && a.x; ++i) store_row(a.x.at(b, at[first + i], head), kFloat, a.keys, x + i * ks);
            meet(first, some, x);
            zero(y, some * vs);
            multiply(Shape::full, some, vp, first + some, met, kLine, 1, v, vs, y, vs);
            if (any) {
                for (int64_t i = 0; i < some; ++i) scale_row(x + i * ks, entry[first + i], kp, t + i * ks);
                multiply(Shape::full, some, vp, a.keys, t, ks, 1, S, vs, y, vs);
            }
            for (int64_t i = 0; i < some; ++i) store_row(a.y.at(b, at[first + i], head), a.y.type, a.width, y + i * vs);
        }
        advance(n);
    }
};

void run(const void* context, int64_t index, char* scratch) {
    const Mesa& a = *static_cast<const Mesa*>(context);
    Tile x(a, index, Arena{scratch});
    x.load_state();
    for (int64_t t = 0; t < a.length;) {
        bool fresh;
        const int64_t n = x.next(t, x.place, fresh);
        if (fresh) x.clear();
        if (n > 0) x.block(n);
    }
    for (int64_t t = 0; t < a.length; ++t)
        if (!a.line.exists(x.b, t)) memset(a.y.at(x.b, t, x.head), 0, static_cast<size_t>(a.width * a.y.bytes()));
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
