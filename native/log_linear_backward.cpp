// Gradients of log-linear attention. A first pass goes forwards and keeps the levels before each block; then blocks are taken from the end.
// With P the scores of a block, L the weights of their levels, S one level before it and l its weight for each row:
//     y = (P B * L) v + sum over levels of l (reads S),   S' = total S + arriving^T removed S,   and on one level + (B^T arriving)^T v
//     B = (I + O)^-1 Diag(beta),  removed = -(I + O)^-1 Diag(beta entry) k,  reads = entry q + P removed     (no delta rule: B = I, removed = 0)
// Levels that meet are added up, so their gradient is that of their sum. With x = (I + O)^-1 r: g_r = (I + O)^-T g_x and g_O = -g_r x^T.
// The logarithm of a decay gets, from each factor that it is part of, that factor times its gradient: sums of such terms, and none subtracted.
// Heads of a tile share queries and keys: the gradients of what these meet are added up before they meet them again.
#include "log_linear.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kKept = 128;  // states a head: a longer call is gone through forwards once more, in parts

// The most levels that hold something before a block, but for the call's first one.
int64_t most(const LogLinear& a) { return a.levels > kBits + 2 ? a.levels - kBits - 1 : 1; }
// States before the parts' first blocks: each part but the last fills more than kKept.
int64_t first_states(const LogLinear& a) { return a.levels + most(a) * ((a.length / kBlock + 2) * most(a) / kKept + 2); }

struct Block : Rows {
    uint64_t filled;  // levels that hold something before it
    int64_t lowest;   // of them, where its row stands at its beginning
    bool opens;       // a part of the call
    float* states;

    int64_t rank(int64_t level) const { return __builtin_popcountll(filled & ((uint64_t{1} << level) - 1)); }
};

struct Tile : HeadBlock {
    const LogLinearGrad& g;
    int64_t index;
    float *gy, *gv, *gz, *part;                            // (rows, vs); part: a level's weight of gy
    float *vt, *gyt, *zt;                                  // (V, kLine)
    float *readst, *removedt, *across, *greadst, *gput, *garrivingt, *gremovedt;  // (K, kLine)
    float *greads, *garriving, *gremoved, *gwrites, *gq, *gk;                     // (rows, ks)
    float *within, *gpair, *gscore, *ginverse, *inverset, *gchain, *gmet, *goverlap;  // (rows, kLine)
    float *gweight;                                        // (rows, ms)
    float *lambda, *line, *gdecay, *gbeta, *column;
    float *gstates, *kept, *begun;                         // by head and level; of a part's blocks; of the parts' first blocks
    int64_t* at;
    Block* blocks;
    int64_t count;
    uint64_t held[kHeads];                                 // levels with a gradient

    static int64_t bytes(const LogLinear& a) {
        const int64_t kp = ceil_to(a.keys, W), vp = ceil_to(a.width, W), ks = padded(a.keys), vs = padded(a.width);
        const int64_t states = a.levels + kKept + most(a) + first_states(a);
        const int64_t floats = 4 * kBlock * vs + 3 * vp * kLine + 7 * kp * kLine + 6 * kBlock * ks + 8 * kBlock * kLine +
                               kBlock * ceil_to(a.levels, W) + 5 * kLine + share(a) * states * a.keys * vs;
        return HeadBlock::bytes(a) + 4 * floats + a.length * 8 + (a.length + 1) * static_cast<int64_t>(sizeof(Block)) + 64 * 50;
    }
    Tile(const LogLinearGrad& g, int64_t index, Arena arena) : HeadBlock(g.forward, index, arena), g(g), index(index) {
        float **const by_value[] = {&gy, &gv, &gz, &part}, **const turned[] = {&vt, &gyt, &zt},
               **const keyst[] = {&readst, &removedt, &across, &greadst, &gput, &garrivingt, &gremovedt},
               **const by_key[] = {&greads, &garriving, &gremoved, &gwrites, &gq, &gk},
               **const by_row[] = {&within, &gpair, &gscore, &ginverse, &inverset, &gchain, &gmet, &goverlap},
               **const lines[] = {&lambda, &line, &gdecay, &gbeta, &column};
        for (float** m : by_value) *m = arena.floats(kBlock * vs);
        for (float** m : turned) *m = arena.floats(vp * kLine);
        for (float** m : keyst) *m = arena.floats(kp * kLine);
        for (float** m : by_key) *m = arena.floats(kBlock * ks);
        for (float** m : by_row) *m = arena.floats(kBlock * kLine);
        for (float** m : lines) *m = arena.floats(kLine);
        gweight = arena.floats(kBlock * ms);
        gstates = arena.floats(share(a) * a.levels * size);
        begun = arena.floats(share(a) * first_states(a) * size);
        at = reinterpret_cast<int64_t*>(arena.floats(2 * a.length));
        blocks = reinterpret_cast<Block*>(arena.floats((a.length + 1) * static_cast<int64_t>(sizeof(Block)) / 4));
        kept = arena.floats(share(a) * (kKept + most(a)) * size);
    }

