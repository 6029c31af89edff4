// Gradients of linear attention and the delta rule, chunk by chunk from the end. Inside a chunk, which starts from its saved state, a block
// of rows is a few small matrix products. With D_i the decay from the block's start to behind row i (all products of decays, none divided):
//     u = v - R S - A u,  y = Q S + P u,  S' = D S + K^T u        R, Q, K: reads, queries and keys, decayed to the block's start or end
// where A and P hold what a read or a query meets of the keys before it. The same with the gradient H of S':
//     w = P^T gy + K H - A^T w,  gS = D H + Q^T gy - R^T w,  gQ = gy S^T,  gR = -w S^T,  gK = u H^T,  gP = gy u^T,  gA = -w u^T
// w is the gradient of v. What A and P depend on goes back by running sums, one for each read, query and key. part_q and part_key are
// gradients by head where heads share keys: they are added up at the end, in a fixed order.
#include "matrix_state.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

struct Block {
    int64_t first, rows, query, queries;  // places in the chunk
    bool fresh;                           // the state before it is zero
    const float *before, *after;
};

struct Chunk {
    const MatrixStateGrad& a;
    const MatrixState& f;
    int64_t b, head, kp, vp, stride, size;   // stride: floats of a row of values; size: of a state
    bool reads;
    float *q, *k, *r, *d, *u;                // by row or query of the chunk
    float *Q, *K, *R;                        // R: negative
    float *A, *P;                            // (rows, rows), (queries, rows) of a block; A: negative
    float *states, *H;                       // (K, stride)
    float *w, *gy;                           // (rows, stride)
    float *wt, *ut, *gyt, *gP, *gA, *flat;   // (V, rows); (queries, rows), (rows, rows); (K, rows)
    float *gq, *gk, *gr, *gd;                // (rows, kp)
    float *total, *end, *row;                // (kp,), (kp,), a row of anything
    Row* rows;
    Block* blocks;
    int64_t count;

    static int64_t most(const MatrixState& f) { return kChunk * f.writes; }
    static int64_t kept_states(const MatrixState& f) { return most(f) / kRows + 3; }
    static int64_t bytes(const MatrixState& f) {
        const int64_t kp = ceil_to(f.keys, W), stride = padded(f.width), n = most(f);
        const int64_t floats = 7 * n * kp + n * stride + 2 * n * kRows + (kept_states(f) + 1) * f.keys * stride + 2 * kRows * stride +
                               3 * stride * kRows + 2 * kRows * kRows + kp * kRows + 4 * kRows * kp + 2 * kp + kp + stride;
        return 4 * floats + n * static_cast<int64_t>(sizeof(Row)) + (n + 1) * static_cast<int64_t>(sizeof(Block)) + 64 * 40;
    }
    Chunk(const MatrixStateGrad& a, int64_t index, char* scratch) : a(a), f(a.forward), b(index / f.heads), head(index % f.heads) {
        kp = ceil_to(f.keys, W);
        vp = ceil_to(f.width, W);
        stride = padded(f.width);
        size = f.keys * stride;
        reads = f.beta || f.read;
        const int64_t n = most(f);
        Arena arena{scratch};
        float** const by_row[] = {&q, &k, &r, &d, &Q, &K, &R};
        for (float** m : by_row) *m = arena.floats(n * kp);
        u = arena.floats(n * stride);
        A = arena.floats(n * kRows); P = arena.floats(n * kRows);
        states = arena.floats(kept_states(f) * size); H = arena.floats(size);
        w = arena.floats(kRows * stride); gy = arena.floats(kRows * stride);
        wt = arena.floats(stride * kRows); ut = arena.floats(stride * kRows); gyt = arena.floats(stride * kRows);
        gP = arena.floats(kRows * kRows); gA = arena.floats(kRows * kRows); flat = arena.floats(kp * kRows);
        gq = arena.floats(kRows * kp); gk = arena.floats(kRows * kp); gr = arena.floats(kRows * kp); gd = arena.floats(kRows * kp);
        total = arena.floats(kp); end = arena.floats(kp); row = arena.floats(kp + stride);
        rows = reinterpret_cast<Row*>(arena.floats((n * static_cast<int64_t>(sizeof(Row)) + 3) / 4));
        blocks = reinterpret_cast<Block*>(arena.floats(((n + 1) * static_cast<int64_t>(sizeof(Block)) + 3) / 4));
    }

