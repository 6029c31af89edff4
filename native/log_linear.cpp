// Log-linear attention, block by block: positions that exist, of one document, whose places differ in the last six bits only. What a position
// sees of its own block are matrices of scores, weighed by the level of each pair; what lies before the block stands on few levels, for
// at its beginning all lower ones come to stand on one. Levels are taken apart again only behind the last position. With the delta rule a block
// is one linear map for all levels (docs/decisions/0006): U = (I + O)^-1 ..., O the overlaps of each write with those before it.
#include "log_linear.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

struct Tile : HeadBlock {
    float *some, *y, *z;    // (rows, ks), (rows, vs) twice
    float* states;
    bool full[kHeads][64];  // levels that hold anything

    static int64_t bytes(const LogLinear& a) {
        const int64_t ks = padded(a.keys), vs = padded(a.width);
        return HeadBlock::bytes(a) + 4 * (kBlock * ks + 2 * kBlock * vs + share(a) * a.levels * a.keys * vs) + 64 * 4;
    }
    Tile(const LogLinear& a, int64_t index, Arena arena) : HeadBlock(a, index, arena) {
        some = arena.floats(kBlock * ks), y = arena.floats(kBlock * vs), z = arena.floats(kBlock * vs);
        states = arena.floats(share(a) * a.levels * size);
    }

    float* state(int64_t h, int64_t level) const { return states + (h * a.levels + level) * size; }
    // The state to add to; of a level that is empty, zeros.
    float* target(int64_t h, int64_t level) {
        float* s = state(h, level);
        if (!full[h][level]) zero(s, size);
        full[h][level] = true;
        return s;
    }
    void move(int64_t h, int64_t from, int64_t to) {
        if (from == to || !full[h][from]) return;
        const float* s = state(h, from);
        float* into = target(h, to);
        for (int64_t i = 0; i < size; i += W) store(into + i, load(into + i) + load(s + i));
        full[h][from] = false;
    }
    void load_states() {
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t l = 0; l < a.levels; ++l) {
                float* s = state(h, l);
                vi any{};
                for (int64_t c = 0; c < a.keys; ++c) {
                    load_row(reinterpret_cast<const char*>(a.state.f(b, first + h, l, c)), kFloat, a.width, s + c * vs);
                    for (int64_t i = 0; i < a.width; i += W) any |= load(s + c * vs + i) != splat(0);
                }
                full[h][l] = !all(any == 0);
            }
    }
    void store_states() const {
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t l = 0; l < a.levels; ++l)
                for (int64_t c = 0; c < a.keys; ++c) {
                    float* to = a.last.f(b, first + h, l, c);
                    if (full[h][l]) memcpy(to, state(h, l) + c * vs, static_cast<size_t>(a.width * 4));
                    else memset(to, 0, static_cast<size_t>(a.width * 4));
                }
    }
    void clear() { memset(full, 0, sizeof full); }

    void weigh(const Rows& o);
    void head(const Rows& o, int64_t h);
};

// Each pair's score times the weight of its level.
void Tile::weigh(const Rows& o) {
    const float* from = a.beta ? weighed : scores;
    for (int64_t i = 0; i < o.count; ++i) {
        level_row(o, i, row);
        for (int64_t j = 0; j < ceil_to(o.count, W); j += W) store(weighed + i * kLine + j, load(from + i * kLine + j) * load(row + j));
    }
}