    float* state(const Block& o, int64_t h, int64_t level) const { return o.states + (o.rank(level) * heads + h) * size; }
    float* gstate(int64_t h, int64_t level) const { return gstates + (h * a.levels + level) * size; }
    const float* gradient(int64_t h, int64_t level) const { return held[h] >> level & 1 ? gstate(h, level) : nullptr; }
    static bool has(uint64_t levels, int64_t level) { return levels >> level & 1; }

    uint64_t incoming() const;
    void plan();
    void load_states();
    void advance(const Block& o, const Block& next);
    void solve_back(int64_t n, int64_t columns, int64_t stride, float* x) const;
    void pairs(const Block& o);
    void behind(const Block& o, int64_t h, int64_t lowest);
    float levels(const Block& o, int64_t h, int64_t lowest);
    void through_delta(const Block& o);
    void decays(const Block& o, float whole);
    void head(const Block& o, int64_t h, int64_t lowest);
    void block(const Block& o, int64_t lowest);
    void store_states() const;
    void write_nothing(int64_t t) const;
};

const char* raw(const float* p) { return reinterpret_cast<const char*>(p); }

// Sums of vectors and the rest: scalar sums are chains of additions.
float sum_of(const float* p, int64_t count) {
    vf total = splat(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= count; i += W) total += load(p + i);
    for (; i < count; ++i) rest += p[i];
    return sum(total) + rest;
}

// (rows, width) to (width, kLine): whole vectors of rows, the missing ones zero.
void turn(const float* in, int64_t rows, int64_t width, int64_t stride, float* out) {
    for (int64_t i = 0; i < width && rows % W != 0; ++i) store(out + i * kLine + rows / W * W, splat(0));
    transpose(in, rows, width, stride, out, kLine);
}

// -- forwards -----------------------------------------------------------------------------------------------------------------------

// Incoming levels that hold anything in any head; all of them if their gradient is asked for.
uint64_t Tile::incoming() const {
    if (g.gstate) return ~uint64_t{0} >> (64 - a.levels);
    uint64_t found = 0;
    for (int64_t l = 0; l < a.levels; ++l) {
        vi any{};
        for (int64_t h = 0; h < heads && all(any == 0); ++h)
            for (int64_t c = 0; c < a.keys; ++c) {
                load_row(raw(a.state.f(b, first + h, l, c)), kFloat, a.width, gz);
                for (int64_t i = 0; i < vp; i += W) any |= load(gz + i) != splat(0);
            }
        found |= static_cast<uint64_t>(!all(any == 0)) << l;
    }
    return found;
}

