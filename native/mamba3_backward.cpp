// Gradients of Mamba-3, block by block from the end, for one head. Nothing was saved: a first pass makes the states between blocks again; those of a
// long call are kept part by part, and each part is gone through forwards once more. Inside a block all writes and queries are rows of small
// matrix products. A position's write enters with the position behind it, before that one's decay, so row i of the keys belongs to the position
// before query i; within a block
//     O = P U + entry Q S,   P = (Q K^T) * D,   S' = total S + (left K)^T U
// with D the decay from before a row's position to behind a query's, and with the gradient H of S'
//     gU = P^T gO + left K H,  gP = gO U^T * D,  gQ = gP K + entry gO S^T,  gK = gP^T Q + left U H^T,  gS = total H + (entry Q)^T gO
// What a position's own writes give to its queries, the gate, rotations and steps are done position by position. The gradient of a key goes
// back through its rotation when all have arrived that it gets: for the last of a block these come with the block behind it.
#include "decay_block.h"
#include "mamba3.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kKept = 128;  // states: blocks a part

struct Block {
    int64_t first, count;  // among the positions that exist
    bool fresh;            // a reset stands before it
};

int64_t most(const Mamba3& a) { return kBlock / a.rank; }  // positions a block
int64_t parts(const Mamba3& a) { return a.length / kKept + 1; }

struct Tile : Turns {
    const Mamba3Grad& g;
    int64_t R, keys, ks, vp, vs, size;          // floats of a key; of its row; of a value; of its row; of a state
    float *k, *gk;                              // (1 + positions, R, ks): from the position before on
    float *q, *gq;                              // (rows, ks)
    float *u, *late, *out, *go, *entering, *gu; // (rows, vs)
    float *P, *gP, *within, *kt, *ut;           // (rows, kLine) twice, (positions, kLine), (keys, kLine), (vp, kLine)
    float *v, *gv, *z, *gy, *some;             // (1 + positions, vs) twice, (vs,) three times
    float *met, *gmet;                          // (positions, R, R): q^T k of a position's own; the gradient of what its output gets by it
    float *S, *H, *turned;                      // (keys, vs) twice, (vp, ks)
    float *kept, *begun;                        // what stands before the blocks of a part, and before each part: a state and phases
    float *sines, *cosines;                     // (1 + positions, half)
    float *bias_k, *bias_q, *gbias_k, *gbias_q; // (R, ks)
    float *v_weight, *z_weight, *y_weight, *gv_weight, *gz_weight, *gy_weight;  // (R, vs)
    float *now, *gnow;                          // (1 + positions,): lambda delta
    float *delta, *mix, *given, *decay, *entry, *left, *row, *gdecay, *gphase;
    int64_t* at;
    Block* blocks;
    int64_t count = 0;  // of blocks
    bool ends = true;   // no reset behind the last position that exists
    float gD = 0;

