// Linear attention and the delta rule as the recurrence itself. The value channels of a head are independent of each other: a slice of a few
// vectors of them stays in the first-level cache while time goes by, and every step goes over it once, with loads and stores shared by all
// that a step does: decay, write, the query, and what the next write reads. One decay a head costs nothing: the slice is kept without it,
// and keys, queries and reads carry the product of decays instead until that becomes small.
#include "matrix_state.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kWide = W == 16 ? 4 : 3;  // vectors a slice: writes, outputs, reads and a row of the slice stay in registers
constexpr float kSmall = 1.0f / (1 << 24);  // of the product of decays

struct Step {
    const float *decay, *k0, *k1, *q, *read;  // (K,); may be absent: all but k0
    int64_t row, last, next;                  // the rows of both writes (and of the query), and whose read is done ahead
    float met0, met1;                         // q^T k0 and q^T k1
};

using StepFn = void (*)(int64_t keys, const Step& s, float* slice, const float* u0, const float* u1, float* y, float* next);

template <int N, bool kDecay, bool kTwo, bool kQuery, bool kRead>
void step(int64_t keys, const Step& s, float* slice, const float* u0, const float* u1, float* y, float* next) {
    const float *decay = s.decay, *k0 = s.k0, *k1 = s.k1, *q = s.q, *read = s.read;
    Lanes<N> w0, w1, out{}, seen{};
    w0.take(u0);
    if (kTwo) w1.take(u1);
    // A query sees what is written now through q^T k, not through the state: where q^T k is small by cancelling, every channel of the value
    // would cancel by itself, and what divides the output by its size later would see nothing but rounding.
    if (kQuery) out.add(s.met0, w0);
    if (kQuery && kTwo) out.add(s.met1, w1);
    for (int64_t c = 0; c < keys; ++c, slice += N * W) {
        Lanes<N> h;
        h.take(slice);
        if (kDecay) h.scale(decay[c]);
        if (kQuery) out.add(q[c], h);
        h.add(k0[c], w0);
        if (kTwo) h.add(k1[c], w1);
        h.put(slice);
        if (kRead) seen.add(read[c], h);
    }
    if (kQuery) out.put(y);
    if (kRead) seen.subtract_from(next);
}

template <int N>
StepFn choose(const Step& s) {
    static constexpr StepFn table[] = {
        step<N, false, false, false, false>, step<N, false, false, false, true>, step<N, false, false, true, false>,
        step<N, false, false, true, true>,   step<N, false, true, false, false>, step<N, false, true, false, true>,
        step<N, false, true, true, false>,   step<N, false, true, true, true>,   step<N, true, false, false, false>,
        step<N, true, false, false, true>,   step<N, true, false, true, false>,  step<N, true, false, true, true>,
        step<N, true, true, false, false>,   step<N, true, true, false, true>,   step<N, true, true, true, false>,
        step<N, true, true, true, true>};
    return table[(s.decay ? 8 : 0) + (s.k1 ? 4 : 0) + (s.q ? 2 : 0) + (s.read ? 1 : 0)];
}

template <int N>
void read_ahead(int64_t keys, const float* read, const float* slice, float* next) {
    Lanes<N> seen{}, h;
    for (int64_t c = 0; c < keys; ++c) {
        h.take(slice + c * N * W);
        seen.add(read[c], h);
    }
    seen.subtract_from(next);
}

// One block of rows through one slice. u: what the rows write, (rows, stride), until a read has been taken away only the value; read: of
// the first row, absent if it reads nothing.
template <int N>
void run_slice(int64_t keys, const Step* steps, int64_t count, const float* read, float* slice, float* u, float* y, int64_t stride) {
    if (read) read_ahead<N>(keys, read, slice, u);
    for (int64_t i = 0; i < count; ++i) {
        const Step& s = steps[i];
        choose<N>(s)(keys, s, slice, u + s.row * stride, u + s.last * stride, y + s.last * stride, u + s.next * stride);
    }
}