// The blocks, what stands before each, and where it is kept.
void Tile::plan() {
    Walk walk(a, b);
    int64_t used = 0, begins = 0;
    const int64_t each = heads * size;
    int64_t* next_at = at;
    for (count = 0;; ++count) {
        Block& o = blocks[count];
        const bool more = walk.next(o, next_at, [&](int64_t t) { write_nothing(t); });
        if (walk.cleared || !more) {
            o.filled = 0;
        } else if (count == 0) {
            o.filled = incoming();
        } else {
            o.filled = blocks[count - 1].filled | 1;  // its own writes
        }
        if (!more) {
            o.dropped = walk.cleared;
            return;
        }
        next_at += o.count;
        o.lowest = o.place > 0 ? level_of(o.place - 1, o.place, a.levels) : 0;
        const uint64_t below = (uint64_t{1} << o.lowest) - 1;
        if (o.filled & below) o.filled = (o.filled & ~below) | uint64_t{1} << o.lowest;
        const int64_t needs = __builtin_popcountll(o.filled);
        o.opens = count == 0 || used + needs > kKept + most(a);
        if (o.opens) {
            o.states = begun + begins * each;
            begins += needs;
            used = 0;
        } else {
            o.states = kept + used * each;
            used += needs;
        }
    }
}

void Tile::load_states() {
    const Block& o = blocks[0];
    zero(o.states, __builtin_popcountll(o.filled) * heads * size);
    if (o.filled == 0) return;
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t l = 0; l < a.levels; ++l) {
            const int64_t to = l > o.lowest ? l : o.lowest;
            if (!has(o.filled, to)) continue;
            for (int64_t c = 0; c < a.keys; ++c) {
                load_row(raw(a.state.f(b, first + h, l, c)), kFloat, a.width, gz);
                add_row(gz, 1, vp, state(o, h, to) + c * vs);
            }
        }
}

// From the levels before a block to those before the next one, whose lowest is where all lower ones come to stand.
void Tile::advance(const Block& o, const Block& next) {
    if (o.dropped) return;
    const int64_t n = o.count;
    load_keys(o);
    for (int64_t h = 0; h < heads; ++h) {
        load_head(o, first + h);
        if (a.beta) {
            decays_within(n, [](int64_t, const float*) {});
            solve_writes(n);
        }
        float* own = state(next, h, next.lowest);
        zero(own, size);
        multiply(Shape::full, a.keys, vp, n, keys_behind(), 1, ks, v, vs, own, vs);
        for (int64_t l = 0; l < a.levels; ++l) {
            if (!has(o.filled, l)) continue;
            const float* s = state(o, h, l);
            float* out = l > next.lowest ? state(next, h, l) : own;
            for (int64_t c = 0; c < a.keys; ++c) {
                if (out == own) add_row(s + c * vs, entry[n - 1], vp, out + c * vs);
                else scale_row(s + c * vs, entry[n - 1], vp, out + c * vs);
            }
            if (!a.beta) continue;
            zero(gz, n * vs);
            multiply(Shape::full, n, vp, a.keys, removed, ks, 1, s, vs, gz, vs);
            multiply(Shape::full, a.keys, vp, n, arriving, 1, ks, gz, vs, out, vs);
        }
    }
}

// -- backwards ----------------------------------------------------------------------------------------------------------------------

// x (n, columns) <- (I + O)^-T x, six rows at a time from the end.
void Tile::solve_back(int64_t n, int64_t columns, int64_t stride, float* x) const {
    for (int64_t m = (n - 1) / 6 * 6; m >= 0; m -= 6) {
        const int64_t end = least(m + 6, n);
        multiply(Shape::full, end - m, columns, n - end, chain + end * kLine + m, 1, kLine, x + end * stride, stride, x + m * stride, stride);
        for (int64_t i = end - 2; i >= m; --i)
            for (int64_t j = i + 1; j < end; ++j) add_row(x + j * stride, chain[j * kLine + i], columns, x + i * stride);
    }
}

// Through the weighed scores: gradients of these, of the weights, and of values.
void Tile::pairs(const Block& o) {
    const int64_t n = o.count, columns = ceil_to(n, W), offset = o.place % kBlock;
    const float* from = a.beta ? weighed : scores;
    zero(gpair, kBlock * kLine);
    multiply(Shape::out_lower, n, columns, a.width, gy, vs, 1, vt, kLine, gpair, kLine);
    zero(gweight, n * ms);
    for (int64_t i = 0; i < n; ++i) {
        level_row(o, i, row);
        for (int64_t j = 0; j < columns; j += W) {
            const vf met = load(from + i * kLine + j), grad = load(gpair + i * kLine + j), by = load(row + j);
            store(line + j, met * grad);
            store(weighed + i * kLine + j, met * by);
            store(gpair + i * kLine + j, grad * by);
        }
        row_levels(i, offset, a.levels, [&](int64_t l, int64_t start, int64_t end) { gweight[i * ms + l] += sum_of(line + start, end - start); });
    }
    zero(gv, n * vs);
    multiply(Shape::upper, n, vp, n, weighed, 1, kLine, gy, vs, gv, vs);
}