    static int64_t record(const Mamba3& a) { return 2 * ceil_to(a.keys / 2, W) * padded(a.width) + ceil_to(2 * a.angles, 16); }
    static int64_t bytes(const Mamba3& a) {
        const int64_t half = ceil_to(a.keys / 2, W), keys = 2 * half, ks = padded(keys), vp = ceil_to(a.width, W), vs = padded(a.width);
        const int64_t n = most(a), rows = n * a.rank, R = a.rank;
        const int64_t floats = (2 * (rows + R) + 2 * rows + 4 * R) * ks + (6 * rows + 2 * (n + 1) + 3 + 6 * R) * vs + (2 * rows + n + keys + vp + 9) * kLine +
                               2 * n * R * R + 2 * keys * vs + (least(kKept, a.length) + parts(a)) * record(a) + vp * ks + 2 * (n + 1) * half + 4 * half + keys;
        return 4 * floats + 8 * a.length + (a.length + 1) * static_cast<int64_t>(sizeof(Block)) + 64 * 60;
    }
    Tile(const Mamba3Grad& g, int64_t index, char* scratch) : Turns(g.forward, index), g(g), R(g.forward.rank) {
        keys = 2 * half, ks = padded(keys), vp = ceil_to(a.width, W), vs = padded(a.width), size = keys * vs;
        const int64_t n = most(a), rows = n * R;
        Arena arena{scratch};
        float **const by_key[] = {&q, &gq}, **const by_value[] = {&u, &late, &out, &go, &entering, &gu},
              **const line[] = {&now, &gnow, &delta, &mix, &given, &decay, &entry, &left, &row, &gdecay},
              **const weights[] = {&v_weight, &z_weight, &y_weight, &gv_weight, &gz_weight, &gy_weight},
              **const biases[] = {&bias_k, &bias_q, &gbias_k, &gbias_q};
        for (float** m : by_key) *m = arena.floats(rows * ks);
        for (float** m : by_value) *m = arena.floats(rows * vs);
        for (float** m : line) *m = arena.floats(kLine);
        for (float** m : weights) *m = arena.floats(R * vs);
        for (float** m : biases) *m = arena.floats(R * ks);
        k = arena.floats((rows + R) * ks), gk = arena.floats((rows + R) * ks);
        v = arena.floats((n + 1) * vs), gv = arena.floats((n + 1) * vs), z = arena.floats(vs), gy = arena.floats(vs), some = arena.floats(vs);
        P = arena.floats(rows * kLine), gP = arena.floats(rows * kLine), within = arena.floats(n * kLine);
        kt = arena.floats(keys * kLine), ut = arena.floats(vp * kLine);
        met = arena.floats(n * R * R), gmet = arena.floats(n * R * R);
        S = arena.floats(size), H = arena.floats(size), turned = arena.floats(vp * ks);
        kept = arena.floats(least(kKept, a.length) * record(a)), begun = arena.floats(parts(a) * record(a));
        sines = arena.floats((n + 1) * half), cosines = arena.floats((n + 1) * half), gphase = arena.floats(half), raw = arena.floats(keys);
        phase = reinterpret_cast<double*>(arena.floats(2 * half));
        at = reinterpret_cast<int64_t*>(arena.floats(2 * a.length));
        blocks = reinterpret_cast<Block*>(arena.floats((a.length + 1) * static_cast<int64_t>(sizeof(Block)) / 4));
    }

    void at_row(int64_t position) { sin = sines + position * half, cos = cosines + position * half; }
    static const char* bytes_of(const float* p) { return reinterpret_cast<const char*>(p); }
    void load_weight(const View& from, float* to, float* gradient) const {
        for (int64_t r = 0; r < R; ++r) {
            if (from) load_row(bytes_of(from.f(head, r)), kFloat, a.width, to + r * vs);
            else for (int64_t i = 0; i < vp; i += W) store(to + r * vs + i, splat(1));
        }
        zero(gradient, R * vs);
    }
    void store_weight(const float* from, int64_t stride, const View& to) const {
        for (int64_t r = 0; to && r < R; ++r) memcpy(to.f(b, head, r), from + r * stride, static_cast<size_t>(a.width * 4));
    }
    // (H, P, N) as outside and (N, P) as here.
    void load_state(const View& from, float* to) const {
        zero(to, size);
        for (int64_t p = 0; from && p < a.width; ++p)
            for (int64_t n = 0; n < a.keys; ++n) to[key_row(n) * vs + p] = from.f(b, head, p)[n];
    }
    void store_state(const float* from, const View& to) const {
        for (int64_t p = 0; p < a.width; ++p)
            for (int64_t n = 0; n < a.keys; ++n) to.f(b, head, p)[n] = from[key_row(n) * vs + p];
    }

    void find_blocks();
    void prepare(const Block& o, bool queries);
    void load_before(const Block& o);
    void keep(float* to) const;
    void look(const float* from) const;
    void forward(int64_t from, int64_t to, bool all);
    double met_by(const float* state) const;
    double backward(const Block& o, const float* record, double scaled, bool last);
    void read_again(const Block& o, const float* before);
    void gate(const Block& o);
    void last_write(int64_t n);
    void products(const Block& o, const float* before, double scaled);
    void turn_back(const float* gradient, const float* rotated, float* gbias, float* out) const;
    void steps(const Block& o);
    void nothing(int64_t t) const;
    void run();
};

