// Log-linear attention, block by block: positions that exist, of one document, whose places differ in the last six bits only. What a position
// sees of its own block are matrices of scores, weighed by the level of each pair; what lies before the block stands on few levels, for
// at its beginning all lower ones come to stand on one. Levels are taken apart again only behind the last position. With the delta rule a block
// is one linear map for all levels (docs/decisions/0006): U = (I + O)^-1 ..., O the overlaps of each write with those before it.
#include "decay_block.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kBits = 6;
constexpr int64_t kShare = 4;  // heads a tile, where they share queries and keys

// The level on which position a < b stands for b.
int64_t level_of(int64_t a, int64_t b, int64_t levels) { return a == b ? 0 : least(64 - __builtin_clzll(static_cast<uint64_t>(a ^ b)), levels - 1); }

int64_t share(const LogLinear& a) { return least(kShare, a.heads / a.groups); }
int64_t tiles_a_group(const LogLinear& a) { return (a.heads / a.groups + share(a) - 1) / share(a); }

struct Rows {
    int64_t at[kBlock];
    int64_t count, place;  // of the first, in its document
    bool last, dropped;    // nothing exists behind it; a reset follows
};

struct Tile {
    const LogLinear& a;
    int64_t b, group, first, heads;                   // heads [first, first + heads)
    int64_t kp, ks, vs, size;                         // floats of a key; of its row; of a row of values; of a state
    float *q, *k, *kt, *met, *overlap;                // of the block: (rows, ks) twice, (kp, kLine), (rows, kLine) twice
    float *scores, *weighed, *chain, *inverse;        // of a head: (rows, kLine)
    float *reads, *arriving, *writes, *removed, *some;  // (rows, ks)
    float *v, *y, *z;                                 // (rows, vs)
    float *weight, *decay, *entry, *left, *beta, *row, *states;
    bool full[kShare][64];                            // levels that hold anything

    static int64_t bytes(const LogLinear& a) {
        const int64_t kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width);
        return 4 * (7 * kBlock * ks + kp * kLine + 6 * kBlock * kLine + 3 * kBlock * vs + kBlock * ceil_to(a.levels, W) + 6 * kLine +
                    share(a) * a.levels * a.keys * vs) + 64 * 30;
    }
    Tile(const LogLinear& a, int64_t index, char* scratch) : a(a) {
        const int64_t members = a.heads / a.groups;
        b = index / tiles_a_group(a) / a.groups;
        group = index / tiles_a_group(a) % a.groups;
        const int64_t from = index % tiles_a_group(a) * share(a);
        first = group * members + from;
        heads = least(share(a), members - from);
        kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width), size = a.keys * vs;
        Arena arena{scratch};
        float **const by_key[] = {&q, &k, &reads, &arriving, &writes, &removed, &some}, **const by_value[] = {&v, &y, &z},
               **const by_row[] = {&met, &overlap, &scores, &weighed, &chain, &inverse}, **const line[] = {&decay, &entry, &left, &beta, &row};
        for (float** m : by_key) *m = arena.floats(kBlock * ks);
        for (float** m : by_row) *m = arena.floats(kBlock * kLine);
        for (float** m : by_value) *m = arena.floats(kBlock * vs);
        for (float** m : line) *m = arena.floats(kLine);
        kt = arena.floats(kp * kLine);
        weight = arena.floats(kBlock * ceil_to(a.levels, W));
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

    void products(const Rows& o);
    void factors(const Rows& o, int64_t head);
    void solve(int64_t n, int64_t columns, int64_t stride, float* x) const;
    void delta(int64_t n);
    void weigh(const Rows& o);
    void head(const Rows& o, int64_t h);
};