// Through what the block writes: gput (K, rows), the gradient of keys in the state behind, and that of values.
void Tile::behind(const Block& o, int64_t h, int64_t lowest) {
    const int64_t n = o.count, stop = o.place + n - 1;
    const float* keys = keys_behind();
    zero(gput, kp * kLine);
    for (int64_t i = 0, end = 0; i < n; i = end) {
        const int64_t level = o.last ? level_of(o.place + i, stop, a.levels) : lowest;
        for (end = o.last ? i + 1 : n; end < n && level_of(o.place + end, stop, a.levels) == level;) ++end;
        // Whole vectors: the rows before have left something in these.
        for (int64_t c = 0; c < a.keys && i > 0; ++c) zero(gput + c * kLine + i, kLine - i);
        const float* grad = gradient(h, level);
        if (grad == nullptr) continue;
        multiply(Shape::full, a.keys, ceil_to(end - i, W), a.width, grad, vs, 1, vt + i, kLine, gput + i, kLine);
        multiply(Shape::full, end - i, vp, a.keys, keys + i * ks, ks, 1, grad, vs, gv + i * vs, vs);
    }
}

// Through the levels before: their gradients, those of reads and weights and, with the delta rule, of what the block takes of them. Returns what
// scaling all of them would change behind.
float Tile::levels(const Block& o, int64_t h, int64_t lowest) {
    const int64_t n = o.count, columns = ceil_to(n, W);
    float kept_behind = 0;
    zero(greadst, kp * kLine);
    turn(reads, n, a.keys, ks, readst);
    if (a.beta) {
        turn(removed, n, a.keys, ks, removedt);
        zero(garrivingt, kp * kLine);
        zero(gremovedt, kp * kLine);
    }
    for (int64_t l = 0; l < a.levels; ++l) {
        if (!has(o.filled, l)) continue;
        const float *s = state(o, h, l), *grad = gradient(h, l > lowest ? l : lowest);
        zero(lambda, kLine);
        for (int64_t i = 0; i < n; ++i) {
            lambda[i] = weight[i * ms + seen(o, i, l)];
            scale_row(gy + i * vs, lambda[i], vp, part + i * vs);
        }
        zero(across, a.keys * kLine);
        multiply(Shape::full, a.keys, columns, a.width, s, vs, 1, gyt, kLine, across, kLine);
        zero(line, kLine);
        for (int64_t c = 0; c < a.keys; ++c)
            for (int64_t i = 0; i < columns; i += W) {
                const vf met = load(across + c * kLine + i);
                store(line + i, load(line + i) + met * load(readst + c * kLine + i));
                store(greadst + c * kLine + i, load(greadst + c * kLine + i) + met * load(lambda + i));
            }
        for (int64_t i = 0; i < n; ++i) gweight[i * ms + seen(o, i, l)] += line[i];
        if (grad != nullptr && a.beta) {
            zero(zt, a.width * kLine);
            multiply(Shape::full, a.width, columns, a.keys, s, 1, vs, removedt, kLine, zt, kLine);
            multiply(Shape::full, a.keys, columns, a.width, grad, vs, 1, zt, kLine, garrivingt, kLine);
            zero(gz, n * vs);
            multiply(Shape::full, n, vp, a.keys, arriving, ks, 1, grad, vs, gz, vs);
            turn(gz, n, a.width, vs, zt);
            multiply(Shape::full, a.keys, columns, a.width, s, vs, 1, zt, kLine, gremovedt, kLine);
        }
        float* out = gstate(h, l);
        vf total = splat(0);
        for (int64_t c = 0; c < a.keys; ++c)
            for (int64_t i = 0; i < vp; i += W) {
                const vf later = grad != nullptr ? load(grad + c * vs + i) : splat(0);
                total += later * load(s + c * vs + i);
                store(out + c * vs + i, later * entry[n - 1]);
            }
        kept_behind += sum(total);
        multiply(Shape::full, a.keys, vp, n, reads, 1, ks, part, vs, out, vs);
        if (grad != nullptr && a.beta) multiply(Shape::full, a.keys, vp, n, removed, 1, ks, gz, vs, out, vs);
    }
    transpose(greadst, kp, n, kLine, greads, ks);
    return kept_behind;
}