    void forward(int64_t chunk);
    void decay_keys(const Block& o);
    template <int N> void meet(const Block& o, int64_t c0);
    void backward(const Block& o);
    void through_block(const Block& o, int64_t c, vf* tied);
    void write(const Block& o, const vf* tied);
    void write_nothing(int64_t t);
};

// Q, K, R and the decay over the whole block.
void Chunk::decay_keys(const Block& o) {
    for (int64_t c = 0; c < kp; c += W) {
        vf since = splat(1);
        for (int64_t i = o.first; i < o.first + o.rows; ++i) {
            const Row& row = rows[i];
            if (reads) store(R + i * kp + c, -load(r + i * kp + c) * since);
            if (row.decays) since *= load(d + i * kp + c);
            if (row.query >= 0) store(Q + row.query * kp + c, load(q + row.query * kp + c) * since);
        }
        vf until = splat(1);
        for (int64_t i = o.first + o.rows - 1; i >= o.first; --i) {
            store(K + i * kp + c, load(k + i * kp + c) * until);
            if (rows[i].decays) until *= load(d + i * kp + c);
        }
        store(total + c, until);
    }
}

template <int N>
float dot(const float* a, const vf* b) {
    vf total = load(a) * b[0];
    for (int v = 1; v < N; ++v) total += load(a + v * W) * b[v];
    return sum(total);
}

// A and P over N vectors of key channels: each key goes on through the rows behind it, decaying.
template <int N>
void Chunk::meet(const Block& o, int64_t c0) {
    for (int64_t j = 0; j < o.rows; ++j) {
        vf key[N];
        for (int v = 0; v < N; ++v) key[v] = load(k + (o.first + j) * kp + c0 + v * W);
        for (int64_t i = j; i < o.rows; ++i) {
            const Row& row = rows[o.first + i];
            if (i > j) {
                if (reads) A[(o.first + i) * kRows + j] -= dot<N>(r + (o.first + i) * kp + c0, key);
                if (row.decays)
                    for (int v = 0; v < N; ++v) key[v] *= load(d + (o.first + i) * kp + c0 + v * W);
            }
            if (row.query >= 0) P[row.query * kRows + j] += dot<N>(q + row.query * kp + c0, key);
        }
    }
}

void add(const float* in, float by, int64_t width, float* out) {
    for (int64_t i = 0; i < width; i += W) store(out + i, load(out + i) + load(in + i) * by);
}

void scale_channels(const float* in, const float* by, int64_t keys, int64_t width, int64_t stride, float* out) {
    for (int64_t c = 0; c < keys; ++c)
        for (int64_t i = 0; i < width; i += W) store(out + c * stride + i, load(in + c * stride + i) * by[c]);
}

// The chunk again: its blocks, what they write and the states between them.
void Chunk::forward(int64_t chunk) {
    RowWalk walk(f, b, chunk);
    float* now = states;
    for (int64_t c = 0; c < f.keys; ++c) load_row(f.chunks.at(b, chunk, head, c), kFloat, f.width, now + c * stride);
    int64_t first = 0, query = 0;
    for (count = 0;; ++count) {
        Block& o = blocks[count];
        o.rows = walk.next(rows + first, o.fresh);
        if (o.rows == 0 && !o.fresh) return;
        o.first = first;
        o.query = query;
        o.queries = load_keys(f, b, head, rows + first, o.rows, {q + query * kp, k + first * kp, r + first * kp, d + first * kp, kp});
        for (int64_t i = first; i < first + o.rows; ++i) {
            Row& row = rows[i];
            if (row.query >= 0) row.query += query;
            if (row.decays && !f.by_channel)
                for (int64_t c = 0; c < kp; c += W) store(d + i * kp + c, splat(row.decay));
            load_value(f, b, head, row, 0, f.width, u + i * stride);
        }
        decay_keys(o);
        zero(A + first * kRows, o.rows * kRows);
        zero(P + o.query * kRows, o.queries * kRows);
        int64_t c = 0;
        for (; c + 8 * W <= kp; c += 8 * W) meet<8>(o, c);
        for (; c + 4 * W <= kp; c += 4 * W) meet<4>(o, c);
        for (; c < kp; c += W) meet<1>(o, c);

        o.before = o.fresh ? nullptr : now;
        float* mine = u + first * stride;
        if (reads && !o.fresh) multiply(Shape::full, o.rows, vp, f.keys, R + first * kp, kp, 1, now, stride, mine, stride);
        for (int64_t i = 1; i < o.rows && reads; ++i)
            for (int64_t j = 0; j < i; ++j) add(mine + j * stride, A[(first + i) * kRows + j], vp, mine + i * stride);
        // Behind a reset the state before it is not asked for any more: its place is free.
        float* next = o.fresh ? now : now + size;
        if (o.fresh) zero(next, size);
        else scale_channels(now, total, f.keys, vp, stride, next);
        multiply(Shape::full, f.keys, vp, o.rows, K + first * kp, 1, kp, mine, stride, next, stride);
        o.after = now = next;
        first += o.rows;
        query += o.queries;
    }
}