void Tile::head(const Rows& o, int64_t h) {
    const int64_t n = o.count, head = first + h, levels = a.levels;
    load_head(o, head);
    load_rows(a.weight, o, head, levels, ms, weight);
    decays_within(n, [&](int64_t i, const float* within) { scores_of(i, ceil_to(n, W), within); });
    if (a.beta) solve_writes(n);
    read(n);
    weigh(o);
    zero(y, n * vs);
    multiply(Shape::lower, n, vp, n, weighed, kLine, 1, v, vs, y, vs);
    if (o.place > 0)
        for (int64_t l = 0, lowest = level_of(o.before(), o.place, levels); l < lowest; ++l) move(h, l, lowest);
    for (int64_t l = 0; l < levels; ++l) {
        if (!full[h][l]) continue;
        float* s = state(h, l);
        for (int64_t i = 0; i < n; ++i) scale_row(reads + i * ks, weight[i * ms + seen(o, i, l)], kp, some + i * ks);
        multiply(Shape::full, n, vp, a.keys, some, ks, 1, s, vs, y, vs);
        if (o.dropped) continue;
        if (a.beta) {
            zero(z, n * vs);
            multiply(Shape::full, n, vp, a.keys, removed, ks, 1, s, vs, z, vs);
        }
        scale_row(s, entry[n - 1], size, s);
        if (a.beta) multiply(Shape::full, a.keys, vp, n, arriving, 1, ks, z, vs, s, vs);
    }
    for (int64_t i = 0; i < n; ++i) store_row(a.y.at(b, o.at[i], head), a.y.type, a.width, y + i * vs);
    if (o.dropped) return;
    const float* keys = keys_behind();
    if (!o.last) {  // the next block begins by moving it up
        multiply(Shape::full, a.keys, vp, n, keys, 1, ks, v, vs, target(h, least(kBits, levels - 1)), vs);
        return;
    }
    const int64_t stop = o.place + n - 1, moved = level_of(o.before(), stop, levels);
    for (int64_t l = 0; l < moved; ++l) move(h, l, moved);
    for (int64_t end = n; end > 0;) {
        const int64_t level = level_of(o.place + end - 1, stop, levels);
        int64_t i = end - 1;
        while (i > 0 && level_of(o.place + i - 1, stop, levels) == level) --i;
        multiply(Shape::full, a.keys, vp, end - i, keys + i * ks, 1, ks, v + i * vs, vs, target(h, level), vs);
        end = i;
    }
}

void run(const void* context, int64_t index, char* scratch) {
    const LogLinear& a = *static_cast<const LogLinear*>(context);
    Tile x(a, index, Arena{scratch});
    x.load_states();
    Walk walk(a, x.b);
    Rows o;
    int64_t at[kBlock];
    auto nothing = [&](int64_t t) {
        for (int64_t h = 0; h < x.heads; ++h) memset(a.y.at(x.b, t, x.first + h), 0, static_cast<size_t>(a.width * a.y.bytes()));
    };
    for (;;) {
        const bool more = walk.next(o, at, nothing);
        if (walk.cleared) x.clear();
        if (!more) break;
        x.load_keys(o);
        x.load_queries(o);
        for (int64_t h = 0; h < x.heads; ++h) x.head(o, h);
    }
    x.store_states();
}

// R rows: S' = d S - removed t^T, put or added, and y += S'^T q.
template <int R>
void move_rows(int64_t width, const float* s, float* to, bool add, float d, const float* removed, const float* t, const float* q, float* y) {
    int64_t v = 0;
    for (; v + W <= width; v += W) {
        vf out = load(y + v);
        for (int64_t i = 0; i < R; ++i) {
            vf h = load(s + i * width + v) * d;
            if (removed) h -= load(t + v) * removed[i];
            out += h * q[i];
            store(to + i * width + v, add ? h + load(to + i * width + v) : h);
        }
        store(y + v, out);
    }
    for (; v < width; ++v)
        for (int64_t i = 0; i < R; ++i) {
            const float h = s[i * width + v] * d - (removed ? t[v] * removed[i] : 0);
            y[v] += h * q[i];
            to[i * width + v] = add ? h + to[i * width + v] : h;
        }
}

int64_t step_bytes(const LogLinear& a) {
    return 4 * (4 * ceil_to(a.keys, W) + 3 * ceil_to(a.width, W) + ceil_to(a.levels, W)) + 64 * 8;
}

