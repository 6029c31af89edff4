// Mamba-3: S <- e^g (S + g u k^T of the position before) + w u k^T of this one, R writes and R queries each, keys and queries turned by angles
// that add up. As in matrix_state.cpp the value channels are independent, and a slice of few vectors of them stays in the first-level cache
// while a block of positions goes by; but a position goes over it once with all its writes and queries, so that a load and a store of the
// slice serve 2 R multiply-adds. Keys and queries exist in scratch alone, built from the projections' rows and the angles. A position's own
// writes reach its queries through q^T k; into the slice they come with the next position, which knows the rest of their weight. The product
// of decays is kept beside the slice until it becomes small. Halves of a key take kp / 2 floats each, whole vectors; zeros fill them up.
#include "mamba3.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kRows = 8;                // writes a block, unless a position has more
constexpr float kSmall = 1.0f / (1 << 24);  // of the product of decays

// R pieces of rows, N vectors each.
template <int R, int N> struct Rows {
    Lanes<N> v;
    Rows<R - 1, N> rest;

    STATESCAN_INLINE void take(const float* p, int64_t stride) { v.take(p); rest.take(p + stride, stride); }
    STATESCAN_INLINE void put(float* p, int64_t stride) const { v.put(p); rest.put(p + stride, stride); }
    STATESCAN_INLINE void give(const float* k, int64_t kp, Lanes<N>& h) const { h.add(*k, v); rest.give(k + kp, kp, h); }
    STATESCAN_INLINE void meet(const float* q, int64_t kp, const Lanes<N>& h) { v.add(*q, h); rest.meet(q + kp, kp, h); }
};
template <int N> struct Rows<0, N> {
    STATESCAN_INLINE void take(const float*, int64_t) {}
    STATESCAN_INLINE void put(float*, int64_t) const {}
    STATESCAN_INLINE void give(const float*, int64_t, Lanes<N>&) const {}
    STATESCAN_INLINE void meet(const float*, int64_t, const Lanes<N>&) {}
};

// Writes u k^T into a slice (kp, N vectors), then reads it with the queries: y = S^T q.
template <int Writes, int Queries, int N>
void pass(int64_t kp, const float* k, const float* q, float* slice, const float* u, float* y, int64_t stride) {
    Rows<Writes, N> w;
    Rows<Queries, N> out;
    w.take(u, stride);
    for (int64_t c = 0; c < kp; ++c, slice += N * W) {
        Lanes<N> h;
        h.take(slice);
        w.give(k + c, kp, h);
        if (Writes) h.put(slice);
        out.meet(q + c, kp, h);
    }
    out.put(y, stride);
}

struct Step {
    const float *k, *q;  // (R, kp): keys of the position before, absent where there is none; queries, absent behind the last
    float *u, *y;        // (R, stride): what those keys write; what the queries read
    float scale;         // of the slice before anything else
};

template <int R, int N>
void run_slice(const Step* steps, int64_t count, int64_t rank, int64_t kp, float* slice, int64_t column, int64_t stride) {
    for (int64_t i = 0; i < count; ++i) {
        const Step& s = steps[i];
        if (s.scale != 1)
            for (int64_t c = 0; c < kp * N * W; c += W) store(slice + c, load(slice + c) * s.scale);
        float *u = s.u + column, *y = s.y + column;
        if (R > 0) {  // all at once
            if (s.k && s.q) pass<R, R, N>(kp, s.k, s.q, slice, u, y, stride);
            else if (s.k) pass<R, 0, N>(kp, s.k, s.k, slice, u, u, stride);
            else if (s.q) pass<0, R, N>(kp, s.q, s.q, slice, y, y, stride);
            continue;
        }
        for (int64_t r = 0; s.k && r < rank; r += 2) {
            if (r + 1 < rank) pass<2, 0, N>(kp, s.k + r * kp, s.k, slice, u + r * stride, u, stride);
            else pass<1, 0, N>(kp, s.k + r * kp, s.k, slice, u + r * stride, u, stride);
        }
        for (int64_t r = 0; s.q && r < rank; r += 2) {
            if (r + 1 < rank) pass<0, 2, N>(kp, s.q, s.q + r * kp, slice, y, y + r * stride, stride);
            else pass<0, 1, N>(kp, s.q, s.q + r * kp, slice, y, y + r * stride, stride);
        }
    }
}

// Vectors a slice: its rows of writes and outputs stay in registers.
int64_t wide(int64_t rank) { return rank == 1 ? 4 : rank == 2 || W == 16 || rank > 4 ? 2 : 1; }