// (rows, V) to (V, rows): whole vectors of rows, the missing ones zero.
void turn(const float* in, int64_t rows, int64_t width, int64_t stride, float* out) {
    if (rows % W != 0)
        for (int64_t v = 0; v < width; ++v) store(out + v * kRows + rows / W * W, splat(0));
    transpose(in, rows, width, stride, out, kRows);
}

void Chunk::backward(const Block& o) {
    if (o.rows == 0) return zero(H, size);
    const Row* mine = rows + o.first;
    float* all_u = u + o.first * stride;
    touch_block(a.gy, b, head, mine, o.rows, f.width);
    for (int64_t i = 0; i < o.rows; ++i)
        if (mine[i].query >= 0)
            load_row(a.gy.at(b, mine[i].t, head), a.gy.type, f.width, gy + (mine[i].query - o.query) * stride);
    zero(w, o.rows * stride);
    multiply(Shape::full, o.rows, vp, f.keys, K + o.first * kp, kp, 1, H, stride, w, stride);
    multiply(Shape::full, o.rows, vp, o.queries, P + o.query * kRows, 1, kRows, gy, stride, w, stride);
    for (int64_t i = o.rows - 1; i > 0 && reads; --i)
        for (int64_t j = 0; j < i; ++j) add(w + i * stride, A[(o.first + i) * kRows + j], vp, w + j * stride);

    const int64_t across = ceil_to(o.rows, W);
    turn(all_u, o.rows, f.width, stride, ut);
    zero(gP, o.queries * kRows);
    multiply(Shape::full, o.queries, across, f.width, gy, stride, 1, ut, kRows, gP, kRows);
    zero(gA, o.rows * kRows);
    if (reads) multiply(Shape::full, o.rows, across, f.width, w, stride, 1, ut, kRows, gA, kRows);

    auto to_keys = [&](const float* state, const float* turned, int64_t count, float* out) {
        zero(out, count * kp);
        if (state == nullptr || count == 0) return;
        zero(flat, f.keys * kRows);
        multiply(Shape::full, f.keys, ceil_to(count, W), f.width, state, stride, 1, turned, kRows, flat, kRows);
        transpose(flat, f.keys, count, kRows, out, kp);
    };
    to_keys(H, ut, o.rows, gk);
    if (!o.fresh) {
        turn(gy, o.queries, f.width, stride, gyt);
        if (reads) turn(w, o.rows, f.width, stride, wt);
    }
    to_keys(o.before, gyt, o.queries, gq);
    if (reads) to_keys(o.before, wt, o.rows, gr);

    zero(end, kp);
    if (f.decay)
        for (int64_t c = 0; c < f.keys; ++c) {
            vf kept = splat(0);
            for (int64_t i = 0; i < vp; i += W) kept += load(o.after + c * stride + i) * load(H + c * stride + i);
            end[c] = sum(kept);
        }
    vf tied[kRows];
    for (int64_t i = 0; i < o.rows; ++i) tied[i] = splat(0);
    for (int64_t c = 0; c < kp; c += W) through_block(o, c, tied);
    write(o, tied);

    if (o.fresh) return zero(H, size);
    if (f.decay) {
        for (int64_t c = 0; c < kp; c += W) {
            vf over = splat(1);
            for (int64_t i = 0; i < o.rows; ++i)
                if (mine[i].decays) over *= load(d + (o.first + i) * kp + c);
            store(total + c, over);
        }
        scale_channels(H, total, f.keys, vp, stride, H);
    }
    multiply(Shape::full, f.keys, vp, o.queries, Q + o.query * kp, 1, kp, gy, stride, H, stride);
    if (reads) multiply(Shape::full, f.keys, vp, o.rows, R + o.first * kp, 1, kp, w, stride, H, stride);
}