void Tile::find_blocks() {
    int64_t found = 0;
    bool fresh = false;
    for (int64_t t = 0; t < a.length; ++t) {
        fresh |= a.line.resets(b, t);
        if (!a.line.exists(b, t)) continue;
        if (found == 0 || fresh || blocks[count - 1].count == most(a)) blocks[count++] = {found, 0, fresh};
        fresh = false;
        ++blocks[count - 1].count;
        at[found++] = t;
    }
    ends = !fresh;
}

// The position before a block: its keys, which have turned by the phases, and its value; zeros behind a reset.
void Tile::load_before(const Block& o) {
    at_row(0);
    now[0] = 0;
    if (o.fresh) {
        zero(k, R * ks);
        zero(v, vs);
        for (int64_t i = 0; i < half; ++i) phase[i] = 0, sin[i] = 0, cos[i] = 1;
        return;
    }
    if (o.first == 0) {
        begin();
        for (int64_t r = 0; r < R; ++r) load_key(bytes_of(a.last_k.f(b, r, head)), kFloat, k + r * ks);
        load_row(bytes_of(a.last_v.f(b, head)), kFloat, a.width, v);
        return;
    }
    const int64_t t = at[o.first - 1];
    for (int64_t i = 0; i < half; ++i) sin[i] = 0, cos[i] = 1;
    aim();
    for (int64_t r = 0; r < R; ++r) turn(a.k.at(b, t, r, group), a.k.type, bias_k + r * ks, k + r * ks);
    load_row(a.v.at(b, t, head), a.v.type, a.width, v);
    now[0] = a.mix.f(b, t)[head] * a.delta.f(b, t)[head];
}

// All that a block's positions bring, and what they write: keys from the position before the block on.
void Tile::prepare(const Block& o, bool queries) {
    const int64_t n = o.count;
    load_before(o);
    touch_rows(a.v, b, at[o.first], at[o.first + n - 1] + 1, head, a.width);
    zero(decay, kLine);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t t = at[o.first + i];
        delta[i] = a.delta.f(b, t)[head], mix[i] = a.mix.f(b, t)[head], decay[i] = a.log_decay.f(b, t)[head];
        now[i + 1] = mix[i] * delta[i];
        given[i] = now[i] + delta[i] - now[i + 1];
        at_row(i + 1);
        for (int64_t j = 0; j < half; ++j) sin[j] = 0, cos[j] = 1;
        advance(t, delta[i]);
        for (int64_t r = 0; r < R; ++r) {
            turn(a.k.at(b, t, r, group), a.k.type, bias_k + r * ks, k + ((i + 1) * R + r) * ks);
            if (queries) turn(a.q.at(b, t, r, group), a.q.type, bias_q + r * ks, q + (i * R + r) * ks);
        }
        load_row(a.v.at(b, t, head), a.v.type, a.width, v + (i + 1) * vs);
    }
    block_decays(n, decay, entry, left);
    for (int64_t i = 0; i < n; ++i) {
        left[i] *= decay[i];
        for (int64_t r = 0; r < R; ++r) {
            float* to = u + (i * R + r) * vs;
            for (int64_t c = 0; c < vp; c += W) store(to + c, load(v + i * vs + c) * load(v_weight + r * vs + c) * given[i]);
            scale_row(to, left[i], vp, late + (i * R + r) * vs);
        }
    }
}

// The state S and the phases.
void Tile::keep(float* to) const {
    memcpy(to, S, static_cast<size_t>(size * 4));
    memcpy(to + size, phase, static_cast<size_t>(turning * 8));
}

void Tile::look(const float* from) const { memcpy(phase, from + size, static_cast<size_t>(turning * 8)); }

// Goes on from S and the phases through blocks [from, to), and keeps what stands before parts, or before all of them.
void Tile::forward(int64_t from, int64_t to, bool all) {
    for (int64_t i = from; i < to; ++i) {
        const Block& o = blocks[i];
        if (i % kKept == 0) keep(begun + i / kKept * record(a));
        if (all) keep(kept + i % kKept * record(a));
        if (o.fresh) zero(S, size);
        prepare(o, false);
        scale_row(S, entry[o.count - 1], size, S);
        multiply(Shape::full, keys, vp, o.count * R, k, 1, ks, late, vs, S, vs);
    }
}