using SliceFn = void (*)(const Step*, int64_t, int64_t, int64_t, float*, int64_t, int64_t);
SliceFn slice_function(int64_t rank, bool whole) {
    constexpr int kTwo = W == 16 ? 2 : 1;
    switch (rank) {
        case 1: return whole ? run_slice<1, 4> : run_slice<1, 1>;
        case 2: return whole ? run_slice<2, 2> : run_slice<2, 1>;
        case 3: return whole ? run_slice<3, kTwo> : run_slice<3, 1>;
        case 4: return whole ? run_slice<4, kTwo> : run_slice<4, 1>;
        default: return whole ? run_slice<0, 2> : run_slice<0, 1>;
    }
}

// Tiles of a head: one, unless threads would stand idle. They share out its columns; no column's bits depend on that.
int64_t parts(const Mamba3& a) {
    const int64_t heads = a.batch * a.heads, slices = ceil_to(a.width, wide(a.rank) * W) / (wide(a.rank) * W);
    return least(slices, (a.threads + heads - 1) / heads);
}

int64_t block(const Mamba3& a) { return a.rank < kRows ? kRows / a.rank : 1; }

struct Tile : Turns {
    int64_t part, first, width, stride, columns;  // columns of the value: from, how many, whole vectors of them; of a slice
    int64_t kp;                                   // floats of a key
    float *k, *q, *u, *y, *inputs, *met, *value, *state, *bias_k, *bias_q;
    const float *v_weight, *z_weight, *y_weight;  // (R, stride); null stands for ones
    float kept = 1;  // the product of decays that the slices lack

    static int64_t per_part(const Mamba3& a) {
        const int64_t one = wide(a.rank) * W, slices = ceil_to(a.width, one) / one, n = parts(a);
        return (slices + n - 1) / n * one;
    }
    static int64_t bytes(const Mamba3& a) {
        const int64_t kp = 2 * ceil_to(a.keys / 2, W), rows = (block(a) + 1) * a.rank, columns = per_part(a);
        return 4 * ((2 * rows + 2 * a.rank + 4) * kp + (2 * rows + 4 * a.rank + 1 + kp) * columns + a.rank * a.rank) + 20 * 64;
    }
    Tile(const Mamba3& a, int64_t index, char* scratch) : Turns(a, index / parts(a)) {
        part = index % parts(a);
        columns = wide(a.rank) * W;
        first = part * per_part(a);
        width = least(a.width - first, per_part(a));
        if (width < 0) width = 0;
        stride = ceil_to(width, W);
        kp = 2 * half;
        const int64_t rows = (block(a) + 1) * a.rank;
        Arena arena{scratch};
        k = arena.floats(rows * kp), q = arena.floats(rows * kp);
        bias_k = arena.floats(a.rank * kp), bias_q = arena.floats(a.rank * kp);
        u = arena.floats(rows * stride), y = arena.floats(rows * stride);
        inputs = arena.floats(a.rank * stride), value = arena.floats(stride), met = arena.floats(a.rank * a.rank);
        v_weight = weights(a.v_weight, arena), z_weight = weights(a.z_weight, arena), y_weight = weights(a.y_weight, arena);
        state = arena.floats(kp * stride);
        sin = arena.floats(half), cos = arena.floats(half), raw = arena.floats(kp);
        phase = reinterpret_cast<double*>(arena.floats(2 * half));
    }