// Through the solved system: from what is written and taken to scores, overlaps (gchain: negative) and strengths.
void Tile::through_delta(const Block& o) {
    const int64_t n = o.count, columns = ceil_to(n, W);
    transpose(gput, kp, n, kLine, gwrites, ks);
    multiply(Shape::lower, n, kp, n, inverse, kLine, 1, gwrites, ks, garriving, ks);
    zero(ginverse, kBlock * kLine);
    multiply(Shape::out_lower, n, columns, a.keys, arriving, ks, 1, gput, kLine, ginverse, kLine);
    multiply(Shape::upper, n, columns, n, scores, 1, kLine, gpair, kLine, ginverse, kLine);
    turn(inverse, n, n, kLine, inverset);
    zero(gscore, kBlock * kLine);
    multiply(Shape::lower, n, columns, n, gpair, kLine, 1, inverset, kLine, gscore, kLine);
    solve_back(n, columns, kLine, ginverse);
    zero(gchain, kBlock * kLine);
    multiply(Shape::lower, n, columns, n, ginverse, kLine, 1, inverset, kLine, gchain, kLine);
    for (int64_t i = 0; i < n; ++i) gbeta[i] = ginverse[i * kLine + i];
    if (o.filled == 0) return;
    multiply(Shape::out_lower, n, columns, a.keys, greads, ks, 1, removedt, kLine, gscore, kLine);
    multiply(Shape::upper, n, kp, n, scores, 1, kLine, greads, ks, gremoved, ks);
    solve_back(n, kp, ks, gremoved);
    multiply(Shape::out_lower, n, columns, a.keys, gremoved, ks, 1, removedt, kLine, gchain, kLine);
}

// The rest of a head: what pairs meet, and decays. A decay is part of the factors of all pairs across it, of entries behind it, of what
// is left of keys before it, and of the whole block's.
void Tile::decays(const Block& o, float whole) {
    const int64_t n = o.count, columns = ceil_to(n, W);
    const float* grads = a.beta ? gscore : gpair;
    float entries = 0;
    zero(column, kLine);
    for (int64_t i = n - 1; i >= 0; --i) {
        const int64_t r = i * kLine;
        for (int64_t j = 0; j < columns; j += W) {
            const vf grad = load(grads + r + j), since = load(within + r + j);
            vf across_pair = grad * load(scores + r + j);
            store(gmet + r + j, load(gmet + r + j) + grad * since);
            if (a.beta) {
                const vf taken = -load(gchain + r + j) * since, by_strength = taken * load(overlap + r + j);
                store(line + j, by_strength);
                store(goverlap + r + j, load(goverlap + r + j) + taken * beta[i]);
                across_pair += by_strength * beta[i];
            }
            store(column + j, load(column + j) + across_pair);
        }
        if (o.filled != 0) {
            entries += dot(q + i * ks, greads + i * ks, kp) * entry[i];
            add_row(greads + i * ks, entry[i], kp, gq + i * ks);
        }
        if (a.beta) {
            goverlap[r + i] = 0;
            gbeta[i] += sum_of(line, i);
            if (o.filled != 0) {
                const float met = dot(k + i * ks, gremoved + i * ks, kp) * entry[i];
                gbeta[i] -= met;
                entries -= met * beta[i];
                add_row(gremoved + i * ks, -beta[i] * entry[i], kp, gk + i * ks);
            }
        }
        gdecay[i] = entries + sum_of(column, i) + whole;
    }
    float keys = 0;
    for (int64_t i = 0; i < n && !o.dropped; ++i) {
        gdecay[i] += keys;
        keys += dot(k + i * ks, garriving + i * ks, kp) * left[i];
        add_row(garriving + i * ks, left[i], kp, gk + i * ks);
    }
}