// What queries read: the scores P and their values, and of the state before the block.
void Tile::read_again(const Block& o, const float* before) {
    const int64_t rows = o.count * R, columns = ceil_to(rows, W);
    zero(kt, keys * kLine);
    transpose(k, rows, keys, ks, kt, kLine);
    zero(P, rows * kLine);
    multiply(Shape::out_lower, rows, columns, keys, q, ks, 1, kt, kLine, P, kLine, R);
    zero(row, kLine);
    for (int64_t i = 0; i < o.count; ++i) {  // row: the decay from before each write's position to behind this one
        decay_further(row, decay[i], columns);
        for (int64_t r = 0; r < R; ++r) row[i * R + r] = decay[i];
        memcpy(within + i * kLine, row, static_cast<size_t>(columns * 4));
        for (int64_t r = i * R; r < (i + 1) * R; ++r)
            for (int64_t j = 0; j < columns; j += W) store(P + r * kLine + j, load(P + r * kLine + j) * load(row + j));
    }
    zero(out, rows * vs);
    if (before) multiply(Shape::full, rows, vp, keys, q, ks, 1, before, vs, out, vs);
    for (int64_t i = 0; i < rows; ++i) scale_row(out + i * vs, entry[i / R], vp, out + i * vs);
    multiply(Shape::lower, rows, vp, rows, P, kLine, 1, u, vs, out, vs, R);
}

// Outputs again, and the gradient of what the queries read: through the gate, the skip and what a position's own writes give.
void Tile::gate(const Block& o) {
    const int64_t first = at[o.first], stop = at[o.first + o.count - 1] + 1;
    float* inputs = ut;  // (R, vs), not needed yet
    touch_rows(a.z, b, first, stop, head, a.width);
    if (a.z) touch_rows(g.gy, b, first, stop, head, a.width);
    for (int64_t i = 0; i < o.count; ++i) {
        const int64_t t = at[o.first + i];
        const float* value = v + (i + 1) * vs;
        float *gvalue = gv + (i + 1) * vs, *met_here = met + i * R * R, *gmet_here = gmet + i * R * R;
        for (int64_t r = 0; r < R; ++r)
            for (int64_t c = 0; c < vp; c += W) store(inputs + r * vs + c, load(value + c) * load(v_weight + r * vs + c));
        for (int64_t r = 0; r < R; ++r)
            for (int64_t s = 0; s < R; ++s) {
                met_here[r * R + s] = dot(q + (i * R + r) * ks, k + ((i + 1) * R + s) * ks, keys);
                add_row(inputs + s * vs, now[i + 1] * met_here[r * R + s] + (r == s ? *a.D.f(head) : 0), vp, out + (i * R + r) * vs);
            }
        if (a.z) {
            load_row(a.z.at(b, t, head), a.z.type, a.width, z);
            load_row(g.gy.at(b, t, head), g.gy.type, a.width, gy);
            for (int64_t c = 0; c < vp; c += W) {
                vf gz = splat(0);
                for (int64_t e = c; e < R * vs; e += vs) {
                    const vf read = load(out + i * R * vs + e), gates = load(z + c) * load(z_weight + e), open = sigmoid(gates);
                    const vf through = load(gy + c) * load(y_weight + e), silu = gates * open;
                    const vf ggate = through * read * open * (1.0f + gates * (1.0f - open));
                    store(go + i * R * vs + e, through * silu);
                    store(gy_weight + e, load(gy_weight + e) + load(gy + c) * read * silu);
                    store(gz_weight + e, load(gz_weight + e) + ggate * load(z + c));
                    gz += ggate * load(z_weight + e);
                }
                store(some + c, gz);
            }
            store_row(g.gz.at(b, t, head), kFloat, a.width, some);
        } else {
            for (int64_t r = 0; r < R; ++r) load_row(g.gy.at(b, t, r, head), g.gy.type, a.width, go + (i * R + r) * vs);
        }
        for (int64_t s = 0; s < R; ++s) {
            zero(some, vs);  // the gradient of one input
            for (int64_t r = 0; r < R; ++r) {
                const float* from = go + (i * R + r) * vs;
                const float gradient = dot(from, inputs + s * vs, vp);
                gmet_here[r * R + s] = gradient;
                gnow[i + 1] += gradient * met_here[r * R + s];
                if (r == s) gD += gradient;
                add_row(from, now[i + 1] * met_here[r * R + s] + (r == s ? *a.D.f(head) : 0), vp, some);
            }
            for (int64_t c = 0; c < vp; c += W) {
                const vf gradient = load(some + c);
                store(gvalue + c, load(gvalue + c) + gradient * load(v_weight + s * vs + c));
                store(gv_weight + s * vs + c, load(gv_weight + s * vs + c) + gradient * load(value + c));
            }
        }
    }
}