    const float* weights(const View& from, Arena& arena) const {
        if (!from) return nullptr;
        float* to = arena.floats(a.rank * stride);
        for (int64_t r = 0; r < a.rank && width > 0; ++r)
            load_row(reinterpret_cast<const char*>(from.f(head, r) + first), kFloat, width, to + r * stride);
        return to;
    }
    // What the writes of the value bring, `by` times, (R, stride).
    void write(float by, float* out) const {
        for (int64_t r = 0; r < a.rank; ++r)
            for (int64_t i = 0; i < stride; i += W) {
                const vf v = load(value + i) * by;
                store(out + r * stride + i, v_weight ? v * load(v_weight + r * stride + i) : v);
            }
    }
    // Slices lie one after the other: f(column, vectors all there, where).
    template <typename F> void each_slice(F f) const {
        for (int64_t column = 0; column < stride;) {
            const bool whole = column + columns <= stride;
            f(column, whole, state + kp * column);
            column += whole ? columns : W;
        }
    }
    void load_state() const {
        zero(state, kp * stride);
        each_slice([&](int64_t column, bool whole, float* slice) {
            const int64_t size = whole ? columns : W;
            for (int64_t p = 0; p < least(size, width - column); ++p) {
                const float* row = a.ssm.f(b, head, first + column + p);
                for (int64_t n = 0; n < a.keys; ++n) slice[key_row(n) * size + p] = row[n];
            }
        });
    }
    void store_state() const {
        each_slice([&](int64_t column, bool whole, const float* slice) {
            const int64_t size = whole ? columns : W;
            for (int64_t p = 0; p < least(size, width - column); ++p) {
                float* row = a.ssm_last.f(b, head, first + column + p);
                for (int64_t n = 0; n < a.keys; ++n) row[n] = slice[key_row(n) * size + p] * kept;
            }
        });
    }
    void clear() {
        zero(state, kp * stride);
        for (int64_t i = 0; i < half; ++i) phase[i] = 0;
        kept = 1;
    }
    // met (R queries, R keys): products of queries and keys, four keys at a time, so that one sum need not wait for the one before.
    void meet(const float* keys, const float* queries, float by) const {
        for (int64_t r = 0; r < a.rank; ++r) {
            const float* row = queries + r * kp;
            int64_t s = 0;
            for (; s + 4 <= a.rank; s += 4) {
                const float* key = keys + s * kp;
                vf one{}, two{}, three{}, four{};
                for (int64_t c = 0; c < kp; c += W) {
                    const vf x = load(row + c);
                    one += x * load(key + c), two += x * load(key + kp + c), three += x * load(key + 2 * kp + c), four += x * load(key + 3 * kp + c);
                }
                float* to = met + r * a.rank + s;
                to[0] = sum(one) * by, to[1] = sum(two) * by, to[2] = sum(three) * by, to[3] = sum(four) * by;
            }
            for (; s < a.rank; ++s) {
                const float* key = keys + s * kp;
                vf one{}, two{};
                for (int64_t c = 0; c < half; c += W) one += load(row + c) * load(key + c), two += load(row + half + c) * load(key + half + c);
                met[r * a.rank + s] = sum(one + two) * by;
            }
        }
    }
    // The output of a position from what its queries read in the state, (R, stride), and from its own writes.
    void answer(int64_t t, const float* keys, const float* queries, float* read, float now, float scale) const {
        const int64_t R = a.rank;
        meet(keys, queries, now);
        for (int64_t r = 0; r < R; ++r) met[r * R + r] += *a.D.f(head);
        load_row(a.v.at(b, t, head) + first * a.v.bytes(), a.v.type, width, value);
        write(1, inputs);
        if (a.z) load_row(a.z.at(b, t, head) + first * a.z.bytes(), a.z.type, width, value);
        for (int64_t i = 0; i < stride; i += W) {
            vf total{};
            for (int64_t r = 0; r < R; ++r) {
                vf o = load(read + r * stride + i) * scale;
                for (int64_t s = 0; s < R; ++s) o += load(inputs + s * stride + i) * met[r * R + s];
                if (!a.z) {
                    store(read + r * stride + i, o);
                    continue;
                }
                const vf gate = z_weight ? load(value + i) * load(z_weight + r * stride + i) : load(value + i);
                o *= gate * sigmoid(gate);
                total += y_weight ? o * load(y_weight + r * stride + i) : o;
            }
            if (a.z) store(value + i, total);
        }
        if (a.z) store_row(a.y.at(b, t, head) + first * a.y.bytes(), a.y.type, width, value);
        for (int64_t r = 0; !a.z && r < R; ++r)
            store_row(a.y.at(b, t, r, head) + first * a.y.bytes(), a.y.type, width, read + r * stride);
    }
};