int64_t slices(const MatrixState& a) { return ((a.width + W - 1) / W + kWide - 1) / kWide; }

// Tiles of a head: one, unless threads would stand idle. Slices do not depend on it.
int64_t parts(const MatrixState& a) {
    const int64_t heads = a.batch * a.heads;
    return least(slices(a), (a.threads + heads - 1) / heads);
}

int64_t part_columns(const MatrixState& a) {
    const int64_t per_part = (slices(a) + parts(a) - 1) / parts(a);
    return least(per_part * kWide * W, ceil_to(a.width, W) + W);
}

struct Tile {
    const MatrixState& a;
    int64_t b, head, first, width, stride;  // columns of the value; floats of a row of them
    int64_t from, to, vectors;              // slices; vectors of a whole value
    int64_t kp;
    KeySide s;
    float *u, *y, *state;

    static int64_t bytes(const MatrixState& a) {
        const int64_t kp = ceil_to(a.keys, W), columns = part_columns(a);
        return 4 * (4 * kRows * kp + 2 * kRows * columns + a.keys * columns) + 64 * 8;
    }
    Tile(const MatrixState& a, int64_t index, char* scratch) : a(a), kp(ceil_to(a.keys, W)) {
        const int64_t part = index % parts(a), n = slices(a);
        b = index / parts(a) / a.heads;
        head = index / parts(a) % a.heads;
        vectors = (a.width + W - 1) / W;
        from = part * n / parts(a);
        to = (part + 1) * n / parts(a);
        first = vector(from) * W;
        stride = vector(to) * W - first;
        width = least(a.width - first, stride);
        Arena arena{scratch};
        s.kp = kp;
        s.q = arena.floats(kRows * kp); s.k = arena.floats(kRows * kp); s.r = arena.floats(kRows * kp); s.d = arena.floats(kRows * kp);
        u = arena.floats(kRows * stride); y = arena.floats(kRows * stride);
        state = arena.floats(a.keys * stride);
    }
    int64_t vector(int64_t slice) const { return slice * vectors / slices(a); }

    // A state of these columns, from and to rows of any distance; slices lie one after the other.
    template <typename F> void each_slice(F f) const {
        for (int64_t i = from; i < to; ++i) {
            const int64_t column = vector(i) * W - first, columns = (vector(i + 1) - vector(i)) * W;
            f(column, columns, state + a.keys * column);
        }
    }
    void load_state() const {
        each_slice([&](int64_t column, int64_t columns, float* slice) {
            for (int64_t c = 0; c < a.keys; ++c)
                load_row(a.state.at(b, head, c) + 4 * (first + column), kFloat, least(columns, width - column), slice + c * columns);
        });
    }
    void store_state(float kept, float* to_rows, int64_t distance) const {
        each_slice([&](int64_t column, int64_t columns, const float* slice) {
            const int64_t count = least(columns, width - column);
            for (int64_t c = 0; c < a.keys; ++c) {
                float* to_row = to_rows + c * distance + first + column;
                int64_t i = 0;
                for (; i + W <= count; i += W) store(to_row + i, load(slice + c * columns + i) * kept);
                for (; i < count; ++i) to_row[i] = slice[c * columns + i] * kept;
            }
        });
    }
    // Rows to steps. `kept` is the product of decays that the slices lack.
    int64_t plan(Row* rows, int64_t count, float& kept, Step* steps) {
        for (int64_t i = 0; i < count; ++i) {
            const Row& row = rows[i];
            float *k = s.k + i * kp, *d = s.d + i * kp;
            if (!a.by_channel && a.decay) {
                if (row.reads) scale(s.r + i * kp, kept);
                kept *= row.decay;
                const bool small = kept < kSmall;
                if (small) {
                    for (int64_t c = 0; c < kp; c += W) store(d + c, splat(kept));
                    kept = 1;
                }
                scale(k, 1 / kept);
                if (row.query >= 0) scale(s.q + row.query * kp, kept);
                rows[i].decays = small;
            }
        }
        int64_t n = 0;
        for (int64_t i = 0; i < count; ++i) {
            Step& step = steps[n++];
            step = {rows[i].decays ? s.d + i * kp : nullptr, s.k + i * kp, nullptr, nullptr, nullptr, i, i, i, 0, 0};
            if (i + 1 < count && rows[i + 1].write > 0 && !rows[i + 1].reads) step.k1 = s.k + ++i * kp;
            step.last = i;
            if (rows[i].query >= 0) {
                step.q = s.q + rows[i].query * kp;
                step.met0 = dot(step.q, step.k0);
                if (step.k1) step.met1 = dot(step.q, step.k1);
            }
            if (i + 1 < count && rows[i + 1].reads) {
                step.read = s.r + (i + 1) * kp;
                step.next = i + 1;
            }
        }
        return n;
    }
    float dot(const float* one, const float* other) const {
        vf total = splat(0);
        for (int64_t c = 0; c < kp; c += W) total += load(one + c) * load(other + c);
        return sum(total);
    }
    void scale(float* row, float by) const {
        for (int64_t c = 0; c < kp; c += W) store(row + c, load(row + c) * by);
    }
};