// A single position, straight from the incoming levels to the last ones. Where these are the same memory, a level that the positions before
// cannot have filled is not looked at.
void step(const void* context, int64_t index, char* scratch) {
    const LogLinear& a = *static_cast<const LogLinear*>(context);
    const int64_t b = index / a.heads, head = index % a.heads, group = head / (a.heads / a.groups), K = a.keys, V = a.width, M = a.levels;
    const int64_t place = a.before[b], ends = place > 0 ? level_of(place - 1, place, M) : 0, kp = ceil_to(K, W);
    const bool in_place = a.state.data == a.last.data;
    Arena arena{scratch};
    float *k = arena.floats(kp), *q = arena.floats(kp), *seen = arena.floats(kp), *removed = arena.floats(kp);
    float *v = arena.floats(ceil_to(V, W)), *t = arena.floats(ceil_to(V, W)), *y = arena.floats(ceil_to(V, W)), *weight = arena.floats(ceil_to(M, W));
    load_row(a.k.at(b, 0, group), a.k.type, K, k);
    load_row(a.q.at(b, 0, group), a.q.type, K, q);
    load_row(a.v.at(b, 0, head), a.v.type, V, v);
    load_row(a.weight.at(b, 0, head), a.weight.type, M, weight);
    const float d = exp(splat(number(a.decay, b, 0, head)))[0], beta = a.beta ? number(a.beta, b, 0, head) : 1;
    scale_row(q, a.scale, kp, q);
    scale_row(k, beta * d, kp, removed);
    zero(y, ceil_to(V, W));
    bool begun[64] = {};
    for (int64_t l = M - 1; l >= 0; --l) {
        const int64_t older = place - 1, to = l > ends ? l : ends;
        const bool filled = place > 0 && (l == 0 || (l == M - 1 ? older >> (l - 1) : older >> (l - 1) & 1));
        if (in_place && !filled) continue;
        const float* s = a.state.f(b, head, l);
        float* last = a.last.f(b, head, to);
        if (a.beta) read_state(K, V, s, k, t);
        scale_row(q, weight[to], kp, seen);
        int64_t c = 0;
        for (; c + 4 <= K; c += 4) move_rows<4>(V, s + c * V, last + c * V, begun[to], d, a.beta ? removed + c : nullptr, t, seen + c, y);
        for (; c < K; ++c) move_rows<1>(V, s + c * V, last + c * V, begun[to], d, a.beta ? removed + c : nullptr, t, seen + c, y);
        begun[to] = true;
        if (in_place && to != l && l > 0) zero(a.last.f(b, head, l), K * V);
    }
    for (int64_t l = 1; l < M && !in_place; ++l)
        if (!begun[l]) zero(a.last.f(b, head, l), K * V);
    float* newest = a.last.f(b, head, 0);
    const float met = dot(q, k, kp) * weight[0] * beta;
    for (int64_t c = 0; c < K; ++c)
        for (int64_t i = 0; i < V; ++i) newest[c * V + i] = (begun[0] ? newest[c * V + i] : 0) + k[c] * beta * v[i];
    for (int64_t i = 0; i < ceil_to(V, W); i += W) store(y + i, load(y + i) + load(v + i) * met);
    store_row(a.y.at(b, 0, head), a.y.type, V, y);
}

// A single position of states whose rows lie one behind the other, as in decoding.
bool single(const LogLinear& a) {
    return a.length == 1 && !a.line.reset && !a.line.mask && a.state.stride[3] == a.width && a.state.stride[2] == a.keys * a.width;
}

}  // namespace

Work log_linear_work(const LogLinear& a) {
    if (single(a)) return {a.batch * a.heads, step_bytes(a), step};
    return {a.batch * a.groups * tiles_a_group(a), Tile::bytes(a), run};
}

void log_linear(const LogLinear& a) {
    const Work work = log_linear_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
