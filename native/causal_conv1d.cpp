// Depthwise causal convolution over K taps with a state, resets and positions that do not exist.
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t E = 2 * kTile;  // channels a tile
constexpr int64_t T = kChunk;     // positions a tile of the forward
constexpr int32_t kNone = -1, kState = -2;

// Row t of `source` holds the K rows that the taps meet at t, oldest first: an index into x, kNone, or kState - i for row i of the
// state. At a position that does not exist all are kNone. Row L holds the K - 1 rows of the outgoing state.
// Only the presence of a timeline makes the table necessary.
void find_sources(const CausalConv& a) {
    const int64_t K = a.taps;
    int32_t* row = reinterpret_cast<int32_t*>(a.source.data);
    for (int64_t b = 0; b < a.batch; ++b) {
        int32_t* before = row + (a.length) * K;  // the last row serves as the sliding window
        for (int64_t k = 0; k < K - 1; ++k) before[k] = static_cast<int32_t>(kState - k);
        before[K - 1] = kNone;
        for (int64_t t = 0; t < a.length; ++t, row += K) {
            if (a.line.resets(b, t))
                for (int64_t k = 0; k < K - 1; ++k) before[k] = kNone;
            if (!a.line.exists(b, t)) {
                for (int64_t k = 0; k < K; ++k) row[k] = kNone;
                continue;
            }
            for (int64_t k = 0; k < K - 1; ++k) row[k] = before[k];
            row[K - 1] = static_cast<int32_t>(t);
            for (int64_t k = 0; k < K - 1; ++k) before[k] = row[k + 1];
        }
        row += K;
    }
}

// Where the row for tap k at position t lies, from channel e on; null for zeros (readers put a row of zeros in its place).
STATESCAN_INLINE const char* source(const CausalConv& a, int64_t b, int64_t t, int64_t k, int64_t e) {
    int64_t from;
    if (a.source) {
        from = reinterpret_cast<const int32_t*>(a.source.data)[(b * (a.length + 1) + t) * a.taps + k];
    } else {
        from = t - (a.taps - 1) + k;
        if (from < 0) from = kState - (from + a.taps - 1);
    }
    if (from == kNone) return nullptr;
    return from >= 0 ? a.x.at(b, from, e) : a.state.at(b, kState - from, e);
}

// W numbers of a row; `whole` where all of them lie within its width.
template <int type, bool whole>
STATESCAN_INLINE vf read(const char* row, int64_t i, int64_t width) {
    constexpr int64_t size = type == kFloat ? 4 : 2;
    const char* p = row + i * size;
    char rest[W * size] = {};
    if (!whole) {
        memcpy(rest, p, static_cast<size_t>((width - i) * size));
        p = rest;
    }
    return type == kFloat ? load(reinterpret_cast<const float*>(p)) : from_bf16(p);
}

struct Tile {
    int64_t b, e, width, lanes, whole;  // whole: channels in whole vectors
    float *weight, *bias, *row, *none;  // (K, E), (E,), (E,), zeros
};

Tile tile_of(const CausalConv& a, int64_t b, int64_t index, Arena& arena) {
    Tile tile;
    tile.b = b;
    tile.e = index * E;
    tile.width = least(E, a.width - tile.e);
    tile.lanes = ceil_to(tile.width, W);
    tile.whole = tile.width / W * W;
    tile.weight = arena.floats(a.taps * E);
    tile.bias = arena.floats(E);
    tile.row = arena.floats(E);
    tile.none = arena.floats(E);
    zero(tile.none, E);
    zero(tile.weight, a.taps * E);
    zero(tile.bias, E);
    for (int64_t c = 0; c < tile.width; ++c)
        for (int64_t k = 0; k < a.taps; ++k) tile.weight[k * E + c] = *a.weight.f(tile.e + c, k);
    if (a.bias) load_row(a.bias.at(tile.e), kFloat, tile.width, tile.bias);
    return tile;
}

constexpr int64_t kMaxTaps = 16;

// The rows that the taps meet at t.
STATESCAN_INLINE void sources(const CausalConv& a, const Tile& tile, int64_t t, const char** rows) {
    for (int64_t k = 0; k < a.taps; ++k) {
        const char* from = source(a, tile.b, t, k, tile.e);
        rows[k] = from == nullptr ? reinterpret_cast<const char*>(tile.none) : from;
    }
}

// fixed is the number of taps where it is known to the compiler, else 0.
template <int type, int fixed, bool whole>
STATESCAN_INLINE vf convolve(const Tile& tile, const char* const* rows, int64_t taps, int64_t i) {
    vf y = load(tile.bias + i);
    for (int64_t k = 0; k < (fixed > 0 ? fixed : taps); ++k) y += load(tile.weight + k * E + i) * read<type, whole>(rows[k], i, tile.width);
    return y;
}