void run(const void* context, int64_t index, char* scratch) {
    const MatrixState& a = *static_cast<const MatrixState*>(context);
    Tile tile(a, index, scratch);
    const int64_t b = tile.b, head = tile.head;
    float kept = 1;
    tile.load_state();
    for (int64_t chunk = 0; chunk * kChunk < a.length; ++chunk) {
        if (a.chunks) tile.store_state(kept, a.chunks.f(b, chunk, head), a.chunks.stride[3]);
        RowWalk walk(a, b, chunk);
        Row rows[kRows];
        Step steps[kRows];
        bool fresh;
        for (;;) {
            const int64_t count = walk.next(rows, fresh);
            if (fresh) {
                zero(tile.state, a.keys * tile.stride);
                kept = 1;
            }
            if (count == 0) break;
            load_keys(a, b, head, rows, count, tile.s);
            for (int64_t i = 0; i < count; ++i) load_value(a, b, head, rows[i], tile.first, tile.width, tile.u + i * tile.stride);
            const int64_t planned = tile.plan(rows, count, kept, steps);
            const float* read = rows[0].reads && !fresh ? tile.s.r : nullptr;
            tile.each_slice([&](int64_t column, int64_t columns, float* slice) {
                float *u = tile.u + column, *y = tile.y + column;
                switch (columns / W) {
                    case 1: run_slice<1>(a.keys, steps, planned, read, slice, u, y, tile.stride); break;
                    case 2: run_slice<2>(a.keys, steps, planned, read, slice, u, y, tile.stride); break;
                    case 3: run_slice<3>(a.keys, steps, planned, read, slice, u, y, tile.stride); break;
                    default: run_slice<kWide>(a.keys, steps, planned, read, slice, u, y, tile.stride);
                }
            });
            touch_block(a.y, b, head, rows, count, a.width);
            for (int64_t i = 0; i < count; ++i)
                if (rows[i].query >= 0)
                    store_row(a.y.at(b, rows[i].t, head) + tile.first * a.y.bytes(), a.y.type, tile.width, tile.y + i * tile.stride);
        }
        for (int64_t t = chunk * kChunk; t < least(a.length, (chunk + 1) * kChunk); ++t)
            if (!a.line.exists(b, t)) memset(a.y.at(b, t, head) + tile.first * a.y.bytes(), 0, static_cast<size_t>(tile.width * a.y.bytes()));
    }
    tile.store_state(kept, a.last.f(b, head), a.last.stride[2]);
}

}  // namespace

void matrix_state(const MatrixState& a) { parallel(a.threads, a.batch * a.heads * parts(a), Tile::bytes(a), run, &a); }

}  // namespace STATESCAN_ISA
}  // namespace statescan