// The last position's own writes are in the last state.
void Tile::last_write(int64_t n) {
    float* input = some;
    for (int64_t r = 0; r < R; ++r) {
        float *gkey = gk + (n * R + r) * ks, *weight = gv_weight + r * vs;
        const float* key = k + (n * R + r) * ks;
        for (int64_t c = 0; c < vp; c += W) store(input + c, load(v + n * vs + c) * load(v_weight + r * vs + c));
        for (int64_t c = 0; c < keys; ++c) gkey[c] += now[n] * dot(H + c * vs, input, vp);
        for (int64_t c = 0; c < vp; c += W) {
            vf written = splat(0);
            for (int64_t i = 0; i < keys; ++i) written += load(H + i * vs + c) * key[i];
            gnow[n] += sum(written * load(input + c));
            store(gv + n * vs + c, load(gv + n * vs + c) + written * load(v_weight + r * vs + c) * now[n]);
            store(weight + c, load(weight + c) + written * load(v + n * vs + c) * now[n]);
        }
    }
}

// gu, gq, gk and the decays' gradients by way of the states; H becomes the gradient of the state before. scaled: what scaling the state behind
// the block would change.
void Tile::products(const Block& o, const float* before, double scaled) {
    const int64_t rows = o.count * R, columns = ceil_to(rows, W);
    for (int64_t i = 0; i < rows; ++i) scale_row(go + i * vs, entry[i / R], vp, entering + i * vs);
    zero(ut, vp * kLine);
    transpose(u, rows, vp, vs, ut, kLine);
    zero(gP, rows * kLine);
    multiply(Shape::out_lower, rows, columns, vp, go, vs, 1, ut, kLine, gP, kLine, R);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; j += W) store(gP + i * kLine + j, load(gP + i * kLine + j) * load(within + i / R * kLine + j));

    zero(gu, rows * vs);
    multiply(Shape::full, rows, vp, keys, k, ks, 1, H, vs, gu, vs);
    for (int64_t i = 0; i < rows; ++i) scale_row(gu + i * vs, left[i / R], vp, gu + i * vs);
    multiply(Shape::upper, rows, vp, rows, P, 1, kLine, go, vs, gu, vs, R);

    zero(gk, rows * ks);
    transpose(H, keys, vp, vs, turned, ks);
    multiply(Shape::full, rows, keys, a.width, late, vs, 1, turned, ks, gk, ks);
    multiply(Shape::upper, rows, keys, rows, gP, 1, kLine, q, ks, gk, ks, R);

    zero(gq, rows * ks);
    if (before) {
        transpose(before, keys, vp, vs, turned, ks);
        multiply(Shape::full, rows, keys, a.width, entering, vs, 1, turned, ks, gq, ks);
    }
    multiply(Shape::lower, rows, keys, rows, gP, kLine, 1, k, ks, gq, ks, R);

    for (int64_t i = o.count - 1; i >= 0; --i) {
        for (int64_t r = i * R; r < (i + 1) * R; ++r) scaled += dot(q + r * ks, gq + r * ks, keys);
        gdecay[i] = static_cast<float>(scaled);
        for (int64_t r = i * R; r < (i + 1) * R; ++r) scaled -= dot(k + r * ks, gk + r * ks, keys);
    }
    if (!before) return;
    scale_row(H, entry[o.count - 1], size, H);
    multiply(Shape::full, keys, vp, rows, q, 1, ks, entering, vs, H, vs);
}