// What all heads of the tile share: queries and keys, and how they meet.
void Tile::products(const Rows& o) {
    const int64_t n = o.count;
    touch_rows(a.q, b, o.at[0], o.at[n - 1] + 1, group, a.keys);
    touch_rows(a.k, b, o.at[0], o.at[n - 1] + 1, group, a.keys);
    for (int64_t i = 0; i < n; ++i) {
        load_row(a.q.at(b, o.at[i], group), a.q.type, a.keys, q + i * ks);
        scale_row(q + i * ks, a.scale, kp, q + i * ks);
        load_row(a.k.at(b, o.at[i], group), a.k.type, a.keys, k + i * ks);
    }
    zero(kt, kp * kLine);
    transpose(k, n, kp, ks, kt, kLine);
    const int64_t columns = ceil_to(n, W);
    zero(met, kBlock * kLine);
    multiply(Shape::out_lower, n, columns, kp, q, ks, 1, kt, kLine, met, kLine);
    if (!a.beta) return;
    zero(overlap, kBlock * kLine);
    multiply(Shape::out_lower, n, columns, kp, k, ks, 1, kt, kLine, overlap, kLine);
}

// Decays, strengths and weights of a head's rows; scores, and (with the delta rule) the chain -O of what a write takes of the ones before it.
void Tile::factors(const Rows& o, int64_t head) {
    const int64_t n = o.count, columns = ceil_to(n, W);
    touch_rows(a.weight, b, o.at[0], o.at[n - 1] + 1, head, a.levels);
    zero(decay, kLine), zero(beta, kLine), zero(row, kLine);
    for (int64_t i = 0; i < n; ++i) {
        decay[i] = number(a.decay, b, o.at[i], head);
        beta[i] = a.beta ? number(a.beta, b, o.at[i], head) : 1;
        load_row(a.weight.at(b, o.at[i], head), a.weight.type, a.levels, weight + i * ceil_to(a.levels, W));
    }
    block_decays(n, decay, entry, left);
    for (int64_t i = 0; i < n; ++i) {  // row: the decay from each write before to here
        decay_further(row, decay[i], columns);
        for (int64_t j = 0; j < columns && a.beta; j += W)
            store(chain + i * kLine + j, load(overlap + i * kLine + j) * load(row + j) * -beta[i]);
        row[i] = 1;
        for (int64_t j = 0; j < columns; j += W) store(scores + i * kLine + j, load(met + i * kLine + j) * load(row + j));
    }
}

// x (n, columns) <- (I + O)^-1 x, six rows at a time.
void Tile::solve(int64_t n, int64_t columns, int64_t stride, float* x) const {
    for (int64_t m = 0; m < n; m += 6) {
        const int64_t have = least(6, n - m);
        multiply(Shape::full, have, columns, m, chain + m * kLine, kLine, 1, x, stride, x + m * stride, stride);
        for (int64_t i = m + 1; i < m + have; ++i)
            for (int64_t j = m; j < i; ++j) {
                const float by = chain[i * kLine + j];
                for (int64_t c = 0; c < columns; c += W) store(x + i * stride + c, load(x + i * stride + c) + load(x + j * stride + c) * by);
            }
    }
}

// Scores of values, reads of the state before, keys of values in the state behind, and what the block takes of a state (negative).
void Tile::delta(int64_t n) {
    const int64_t columns = ceil_to(n, W);
    zero(inverse, kBlock * kLine);
    for (int64_t i = 0; i < n; ++i) {
        inverse[i * kLine + i] = 1;
        scale_row(k + i * ks, -beta[i] * entry[i], kp, removed + i * ks);
    }
    solve(n, columns, kLine, inverse);
    solve(n, kp, ks, removed);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < columns; j += W) store(inverse + i * kLine + j, load(inverse + i * kLine + j) * load(beta + j));
    multiply(Shape::lower, n, kp, n, scores, kLine, 1, removed, ks, reads, ks);
    zero(weighed, kBlock * kLine);
    multiply(Shape::lower, n, columns, n, scores, kLine, 1, inverse, kLine, weighed, kLine);
    zero(writes, n * ks);
    multiply(Shape::upper, n, kp, n, inverse, 1, kLine, arriving, ks, writes, ks);
}

