// Shared by the forward and the backward of linear attention and the delta rule, S <- Diag(d) S + k (v - S^T r)^T. Every write is a row;
// the rows of the positions that exist come in blocks, and a reset begins another block. A row keeps what its position does: only the first
// write of a position decays, only the last is followed by a query. K channels take kp floats, whole vectors; zeros fill them up.
#pragma once
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {

constexpr int64_t kRows = 2 * W;  // rows a block

struct Row {
    int64_t t, write;
    int64_t query;      // its place among the queries; -1: none
    bool decays, reads;  // whether there is a read, and not of zeros
    float decay, beta;   // 1 where absent; a decay a channel is a row of its own
};

// Walks over the rows of one chunk.
struct RowWalk {
    const MatrixState& a;
    int64_t b, t, write, end;

    RowWalk(const MatrixState& a, int64_t b, int64_t chunk)
        : a(a), b(b), t(chunk * kChunk), write(0), end(least(a.length, (chunk + 1) * kChunk)) {}

    // The next rows, at most kRows; fresh: a reset came before them. No rows: the chunk is over (and fresh: with a reset behind the last).
    int64_t next(Row* rows, bool& fresh) {
        int64_t count = 0;
        fresh = false;
        while (t < end) {
            if (write == 0 && a.line.resets(b, t)) {
                if (count > 0) return count;
                fresh = true;
            }
            if (write == 0 && !a.line.exists(b, t)) {
                ++t;
                continue;
            }
            if (count == kRows) return count;
            rows[count].t = t;
            rows[count++].write = write;
            if (++write == a.writes) {
                write = 0;
                ++t;
            }
        }
        return count;
    }
};

// What the rows of a block bring on the side of the keys, (rows, kp) each. Queries are stored without gaps, and scaled; r is what meets the
// state before the row's decay; d is written where every channel has a decay of its own.
struct KeySide {
    float *q, *k, *r, *d;
    int64_t kp;
};

// Brings near what the positions of a block have of one input or output, by position (B, L, H, .) or by write (B, L, n, H, .).
static inline void touch_block(const View& v, int64_t b, int64_t head, const Row* rows, int64_t count, int64_t width) {
    touch_rows(v, b, rows[0].t, rows[count - 1].t + 1, head, width);
}

static inline void touch_block(View v, int64_t b, int64_t head, const Row* rows, int64_t count, int64_t width, int64_t writes) {
    v.data = v ? v.data + head * v.stride[3] * v.bytes() : nullptr;
    for (int64_t j = 0; j < writes; ++j) touch_block(v, b, j, rows, count, width);
}

// Returns the number of queries.
static inline int64_t load_keys(const MatrixState& a, int64_t b, int64_t head, Row* rows, int64_t count, const KeySide& s) {
    const int64_t kp = s.kp, group = head / (a.heads / a.groups);
    int64_t queries = 0;
    if (count == 0) return 0;
    touch_block(a.q, b, group, rows, count, a.keys);
    touch_block(a.decay, b, head, rows, count, a.by_channel ? a.keys : 1);
    touch_block(a.key, b, group, rows, count, a.keys, a.writes);
    touch_block(a.value, b, head, rows, count, a.width, a.writes);
    touch_block(a.read, b, head, rows, count, a.keys, a.writes);
    for (int64_t i = 0; i < count; ++i) {
        Row& row = rows[i];
        float *k = s.k + i * kp, *d = s.d + i * kp, *r = s.r + i * kp;
        load_row(a.key.at(b, row.t, row.write, group), a.key.type, a.keys, k);
        row.decays = a.decay && row.write == 0;
        row.decay = row.beta = 1;
        row.query = -1;
        if (row.decays && a.by_channel) {
            load_row(a.decay.at(b, row.t, head), a.decay.type, a.keys, d);
            for (int64_t c = 0; c < kp; c += W) store(d + c, exp(load(d + c)));
        } else if (row.decays) {
            row.decay = exp(splat(number(a.decay, b, row.t, head)))[0];
        }
        if (row.write == a.writes - 1) {
            row.query = queries++;
            float* q = s.q + row.query * kp;
            load_row(a.q.at(b, row.t, group), a.q.type, a.keys, q);
            for (int64_t c = 0; c < kp; c += W) store(q + c, load(q + c) * a.scale);
        }
        vi some = {};
        if (a.beta) {
            row.beta = number(a.beta, b, row.t, row.write, head);
            const float strength = row.beta * row.decay;
            for (int64_t c = 0; c < kp; c += W) {
                vf v = load(k + c) * strength;
                if (row.decays && a.by_channel) v *= load(d + c);
                some |= v != splat(0);
                store(r + c, v);
            }
        } else if (a.read) {
            load_row(a.read.at(b, row.t, row.write, head), a.read.type, a.keys, r);
            for (int64_t c = 0; c < kp; c += W) some |= load(r + c) != splat(0);
        }
        row.reads = !all(some == 0);
    }
    return queries;
}

// beta v of a row, `width` numbers from column `first` on.
static inline void load_value(const MatrixState& a, int64_t b, int64_t head, const Row& row, int64_t first, int64_t width, float* out) {
    load_row(a.value.at(b, row.t, row.write, head) + first * a.value.bytes(), a.value.type, width, out);
    if (!a.beta) return;
    for (int64_t i = 0; i < width; i += W) store(out + i, load(out + i) * row.beta);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