void Tile::head(const Block& o, int64_t h, int64_t lowest) {
    const int64_t n = o.count, head = first + h;
    load_head(o, head);
    load_rows(a.weight, o, head, a.levels, ms, weight);
    load_rows(g.gy, o, head, a.width, vs, gy);
    turn(v, n, a.width, vs, vt);
    turn(gy, n, a.width, vs, gyt);
    decays_within(n, [&](int64_t i, const float* since) {
        memcpy(within + i * kLine, since, static_cast<size_t>(ceil_to(n, W) * 4));
        scores_of(i, ceil_to(n, W), since);
    });
    if (a.beta) solve_writes(n);
    read(n);
    pairs(o);
    behind(o, h, lowest);
    float whole = 0;
    if (o.filled != 0) whole = levels(o, h, lowest) * entry[n - 1];
    held[h] = o.filled;
    const bool taken = a.beta && o.filled != 0;
    if (taken) transpose(gremovedt, kp, n, kLine, gremoved, ks);
    if (!a.beta) transpose(gput, kp, n, kLine, garriving, ks);
    else if (taken) transpose(garrivingt, kp, n, kLine, garriving, ks);
    else zero(garriving, n * ks);
    if (a.beta) through_delta(o);
    decays(o, whole);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t t = o.at[i];
        store_row(g.gv.at(b, t, head), g.gv.type, a.width, gv + i * vs);
        store_row(g.gweight.at(b, t, head), g.gweight.type, a.levels, gweight + i * ms);
        store_number(g.gdecay, g.gdecay.at(b, t, head), gdecay[i]);
        if (a.beta) store_number(g.gbeta, g.gbeta.at(b, t, head), gbeta[i]);
    }
}

// lowest: the level behind the block where all that stood lower comes to stand.
void Tile::block(const Block& o, int64_t lowest) {
    const int64_t n = o.count;
    load_keys(o);
    load_queries(o);
    zero(gq, n * ks), zero(gk, n * ks), zero(gmet, kBlock * kLine), zero(goverlap, kBlock * kLine);
    for (int64_t h = 0; h < heads; ++h) head(o, h, lowest);
    multiply(Shape::lower, n, kp, n, gmet, kLine, 1, k, ks, gq, ks);
    multiply(Shape::upper, n, kp, n, gmet, 1, kLine, q, ks, gk, ks);
    if (a.beta) {
        multiply(Shape::lower, n, kp, n, goverlap, kLine, 1, k, ks, gk, ks);
        multiply(Shape::upper, n, kp, n, goverlap, 1, kLine, k, ks, gk, ks);
    }
    const View &to_q = g.part_q ? g.part_q : g.gq, &to_k = g.part_k ? g.part_k : g.gk;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t t = o.at[i];
        scale_row(gq + i * ks, a.scale, kp, gq + i * ks);
        store_row(g.part_q ? to_q.at(index, t) : to_q.at(b, t, group), to_q.type, a.keys, gq + i * ks);
        store_row(g.part_k ? to_k.at(index, t) : to_k.at(b, t, group), to_k.type, a.keys, gk + i * ks);
    }
}

// Zeros at a position that does not exist.
void Tile::write_nothing(int64_t t) const {
    auto clear = [](const View& v, char* at, int64_t numbers) { memset(at, 0, static_cast<size_t>(numbers * v.bytes())); };
    if (g.part_q) {
        clear(g.part_q, g.part_q.at(index, t), a.keys);
        clear(g.part_k, g.part_k.at(index, t), a.keys);
    } else {
        clear(g.gq, g.gq.at(b, t, group), a.keys);
        clear(g.gk, g.gk.at(b, t, group), a.keys);
    }
    for (int64_t head = first; head < first + heads; ++head) {
        clear(g.gv, g.gv.at(b, t, head), a.width);
        clear(g.gweight, g.gweight.at(b, t, head), a.levels);
        clear(g.gdecay, g.gdecay.at(b, t, head), 1);
        if (a.beta) clear(g.gbeta, g.gbeta.at(b, t, head), 1);
    }
}