// Each pair's score times the weight of its level: those of one level stand side by side in a row.
void Tile::weigh(const Rows& o) {
    const int64_t n = o.count, offset = o.place % kBlock, stride = ceil_to(a.levels, W);
    const float* from = a.beta ? weighed : scores;
    for (int64_t i = 0; i < n; ++i) {
        const float* lambda = weight + i * stride;
        const int64_t here = i + offset;
        zero(row, kLine);
        row[i] = lambda[0];
        for (int64_t l = 1; l <= kBits; ++l) {
            if (!(here >> (l - 1) & 1)) continue;
            const int64_t start = (here >> l << l) - offset, end = start + (int64_t{1} << (l - 1));
            const float by = lambda[least(l, a.levels - 1)];
            for (int64_t j = start > 0 ? start : 0; j < end; ++j) row[j] = by;
        }
        for (int64_t j = 0; j < ceil_to(n, W); j += W) store(weighed + i * kLine + j, load(from + i * kLine + j) * load(row + j));
    }
}

void Tile::head(const Rows& o, int64_t h) {
    const int64_t n = o.count, head = first + h, levels = a.levels, vp = ceil_to(a.width, W), stride = ceil_to(levels, W);
    const int64_t before = o.place > 0 ? o.place - 1 : 0;
    factors(o, head);
    touch_rows(a.v, b, o.at[0], o.at[n - 1] + 1, head, a.width);
    for (int64_t i = 0; i < n; ++i) {
        load_row(a.v.at(b, o.at[i], head), a.v.type, a.width, v + i * vs);
        scale_row(q + i * ks, entry[i], kp, reads + i * ks);
        scale_row(k + i * ks, left[i], kp, arriving + i * ks);
    }
    if (a.beta) delta(n);
    weigh(o);
    zero(y, n * vs);
    multiply(Shape::lower, n, vp, n, weighed, kLine, 1, v, vs, y, vs);
    if (o.place > 0)
        for (int64_t l = 0, lowest = level_of(before, o.place, levels); l < lowest; ++l) move(h, l, lowest);
    for (int64_t l = 0; l < levels; ++l) {
        if (!full[h][l]) continue;
        float* s = state(h, l);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t seen = level_of(before, o.place + i, levels);
            scale_row(reads + i * ks, weight[i * stride + (seen > l ? seen : l)], kp, some + i * ks);
        }
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
    const float* keys = a.beta ? writes : arriving;
    if (!o.last) {  // the next block begins by moving it up
        multiply(Shape::full, a.keys, vp, n, keys, 1, ks, v, vs, target(h, least(kBits, levels - 1)), vs);
        return;
    }
    const int64_t stop = o.place + n - 1, moved = level_of(before, stop, levels);
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
    Tile x(a, index, scratch);
    x.load_states();
    Rows o;
    int64_t place = a.before[x.b];
    for (int64_t t = 0; t < a.length;) {
        o.count = 0;
        while (t < a.length) {
            if (a.line.resets(x.b, t)) {
                if (o.count > 0) break;
                x.clear();
                place = 0;
            }
            const int64_t here = t++;
            if (!a.line.exists(x.b, here)) {
                for (int64_t h = 0; h < x.heads; ++h)
                    memset(a.y.at(x.b, here, x.first + h), 0, static_cast<size_t>(a.width * a.y.bytes()));
                continue;
            }
            if (o.count == 0) o.place = place;
            o.at[o.count++] = here;
            if (++place % kBlock == 0) break;
        }
        if (o.count == 0) break;
        int64_t next = t;
        while (next < a.length && !a.line.resets(x.b, next) && !a.line.exists(x.b, next)) ++next;
        o.last = next == a.length;
        o.dropped = !o.last && a.line.resets(x.b, next);
        x.products(o);
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