// The running sums over the block for W key channels: gq, gk and gr, which hold what came through the states, become complete; gd becomes
// the gradient of the logarithm of the decay; tied is what the strengths of tied reads get.
void Chunk::through_block(const Block& o, int64_t c, vf* tied) {
    const Row* mine = rows + o.first;
    auto key = [&](int64_t j) { return load(k + (o.first + j) * kp + c); };
    auto decayed = [&](int64_t j, vf v) { return mine[j].decays ? v * load(d + (o.first + j) * kp + c) : v; };
    auto query = [&](int64_t i) { return load(q + mine[i].query * kp + c); };
    auto read = [&](int64_t i) { return load(r + (o.first + i) * kp + c); };
    for (int64_t i = 0; i < o.rows; ++i) {
        const bool asks = mine[i].query >= 0;
        const int64_t at = asks ? mine[i].query - o.query : 0;
        const float *by_query = gP + at * kRows, *by_read = gA + i * kRows;
        vf g = asks ? load(gq + at * kp + c) : splat(0), h = reads ? load(gr + i * kp + c) : splat(0);
        for (int64_t j = 0; j < i; ++j) {
            const vf met = key(j);
            g = decayed(j, g) + by_query[j] * met;
            h = decayed(j, h) + by_read[j] * met;
        }
        if (asks) store(gq + at * kp + c, decayed(i, g) + by_query[i] * key(i));
        if (reads) store(gr + i * kp + c, -h);
    }
    for (int64_t j = 0; j < o.rows; ++j) {
        vf g = load(gk + j * kp + c);
        for (int64_t i = o.rows - 1; i >= j; --i) {
            if (mine[i].query >= 0) g += gP[(mine[i].query - o.query) * kRows + j] * query(i);
            if (i == j) break;
            g = decayed(i, g);
            if (reads) g -= gA[i * kRows + j] * read(i);
        }
        store(gk + j * kp + c, g);
    }
    vf later = load(end + c);  // what scaling the state behind a row would change
    for (int64_t i = o.rows - 1; i >= 0; --i) {
        const vf g = reads ? load(gr + i * kp + c) : splat(0);
        if (mine[i].query >= 0) later += query(i) * load(gq + (mine[i].query - o.query) * kp + c);
        later -= key(i) * load(gk + i * kp + c);
        if (f.beta) later += read(i) * g;  // a tied read has its row's decay in it
        store(gd + i * kp + c, later);
        if (f.read) later += read(i) * g;
        if (f.beta) {
            const vf untied = decayed(i, g);
            tied[i] += untied * key(i);
            store(gk + i * kp + c, load(gk + i * kp + c) + mine[i].beta * untied);
        }
    }
}

void Chunk::write(const Block& o, const vf* tied) {
    const View &to_q = a.part_q ? a.part_q : a.gq, &to_key = a.part_key ? a.part_key : a.gkey;
    touch_block(to_q, b, head, rows + o.first, o.rows, f.keys);
    touch_block(to_key, b, head, rows + o.first, o.rows, f.keys, f.writes);
    touch_block(a.gvalue, b, head, rows + o.first, o.rows, f.width, f.writes);
    if (f.by_channel) touch_block(a.gdecay, b, head, rows + o.first, o.rows, f.keys);
    touch_block(a.gread, b, head, rows + o.first, o.rows, f.keys, f.writes);
    for (int64_t i = 0; i < o.rows; ++i) {
        const Row& here = rows[o.first + i];
        float* g = w + i * stride;
        if (here.query >= 0) {
            for (int64_t c = 0; c < kp; c += W) store(row + c, load(gq + (here.query - o.query) * kp + c) * f.scale);
            store_row(to_q.at(b, here.t, head), to_q.type, f.keys, row);
        }
        store_row(to_key.at(b, here.t, here.write, head), to_key.type, f.keys, gk + i * kp);
        if (f.read) store_row(a.gread.at(b, here.t, here.write, head), a.gread.type, f.keys, gr + i * kp);
        if (here.decays && f.by_channel) {
            store_row(a.gdecay.at(b, here.t, head), a.gdecay.type, f.keys, gd + i * kp);
        } else if (here.decays) {
            vf all_channels = splat(0);
            for (int64_t c = 0; c < kp; c += W) all_channels += load(gd + i * kp + c);
            store_number(a.gdecay, a.gdecay.at(b, here.t, head), sum(all_channels));
        }
        if (f.beta) {
            load_row(f.value.at(b, here.t, here.write, head), f.value.type, f.width, row);
            vf strength = tied[i];
            for (int64_t v = 0; v < vp; v += W) strength += load(row + v) * load(g + v);
            store_number(a.gbeta, a.gbeta.at(b, here.t, here.write, head), sum(strength));
        }
        for (int64_t v = 0; v < vp; v += W) store(row + v, load(g + v) * here.beta);
        store_row(a.gvalue.at(b, here.t, here.write, head), a.gvalue.type, f.width, row);
    }
}