template <int type, int fixed, bool whole>
STATESCAN_INLINE void output(const CausalConv& a, const Tile& tile, const char* const* rows, int64_t i) {
    vf y = convolve<type, fixed, whole>(tile, rows, a.taps, i);
    if (a.silu) y = y * sigmoid(y);
    store(tile.row + i, y);
}

template <int type, int fixed>
void positions(const CausalConv& a, const Tile& tile, int64_t t0, int64_t t1) {
    const char* rows[kMaxTaps];
    for (int64_t t = t0; t < t1; ++t) {
        char* to = a.y.at(tile.b, t, tile.e);
        if ((t - t0) % kTouch == 0) touch_rows(a.x, tile.b, t, least(t1, t + kTouch), tile.e, tile.width);
        if (!a.line.exists(tile.b, t)) {
            memset(to, 0, static_cast<size_t>(tile.width * a.y.bytes()));
            continue;
        }
        sources(a, tile, t, rows);
        for (int64_t i = 0; i < tile.whole; i += W) output<type, fixed, true>(a, tile, rows, i);
        if (tile.whole < tile.width) output<type, fixed, false>(a, tile, rows, tile.whole);
        store_row(to, type, tile.width, tile.row);
    }
}

// The outgoing state: a copy of the rows that the next position would meet.
void last_rows(const CausalConv& a, const Tile& tile) {
    for (int64_t i = 0; i < a.taps - 1; ++i) {
        const char* from = source(a, tile.b, a.length, i, tile.e);
        char* to = a.last.at(tile.b, i, tile.e);
        const size_t bytes = static_cast<size_t>(tile.width * a.last.bytes());
        if (from == nullptr) memset(to, 0, bytes); else memcpy(to, from, bytes);
    }
}

int64_t tiles(const CausalConv& a) { return (a.width + E - 1) / E; }
int64_t blocks(const CausalConv& a) { return (a.length + T - 1) / T; }

// Batch rows a tile: in decoding, to turn the weights around costs more than the convolution.
int64_t together(const CausalConv& a) { return a.length == 1 ? 8 : 1; }

void run(const void* context, int64_t index, char* scratch) {
    const CausalConv& a = *static_cast<const CausalConv*>(context);
    Arena arena{scratch};
    const int64_t block = index / tiles(a) % blocks(a);  // neighbours in memory are neighbours in time
    const int64_t first = index / tiles(a) / blocks(a) * together(a);
    Tile tile = tile_of(a, first, index % tiles(a), arena);
    const int64_t t0 = block * T, t1 = least(a.length, t0 + T);
    for (; tile.b < least(a.batch, first + together(a)); ++tile.b) {
        if (a.taps == 4) {
            if (a.x.type == kFloat) positions<kFloat, 4>(a, tile, t0, t1); else positions<kBFloat16, 4>(a, tile, t0, t1);
        } else {
            if (a.x.type == kFloat) positions<kFloat, 0>(a, tile, t0, t1); else positions<kBFloat16, 0>(a, tile, t0, t1);
        }
        if (t1 == a.length) last_rows(a, tile);
    }
}

// -- backwards ---------------------------------------------------------------------------------------------------------------

// The gradients before the activation at the last K existing positions that were passed, nearest first; forgotten at a reset.
struct Later {
    float* rows;
    int64_t head, count, taps;

    float* push() {
        head = (head + taps - 1) % taps;
        count = least(count + 1, taps);
        return rows + head * E;
    }
    const float* at(int64_t j) const { return rows + (head + j) % taps * E; }
};

template <int type, int fixed, bool whole>
STATESCAN_INLINE void retreat(const CausalConvGrad& a, const Tile& tile, float* sums, const float* const* later, int64_t count,
                              const char* const* rows, const char* gy, const char* glast, float* g_row, int64_t i) {
    const int64_t K = fixed > 0 ? fixed : a.forward.taps;
    vf g = read<type, whole>(gy, i, tile.width);
    if (a.forward.silu) {
        const vf y = convolve<type, fixed, whole>(tile, rows, K, i), gate = sigmoid(y);
        g = g * gate * (1.0f + y * (1.0f - gate));
    }
    store(g_row + i, g);
    for (int64_t k = 0; k < K; ++k) store(sums + k * E + i, load(sums + k * E + i) + g * read<type, whole>(rows[k], i, tile.width));
    store(sums + K * E + i, load(sums + K * E + i) + g);
    vf total = glast == nullptr ? splat(0) : read<type, whole>(glast, i, tile.width);
    for (int64_t j = 0; j < count; ++j) total += load(tile.weight + (K - 1 - j) * E + i) * load(later[j] + i);
    store(tile.row + i, total);
}