void run(const void* context, int64_t index, char* scratch) {
    const Mamba3& a = *static_cast<const Mamba3*>(context);
    Tile x(a, index, scratch);
    if (x.width == 0) return;
    const int64_t b = x.b, head = x.head, R = a.rank, kp = x.kp, stride = x.stride, some = block(a);
    for (int64_t r = 0; r < R; ++r) {
        x.load_key(reinterpret_cast<const char*>(a.k_bias.f(head, r)), kFloat, x.bias_k + r * kp);
        x.load_key(reinterpret_cast<const char*>(a.q_bias.f(head, r)), kFloat, x.bias_q + r * kp);
        x.load_key(reinterpret_cast<const char*>(a.last_k.f(b, r, head)), kFloat, x.k + r * kp);
    }
    x.begin();
    x.load_state();
    // Row 0 of k holds the keys of the existing position before a block.
    const SliceFn whole = slice_function(R, true), rest = slice_function(R, false);
    bool any = true;    // whether there is a position before
    float weight = 0;   // what it has given to its own end: lambda delta; the incoming state holds it already
    const char* value = reinterpret_cast<const char*>(a.last_v.f(b, head) + x.first);
    int32_t value_type = kFloat;
    Step steps[kRows];
    int64_t at[kRows];
    float now[kRows], scale[kRows];
    int64_t t = 0, near = 0;
    while (t < a.length) {
        int64_t count = 0;
        for (; t < a.length && count < some; ++t) {
            if (t == near) {
                near = least(a.length, t + kTouch);
                touch_rows(a.v, b, t, near, head, a.width);
                touch_rows(a.z, b, t, near, head, a.width);
            }
            if (a.line.resets(b, t)) {
                if (count > 0) break;  // the slices have not gone by these positions yet
                x.clear();
                any = false, weight = 0;
            }
            if (!a.line.exists(b, t)) continue;
            const float delta = *(a.delta.f(b, t) + head), end = *(a.mix.f(b, t) + head) * delta;
            x.advance(t, delta);
            float *keys = x.k + (count + 1) * R * kp, *queries = x.q + count * R * kp;
            for (int64_t r = 0; r < R; ++r) {
                x.turn(a.k.at(b, t, r, x.group), a.k.type, x.bias_k + r * kp, keys + r * kp);
                x.turn(a.q.at(b, t, r, x.group), a.q.type, x.bias_q + r * kp, queries + r * kp);
            }
            Step& s = steps[count];
            s = {any ? x.k + count * R * kp : nullptr, queries, x.u + count * R * stride, x.y + count * R * stride, 1};
            if (x.kept < kSmall) {
                s.scale = x.kept;
                x.kept = 1;
            }
            if (any) {
                load_row(value, value_type, x.width, x.value);
                x.write((weight + delta - end) / x.kept, s.u);
            }
            x.kept *= exp(splat(*(a.log_decay.f(b, t) + head)))[0];
            at[count] = t, now[count] = end, scale[count] = x.kept;
            any = true, weight = end;
            value = a.v.at(b, t, head) + x.first * a.v.bytes(), value_type = a.v.type;
            ++count;
        }
        if (count == 0) continue;
        x.each_slice([&](int64_t column, bool all_there, float* slice) {
            (all_there ? whole : rest)(steps, count, R, kp, slice, column, stride);
        });
        for (int64_t i = 0; i < count; ++i) x.answer(at[i], x.k + (i + 1) * R * kp, steps[i].q, steps[i].y, now[i], scale[i]);
        memcpy(x.k, x.k + count * R * kp, static_cast<size_t>(R * kp * 4));
    }
    if (!any) zero(x.k, R * kp);
    if (any && weight != 0) {
        Step s{x.k, nullptr, x.u, nullptr, 1};
        if (x.kept < kSmall) {
            s.scale = x.kept;
            x.kept = 1;
        }
        load_row(value, value_type, x.width, x.value);
        x.write(weight / x.kept, s.u);
        x.each_slice([&](int64_t column, bool all_there, float* slice) { (all_there ? whole : rest)(&s, 1, R, kp, slice, column, stride); });
    }
    x.store_state();
    float* last_v = a.v_last.f(b, head) + x.first;
    if (any) {
        load_row(value, value_type, x.width, x.value);
        memcpy(last_v, x.value, static_cast<size_t>(x.width * 4));
    } else {
        memset(last_v, 0, static_cast<size_t>(x.width * 4));
    }
    if (x.part == 0) {
        for (int64_t i = 0; i < x.turning; ++i) a.angle_last.f(b, head)[i] = static_cast<float>(x.phase[i]);
        for (int64_t r = 0; r < R; ++r) x.store_key(x.k + r * kp, a.k_last.at(b, r, head));
    }
    for (int64_t i = 0; i < a.length; ++i) {
        if (a.line.exists(b, i)) continue;
        const size_t size = static_cast<size_t>(x.width * a.y.bytes());
        if (a.z) memset(a.y.at(b, i, head) + x.first * a.y.bytes(), 0, size);
        for (int64_t r = 0; !a.z && r < R; ++r) memset(a.y.at(b, i, r, head) + x.first * a.y.bytes(), 0, size);
    }
}

}  // namespace

void mamba3(const Mamba3& a) { parallel(a.threads, a.batch * a.heads * parts(a), Tile::bytes(a), run, &a); }

}  // namespace STATESCAN_ISA
}  // namespace statescan