// Zeros at a position that does not exist.
void Chunk::write_nothing(int64_t t) {
    const View &to_q = a.part_q ? a.part_q : a.gq, &to_key = a.part_key ? a.part_key : a.gkey;
    auto clear = [](const View& v, char* at, int64_t count) { memset(at, 0, static_cast<size_t>(count * v.bytes())); };
    clear(to_q, to_q.at(b, t, head), f.keys);
    if (f.decay) clear(a.gdecay, a.gdecay.at(b, t, head), f.by_channel ? f.keys : 1);
    for (int64_t j = 0; j < f.writes; ++j) {
        clear(to_key, to_key.at(b, t, j, head), f.keys);
        clear(a.gvalue, a.gvalue.at(b, t, j, head), f.width);
        if (f.read) clear(a.gread, a.gread.at(b, t, j, head), f.keys);
        if (f.beta) clear(a.gbeta, a.gbeta.at(b, t, j, head), 1);
    }
}

void run(const void* context, int64_t index, char* scratch) {
    const MatrixStateGrad& a = *static_cast<const MatrixStateGrad*>(context);
    const MatrixState& f = a.forward;
    Chunk c(a, index, scratch);
    zero(c.H, c.size);
    if (a.glast)
        for (int64_t i = 0; i < f.keys; ++i) load_row(a.glast.at(c.b, c.head, i), kFloat, f.width, c.H + i * c.stride);
    for (int64_t chunk = (f.length - 1) / kChunk; chunk >= 0; --chunk) {
        c.forward(chunk);
        for (int64_t i = c.count - 1; i >= 0; --i) c.backward(c.blocks[i]);
        for (int64_t t = chunk * kChunk; t < least(f.length, (chunk + 1) * kChunk); ++t)
            if (!f.line.exists(c.b, t)) c.write_nothing(t);
    }
    for (int64_t i = 0; i < f.keys; ++i) store_row(a.gstate.at(c.b, c.head, i), kFloat, f.width, c.H + i * c.stride);
}

// Adds up the heads' parts of q and of the keys: one chunk of one batch row.
void sum_heads(const void* context, int64_t index, char* scratch) {
    const MatrixStateGrad& a = *static_cast<const MatrixStateGrad*>(context);
    const MatrixState& f = a.forward;
    const int64_t chunks = (f.length + kChunk - 1) / kChunk, members = f.heads / f.groups, b = index / chunks, t0 = index % chunks * kChunk;
    float* total = reinterpret_cast<float*>(scratch);
    for (int64_t t = t0; t < least(f.length, t0 + kChunk); ++t)
        for (int64_t j = -1; j < f.writes; ++j)  // -1: the query
            for (int64_t g = 0; g < f.groups; ++g) {
                const View& out = j < 0 ? a.gq : a.gkey;
                zero(total, ceil_to(f.keys, W));
                for (int64_t i = g * members; i < (g + 1) * members; ++i) {
                    const float* part = j < 0 ? a.part_q.f(b, t, i) : a.part_key.f(b, t, j, i);
                    for (int64_t c = 0; c < f.keys; ++c) total[c] += part[c];
                }
                store_row(j < 0 ? out.at(b, t, g) : out.at(b, t, j, g), out.type, f.keys, total);
            }
}

}  // namespace

void matrix_state_backward(const MatrixStateGrad& a) {
    const MatrixState& f = a.forward;
    parallel(f.threads, f.batch * f.heads, Chunk::bytes(f), run, &a);
    if (a.part_q) parallel(f.threads, f.batch * ((f.length + kChunk - 1) / kChunk), 4 * ceil_to(f.keys, W), sum_heads, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