template <int type, int fixed>
void reverse(const CausalConvGrad& a, const Tile& tile, float* sums, Later later) {
    const CausalConv& f = a.forward;
    const int64_t K = f.taps;
    const char* rows[kMaxTaps];
    const float* nearer[kMaxTaps];
    bool reaches_end = true;  // no reset between here and the end: the position may stand in the outgoing state
    int64_t after = 0;        // existing positions behind this one
    for (int64_t t = f.length - 1; t >= 0; --t) {
        char* gx = a.gx.at(tile.b, t, tile.e);
        if (f.line.exists(tile.b, t)) {
            const char* gy = a.gy.at(tile.b, t, tile.e);
            prefetch_row(f.x, f.x.at(tile.b, t, tile.e), tile.width, -kAhead);
            prefetch_row(a.gy, gy, tile.width, -kAhead);
            prefetch_row<1>(a.gx, gx, tile.width, -kAhead);
            float* g_row = later.push();
            for (int64_t j = 0; j < later.count; ++j) nearer[j] = later.at(j);
            sources(f, tile, t, rows);
            const char* glast = a.glast && reaches_end && after < K - 1 ? a.glast.at(tile.b, K - 2 - after, tile.e) : nullptr;
            const int64_t count = later.count, whole = tile.whole;
            for (int64_t i = 0; i < whole; i += W) retreat<type, fixed, true>(a, tile, sums, nearer, count, rows, gy, glast, g_row, i);
            if (whole < tile.width) retreat<type, fixed, false>(a, tile, sums, nearer, count, rows, gy, glast, g_row, whole);
            ++after;
        } else {
            zero(tile.row, tile.lanes);
        }
        store_row(gx, type, tile.width, tile.row);
        if (f.line.resets(tile.b, t)) {
            later.count = 0;
            reaches_end = false;
        }
    }
    for (int64_t s = 0; s < K - 1; ++s) {
        const char* glast = a.glast && reaches_end && s >= after ? a.glast.at(tile.b, s - after, tile.e) : nullptr;
        for (int64_t i = 0; i < tile.lanes; i += W) {
            vf total = splat(0);
            if (glast != nullptr) total = i < tile.whole ? read<type, true>(glast, i, tile.width) : read<type, false>(glast, i, tile.width);
            for (int64_t j = 0; j <= s && j < later.count; ++j) total += load(tile.weight + (s - j) * E + i) * load(later.at(j) + i);
            store(tile.row + i, total);
        }
        store_row(a.gstate.at(tile.b, s, tile.e), type, tile.width, tile.row);
    }
}

void run_backward(const void* context, int64_t index, char* scratch) {
    const CausalConvGrad& a = *static_cast<const CausalConvGrad*>(context);
    const CausalConv& f = a.forward;
    Arena arena{scratch};
    const Tile tile = tile_of(f, index / tiles(f), index % tiles(f), arena);
    float* sums = arena.floats((f.taps + 1) * E);
    const Later later{arena.floats(f.taps * E), 0, 0, f.taps};
    zero(sums, (f.taps + 1) * E);
    if (f.taps == 4) {
        if (f.x.type == kFloat) reverse<kFloat, 4>(a, tile, sums, later); else reverse<kBFloat16, 4>(a, tile, sums, later);
    } else {
        if (f.x.type == kFloat) reverse<kFloat, 0>(a, tile, sums, later); else reverse<kBFloat16, 0>(a, tile, sums, later);
    }
    for (int64_t k = 0; k <= f.taps; ++k) memcpy(a.part.f(tile.b, k, tile.e), sums + k * E, static_cast<size_t>(tile.width * 4));
}

// Adds up the batch rows' parts in order.
void sum_rows(const void* context, int64_t index, char*) {
    const CausalConvGrad& a = *static_cast<const CausalConvGrad*>(context);
    const CausalConv& f = a.forward;
    const int64_t end = least(f.width, (index + 1) * E);
    for (int64_t e = index * E; e < end; ++e)
        for (int64_t k = 0; k <= f.taps; ++k) {
            float total = 0;
            for (int64_t b = 0; b < f.batch; ++b) total += *a.part.f(b, k, e);
            if (k < f.taps) *a.gweight.f(e, k) = total; else if (a.gbias) *a.gbias.f(e) = total;
        }
}

}  // namespace

Work causal_conv1d_work(const CausalConv& a) { return {(a.batch + together(a) - 1) / together(a) * tiles(a) * blocks(a), 4 * E * (a.taps + 3) + 256, run}; }

void causal_conv1d(const CausalConv& a) {
    if (a.source) find_sources(a);
    const Work work = causal_conv1d_work(a);
    parallel(a.threads, work.tiles, work.scratch, work.fn, &a);
}

void causal_conv1d_backward(const CausalConvGrad& a) {
    const CausalConv& f = a.forward;
    if (f.source) find_sources(f);
    parallel(f.threads, f.batch * tiles(f), 4 * E * (3 * f.taps + 4) + 512, run_backward, &a);
    parallel(f.threads, tiles(f), 64, sum_rows, &a);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
