// What log-linear attention makes of a block of positions, forwards and backwards: scores, decays, and with the delta rule the solved system.
#pragma once
#include "decay_block.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t kBits = 6;

// The level on which position a < b stands for b.
static inline int64_t level_of(int64_t a, int64_t b, int64_t levels) {
    return a == b ? 0 : least(64 - __builtin_clzll(static_cast<uint64_t>(a ^ b)), levels - 1);
}

// Heads a tile, where they share queries and keys.
static inline int64_t share(const LogLinear& a) { return least(kHeads, a.heads / a.groups); }
static inline int64_t tiles_a_group(const LogLinear& a) { return (a.heads / a.groups + share(a) - 1) / share(a); }

struct Rows {
    const int64_t* at;
    int64_t count, place;  // of the first, in its document
    bool last, dropped;    // nothing exists behind it; a reset follows
    int64_t before() const { return place > 0 ? place - 1 : 0; }
};

// The blocks of a row of the batch, one after the other: positions that exist, of one document, whose places differ in the last six bits only.
struct Walk {
    const LogLinear& a;
    int64_t b, t, place;
    bool cleared;  // by a reset before the block; before none, by one behind the last

    Walk(const LogLinear& a, int64_t b) : a(a), b(b), t(0), place(a.before[b]) {}
    // Fills `at`; `absent` is told of positions that do not exist.
    template <typename F>
    bool next(Rows& o, int64_t* at, F absent) {
        o.at = at;
        o.count = 0;
        cleared = false;
        while (t < a.length) {
            if (a.line.resets(b, t)) {
                if (o.count > 0) break;
                cleared = true;
                place = 0;
            }
            const int64_t here = t++;
            if (!a.line.exists(b, here)) {
                absent(here);
                continue;
            }
            if (o.count == 0) o.place = place;
            at[o.count++] = here;
            if (++place % kBlock == 0) break;
        }
        int64_t behind = t;
        while (behind < a.length && !a.line.resets(b, behind) && !a.line.exists(b, behind)) ++behind;
        o.last = behind == a.length;
        o.dropped = !o.last && a.line.resets(b, behind);
        return o.count > 0;
    }
};

// The places in row i whose pairs stand on one level, level by level; `offset`: of the block's first row in a whole block.
template <typename F>
static inline void row_levels(int64_t i, int64_t offset, int64_t levels, F each) {
    const int64_t here = i + offset;
    each(0, i, i + 1);
    for (int64_t l = 1; l <= kBits; ++l) {
        if (!(here >> (l - 1) & 1)) continue;
        const int64_t start = (here >> l << l) - offset, end = start + (int64_t{1} << (l - 1));
        if (end > 0) each(least(l, levels - 1), start > 0 ? start : 0, end);
    }
}

struct HeadBlock {
    const LogLinear& a;
    int64_t b, group, first, heads;             // heads [first, first + heads)
    int64_t kp, vp, ks, vs, ms, size;           // floats of a key and a value; of rows of keys, values, weights; of a state
    float *q, *k, *kt, *met, *overlap;          // of the block: (rows, ks) twice, (kp, kLine), (rows, kLine) twice
    float *scores, *weighed, *chain, *inverse;  // of a head: (rows, kLine)
    float *reads, *arriving, *writes, *removed; // (rows, ks)
    float *v;                                   // (rows, vs)
    float *weight, *decay, *entry, *left, *beta, *row;

    static int64_t bytes(const LogLinear& a) {
        const int64_t kp = ceil_to(a.keys, W), ks = padded(a.keys), vs = padded(a.width);
        return 4 * (6 * kBlock * ks + kp * kLine + 6 * kBlock * kLine + kBlock * vs + kBlock * ceil_to(a.levels, W) + 5 * kLine) + 64 * 24;
    }
    HeadBlock(const LogLinear& a, int64_t index, Arena& arena) : a(a) {
        const int64_t members = a.heads / a.groups;
        b = index / tiles_a_group(a) / a.groups;
        group = index / tiles_a_group(a) % a.groups;
        const int64_t from = index % tiles_a_group(a) * share(a);
        first = group * members + from;
        heads = least(share(a), members - from);
        kp = ceil_to(a.keys, W), vp = ceil_to(a.width, W), ks = padded(a.keys), vs = padded(a.width), ms = ceil_to(a.levels, W), size = a.keys * vs;
        float **const by_key[] = {&q, &k, &reads, &arriving, &writes, &removed}, **const line[] = {&decay, &entry, &left, &beta, &row},
               **const by_row[] = {&met, &overlap, &scores, &weighed, &chain, &inverse};
        for (float** m : by_key) *m = arena.floats(kBlock * ks);
        for (float** m : by_row) *m = arena.floats(kBlock * kLine);
        for (float** m : line) *m = arena.floats(kLine);
        kt = arena.floats(kp * kLine);
        v = arena.floats(kBlock * vs);
        weight = arena.floats(kBlock * ms);
    }