// From the gradient of a rotated row to that of the row before it, and of the angles.
void Tile::turn_back(const float* gradient, const float* rotated, float* gbias, float* out) const {
    for (int64_t i = 0; i < half; i += W) {
        const vf one = load(gradient + i), two = load(gradient + half + i), s = load(sin + i), c = load(cos + i);
        const vf first = one * c + two * s, second = two * c - one * s;
        store(gphase + i, load(gphase + i) + two * load(rotated + i) - one * load(rotated + half + i));
        store(gbias + i, load(gbias + i) + first);
        store(gbias + half + i, load(gbias + half + i) + second);
        store(out + i, first);
        store(out + half + i, second);
    }
}

// Position by position: own writes, rotations, values, steps.
void Tile::steps(const Block& o) {
    for (int64_t i = o.count - 1; i >= 0; --i) {
        const int64_t t = at[o.first + i];
        const float* value = v + i * vs;
        float *gvalue = gv + i * vs, ggiven = 0;
        for (int64_t r = 0; r < R; ++r) {
            const float *from = gu + (i * R + r) * vs, *weight = v_weight + r * vs;
            vf all_channels = splat(0);
            for (int64_t c = 0; c < vp; c += W) {
                const vf gradient = load(from + c);
                all_channels += gradient * load(weight + c) * load(value + c);
                store(gvalue + c, load(gvalue + c) + gradient * load(weight + c) * given[i]);
                store(gv_weight + r * vs + c, load(gv_weight + r * vs + c) + gradient * load(value + c) * given[i]);
            }
            ggiven += sum(all_channels);
        }
        gnow[i] += ggiven;
        at_row(i + 1);
        for (int64_t r = 0; r < R; ++r) {
            float *gquery = gq + (i * R + r) * ks, *gkey = gk + ((i + 1) * R + r) * ks;
            const float *query = q + (i * R + r) * ks, *key = k + ((i + 1) * R + r) * ks;
            for (int64_t s = 0; s < R; ++s) {
                add_row(k + ((i + 1) * R + s) * ks, now[i + 1] * gmet[(i * R + r) * R + s], keys, gquery);
                add_row(q + (i * R + s) * ks, now[i + 1] * gmet[(i * R + s) * R + r], keys, gkey);
            }
            turn_back(gquery, query, gbias_q + r * ks, raw);
            store_key(raw, g.gq.at(b, t, r, head));
            turn_back(gkey, key, gbias_k + r * ks, raw);
            store_key(raw, g.gk.at(b, t, r, head));
        }
        float gdelta = (1 - mix[i]) * ggiven + mix[i] * gnow[i + 1];
        const float* speed = a.speed.f(b, t);
        for (int64_t j = 0; j < turning; ++j) {
            gdelta += speed[j] * gphase[j];
            g.gspeed.f(b, t, head)[j] = delta[i] * gphase[j];
        }
        g.gdelta.f(b, t)[head] = gdelta;
        g.gmix.f(b, t)[head] = delta[i] * (gnow[i + 1] - ggiven);
        g.glog_decay.f(b, t)[head] = gdecay[i];
        store_row(g.gv.at(b, t, head), kFloat, a.width, gv + (i + 1) * vs);
    }
}

// What scaling this state would change, of which H is the gradient.
double Tile::met_by(const float* state) const {
    double total = 0;
    for (int64_t c = 0; c < keys; ++c) total += dot(state + c * vs, H + c * vs, vp);
    return total;
}

// A block, with what scaling the state behind it would change; gives that of the state before it. What the position before the block gets
// is left in the first place of gk, gv and gnow.
double Tile::backward(const Block& o, const float* record, double scaled, bool last) {
    const float* before = o.fresh ? nullptr : record;
    memcpy(gk + o.count * R * ks, gk, static_cast<size_t>(R * ks * 4));
    memcpy(gv + o.count * vs, gv, static_cast<size_t>(vs * 4));
    gnow[o.count] = gnow[0];
    zero(gv, o.count * vs), zero(gnow, o.count);
    look(record);
    prepare(o, true);
    if (last) last_write(o.count);
    read_again(o, before);
    gate(o);
    products(o, before, scaled);
    steps(o);
    if (before) return met_by(before);
    zero(H, size), zero(gk, R * ks), zero(gv, vs), zero(gphase, half);
    gnow[0] = 0;
    return 0;
}