// Of the incoming levels: all below the first block's lowest one come to stand on that.
void Tile::store_states() const {
    const bool cleared = count > 0 ? blocks[0].filled == 0 : blocks[0].dropped;
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t l = 0; l < a.levels; ++l) {
            const int64_t from = count > 0 && blocks[0].lowest > l ? blocks[0].lowest : l;
            const float* grad = cleared ? nullptr : gradient(h, from);
            for (int64_t c = 0; c < a.keys; ++c) {
                float* to = g.gstate.f(b, first + h, l, c);
                if (grad != nullptr) memcpy(to, grad + c * vs, static_cast<size_t>(a.width * 4));
                else memset(to, 0, static_cast<size_t>(a.width * 4));
            }
        }
}

void run(const void* context, int64_t index, char* scratch) {
    const LogLinearGrad& g = *static_cast<const LogLinearGrad*>(context);
    const LogLinear& a = g.forward;
    Tile x(g, index, Arena{scratch});
    x.plan();
    for (int64_t h = 0; h < x.heads; ++h) {
        x.held[h] = 0;
        for (int64_t l = 0; l < a.levels && g.glast; ++l) {
            x.held[h] |= uint64_t{1} << l;
            for (int64_t c = 0; c < a.keys; ++c)
                load_row(raw(g.glast.f(x.b, x.first + h, l, c)), kFloat, a.width, x.gstate(h, l) + c * x.vs);
        }
    }
    if (x.count > 0) x.load_states();
    for (int64_t i = 0; i + 1 < x.count; ++i) x.advance(x.blocks[i], x.blocks[i + 1]);
    for (int64_t end = x.count, from; end > 0; end = from) {
        for (from = end - 1; !x.blocks[from].opens;) --from;
        for (int64_t i = from; i + 1 < end && end < x.count; ++i) x.advance(x.blocks[i], x.blocks[i + 1]);
        for (int64_t i = end - 1; i >= from; --i) {
            const Block& o = x.blocks[i];
            if (o.dropped) memset(x.held, 0, sizeof x.held);
            const int64_t behind = o.last ? level_of(o.before(), o.place + o.count - 1, a.levels) : o.dropped ? 0 : x.blocks[i + 1].lowest;
            x.block(o, behind);
        }
    }
    if (g.gstate) x.store_states();
}

// Adds up the tiles' parts of queries and keys: some positions of one batch row.
void sum_tiles(const void* context, int64_t index, char* scratch) {
    const LogLinearGrad& g = *static_cast<const LogLinearGrad*>(context);
    const LogLinear& a = g.forward;
    const int64_t chunks = (a.length + kChunk - 1) / kChunk, tiles = tiles_a_group(a), b = index / chunks, t0 = index % chunks * kChunk;
    float* total = reinterpret_cast<float*>(scratch);
    const View *const parts[] = {&g.part_q, &g.part_k}, *const outs[] = {&g.gq, &g.gk};
    for (int64_t t = t0; t < least(a.length, t0 + kChunk); ++t)
        for (int64_t group = 0; group < a.groups; ++group)
            for (int which = 0; which < 2; ++which) {
                zero(total, ceil_to(a.keys, W));
                for (int64_t i = 0; i < tiles; ++i) {
                    const float* part = parts[which]->f((b * a.groups + group) * tiles + i, t);
                    for (int64_t c = 0; c < a.keys; ++c) total[c] += part[c];
                }
                store_row(outs[which]->at(b, t, group), outs[which]->type, a.keys, total);
            }
}

}  // namespace

void log_linear_backward(const LogLinearGrad& g) {
    const LogLinear& a = g.forward;
    parallel(a.threads, a.batch * a.groups * tiles_a_group(a), Tile::bytes(a), run, &g);
    if (g.part_q) parallel(a.threads, a.batch * ((a.length + kChunk - 1) / kChunk), 4 * ceil_to(a.keys, W), sum_tiles, &g);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