    void load_rows(const View& view, const Rows& o, int64_t head, int64_t count, int64_t stride, float* out) const {
        touch_rows(view, b, o.at[0], o.at[o.count - 1] + 1, head, count);
        for (int64_t i = 0; i < o.count; ++i) load_row(view.at(b, o.at[i], head), view.type, count, out + i * stride);
    }

    // What all heads of the tile share: keys, and how those that are written meet.
    void load_keys(const Rows& o) {
        load_rows(a.k, o, group, a.keys, ks, k);
        zero(kt, kp * kLine);
        transpose(k, o.count, kp, ks, kt, kLine);
        if (!a.beta) return;
        zero(overlap, kBlock * kLine);
        multiply(Shape::out_lower, o.count, ceil_to(o.count, W), kp, k, ks, 1, kt, kLine, overlap, kLine);
    }
    // Queries, and the keys that they meet.
    void load_queries(const Rows& o) {
        load_rows(a.q, o, group, a.keys, ks, q);
        for (int64_t i = 0; i < o.count; ++i) scale_row(q + i * ks, a.scale, kp, q + i * ks);
        zero(met, kBlock * kLine);
        multiply(Shape::out_lower, o.count, ceil_to(o.count, W), kp, q, ks, 1, kt, kLine, met, kLine);
    }

    // Decays and strengths of a head's rows, and its values.
    void load_head(const Rows& o, int64_t head) {
        zero(decay, kLine), zero(beta, kLine);
        for (int64_t i = 0; i < o.count; ++i) {
            decay[i] = number(a.decay, b, o.at[i], head);
            beta[i] = a.beta ? number(a.beta, b, o.at[i], head) : 1;
        }
        block_decays(o.count, decay, entry, left);
        load_rows(a.v, o, head, a.width, vs, v);
        for (int64_t i = 0; i < o.count; ++i) scale_row(k + i * ks, left[i], kp, arriving + i * ks);
    }

    // Row by row the decay from each write before to here: with the delta rule the chain -O of what a write takes of the ones before it. `each`
    // gets the row's number, and decays that count the row itself.
    template <typename F>
    void decays_within(int64_t n, F each) {
        const int64_t columns = ceil_to(n, W);
        zero(row, kLine);
        for (int64_t i = 0; i < n; ++i) {
            decay_further(row, decay[i], columns);
            for (int64_t j = 0; j < columns && a.beta; j += W)
                store(chain + i * kLine + j, load(overlap + i * kLine + j) * load(row + j) * -beta[i]);
            row[i] = 1;
            each(i, row);
        }
    }
    void scores_of(int64_t i, int64_t columns, const float* within) const {
        for (int64_t j = 0; j < columns; j += W) store(scores + i * kLine + j, load(met + i * kLine + j) * load(within + j));
    }

    // x (n, columns) <- (I + O)^-1 x, six rows at a time.
    void solve(int64_t n, int64_t columns, int64_t stride, float* x) const {
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

    // What is written of each value, what the block takes of a state (negative), and keys of values in the state behind.
    void solve_writes(int64_t n) {
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
        zero(writes, n * ks);
        multiply(Shape::upper, n, kp, n, inverse, 1, kLine, arriving, ks, writes, ks);
    }
    // Reads of the state before and, with the delta rule, scores of values.
    void read(int64_t n) {
        for (int64_t i = 0; i < n; ++i) scale_row(q + i * ks, entry[i], kp, reads + i * ks);
        if (!a.beta) return;
        multiply(Shape::lower, n, kp, n, scores, kLine, 1, removed, ks, reads, ks);
        zero(weighed, kBlock * kLine);
        multiply(Shape::lower, n, ceil_to(n, W), n, scores, kLine, 1, inverse, kLine, weighed, kLine);
    }
    const float* keys_behind() const { return a.beta ? writes : arriving; }

    // The weight of each pair's level: those of one level stand side by side in a row.
    void level_row(const Rows& o, int64_t i, float* out) const {
        zero(out, kLine);
        row_levels(i, o.place % kBlock, a.levels, [&](int64_t l, int64_t start, int64_t end) {
            const float by = weight[i * ms + l];
            for (int64_t j = start; j < end; ++j) out[j] = by;
        });
    }
    // The level at which row i sees what stood on level l before the block.
    int64_t seen(const Rows& o, int64_t i, int64_t l) const {
        const int64_t at = level_of(o.before(), o.place + i, a.levels);
        return at > l ? at : l;
    }
};

}  // namespace STATESCAN_ISA
}  // namespace statescan