// Zeros at a position that does not exist.
void Tile::nothing(int64_t t) const {
    auto clear = [](float* to, int64_t numbers) { memset(to, 0, static_cast<size_t>(numbers * 4)); };
    for (int64_t r = 0; r < R; ++r) clear(g.gq.f(b, t, r, head), a.keys), clear(g.gk.f(b, t, r, head), a.keys);
    clear(g.gv.f(b, t, head), a.width);
    if (a.z) clear(g.gz.f(b, t, head), a.width);
    clear(g.gspeed.f(b, t, head), turning);
    g.gdelta.f(b, t)[head] = g.gmix.f(b, t)[head] = g.glog_decay.f(b, t)[head] = 0;
}

void Tile::run() {
    for (int64_t r = 0; r < R; ++r) {
        load_key(bytes_of(a.k_bias.f(head, r)), kFloat, bias_k + r * ks);
        load_key(bytes_of(a.q_bias.f(head, r)), kFloat, bias_q + r * ks);
    }
    zero(gbias_k, R * ks), zero(gbias_q, R * ks), zero(gphase, half);
    load_weight(a.v_weight, v_weight, gv_weight);
    load_weight(a.z_weight, z_weight, gz_weight);
    load_weight(a.y_weight, y_weight, gy_weight);
    find_blocks();
    const int64_t last = count > 0 ? (count - 1) / kKept * kKept : 0;  // where the last part begins
    load_state(a.ssm, S);
    forward(0, last, false);
    load_state(ends ? g.gssm_last : View{}, H);
    zero(gk, R * ks), zero(gv, vs);
    gnow[0] = 0;
    if (ends && g.gk_last)
        for (int64_t r = 0; r < R; ++r) load_key(g.gk_last.at(b, r, head), kFloat, gk + r * ks);
    if (ends && g.gv_last) load_row(g.gv_last.at(b, head), kFloat, a.width, gv);
    if (ends && g.gangle_last) load_row(g.gangle_last.at(b, head), kFloat, turning, gphase);
    double scaled = 0;
    for (int64_t part = last; count > 0 && part >= 0; part -= kKept) {
        if (part < last) {
            const float* from = begun + part / kKept * record(a);
            memcpy(S, from, static_cast<size_t>(size * 4));
            look(from);
        }
        const int64_t stop = least(count, part + kKept);
        forward(part, stop, true);
        if (part == last) scaled = met_by(S);
        for (int64_t i = stop - 1; i >= part; --i) scaled = backward(blocks[i], kept + i % kKept * record(a), scaled, i == count - 1);
    }
    for (int64_t t = 0; t < a.length; ++t)
        if (!a.line.exists(b, t)) nothing(t);
    store_state(H, g.gssm);
    for (int64_t r = 0; r < R; ++r) {
        store_key(gk + r * ks, g.glast_k.at(b, r, head));
        store_key(gbias_k + r * ks, g.gk_bias.at(b, head, r));
        store_key(gbias_q + r * ks, g.gq_bias.at(b, head, r));
    }
    memcpy(g.glast_v.f(b, head), gv, static_cast<size_t>(a.width * 4));
    memcpy(g.gangle.f(b, head), gphase, static_cast<size_t>(turning * 4));
    *(g.gD.f(b) + head) = gD;
    store_weight(gv_weight, vs, g.gv_weight);
    store_weight(gz_weight, vs, g.gz_weight);
    store_weight(gy_weight, vs, g.gy_weight);
}

void run(const void* context, int64_t index, char* scratch) {
    Tile tile(*static_cast<const Mamba3Grad*>(context), index, scratch);
    tile.run();
}

}  // namespace

void mamba3_backward(const Mamba3Grad& g) {
    const Mamba3& a = g.forward;
    parallel(a.threads, a.batch * a.heads, Tile::bytes(a), run, &g);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
