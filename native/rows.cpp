// The small steps of a decoding program: elementwise functions, sums over parts of a row, rotations. A row of the batch is a tile, and
// the steps of an instruction follow each other in it.
#include "rows.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr double kTurn = 6.283185307179586476925;
constexpr float kNothing = -1e30f;  // the logarithm of what an empty cell holds

float* resolve(const ProgramRun& run, const Operand& o, int64_t row) {
    switch (o.space) {
        case Operand::kPlace: return run.workspace + row * run.program.stride + o.at;
        case Operand::kFixed: return reinterpret_cast<float*>(o.at);
        case Operand::kBefore: return run.before[o.at] + row * o.row + o.offset;
        case Operand::kAfter: return run.after[o.at] + row * o.row + o.offset;
        default: return nullptr;
    }
}

int64_t* resolve_count(float* const* states, const Operand& o, int64_t row) { return reinterpret_cast<int64_t*>(states[o.at]) + row; }

// Functions of a lane at a time, for which there is a library.
template <float (*F)(float)>
STATESCAN_INLINE vf by_lane(vf v) {
    float lane[W];
    store(lane, v);
    for (int64_t i = 0; i < W; ++i) lane[i] = F(lane[i]);
    return load(lane);
}
float root(float v) { return __builtin_sqrtf(v); }
float cosine(float v) { return __builtin_cosf(v); }
float sine(float v) { return __builtin_sinf(v); }
float half_erfc(float v) { return 0.5f * __builtin_erfcf(v); }

// A turn at most is what a layer that adds up its angles has; a position times a frequency may be anything.
template <float (*F)(float), bool kCosine>
STATESCAN_INLINE vf wave(vf v) {
    if (!all((v >= splat(0)) & (v <= splat(static_cast<float>(kTurn))))) return by_lane<F>(v);
    vf s, c;
    sincos(v, s, c);
    return kCosine ? c : s;
}

// Without the digits that 1 - 2 / (1 + e^{2 v}) and e^v - 1 lose near zero.
STATESCAN_INLINE vf tanh(vf v) {
    const vf s = v * v, small = v * (1.0f + s * (-0.33333333f + s * (0.13333333f + s * (-0.053968254f + s * 0.021869488f))));
    return abs(v) < splat(0.25f) ? small : 1.0f - 2.0f / (1.0f + exp(2.0f * v));
}
STATESCAN_INLINE vf expm1(vf v) {
    const vf small = v * (1.0f + v * (0.5f + v * (0.16666667f + v * (0.041666667f + v * (0.0083333333f + v * (0.0013888889f + v * 0.00019841270f))))));
    return abs(v) < splat(0.3f) ? small : exp(v) - 1.0f;
}
STATESCAN_INLINE vf gelu_tanh(vf v) { return v * sigmoid(1.5957691216057308f * (v + 0.044715f * v * v * v)); }

template <bool kOneA, bool kOneB, typename F>
void segment(int64_t width, const float* a, const float* b, float* to, F f) {
    const vf one_a = splat(kOneA ? *a : 0), one_b = splat(kOneB ? *b : 0);
    int64_t k = 0;
    for (; k + W <= width; k += W) store(to + k, f(kOneA ? one_a : load(a + k), kOneB ? one_b : load(b + k)));
    if (k == width) return;
    float rest[3][W] = {};
    const size_t bytes = static_cast<size_t>(4 * (width - k));
    if (!kOneA) memcpy(rest[0], a + k, bytes);
    if (!kOneB) memcpy(rest[1], b + k, bytes);
    store(rest[2], f(kOneA ? one_a : load(rest[0]), kOneB ? one_b : load(rest[1])));
    memcpy(to + k, rest[2], bytes);
}

STATESCAN_INLINE int64_t size_of(int64_t each, int64_t width) { return each == 0 ? width : each < 0 ? -each : each; }
STATESCAN_INLINE int64_t place(int64_t each, int64_t i) { return each == 0 ? i : each > 0 ? i / each : i % -each; }

template <typename F>
void apply(const RowStep& s, const float* a, const float* b, float* to, F f) {
    const int64_t size = least(size_of(s.a.each, s.width), size_of(s.b.each, s.width));
    const bool one_a = s.a.each > 0, one_b = s.b.each > 0;
    for (int64_t i = 0; i < s.width; i += size) {
        const float *from_a = a + place(s.a.each, i), *from_b = b + place(s.b.each, i);
        if (one_a && one_b) segment<true, true>(size, from_a, from_b, to + i, f);
        else if (one_a) segment<true, false>(size, from_a, from_b, to + i, f);
        else if (one_b) segment<false, true>(size, from_a, from_b, to + i, f);
        else segment<false, false>(size, from_a, from_b, to + i, f);
    }
}

// to[i]: the sum of sizes[0] numbers of a.
void sums(const RowStep& s, const float* a, float* to) {
    const int64_t size = s.sizes[0];
    for (int64_t i = 0; i < s.width; ++i, a += size) {
        vf total = splat(0);
        float rest = 0;
        int64_t k = 0;
        for (; k + W <= size; k += W) total += load(a + k);
        for (; k < size; ++k) rest += a[k];
        to[i] = sum(total) + rest;
    }
}

// In place, a the cosines and b the sines: in each of sizes[0] heads of sizes[1] channels, sizes[2] pairs (i sizes[4], i sizes[4] + sizes[3])
// turn. The next head's angles stand sizes[5] further.
void turn(const RowStep& s, const float* a, const float* b, float* x) {
    const int64_t pairs = s.sizes[2], apart = s.sizes[3], step = s.sizes[4];
    for (int64_t h = 0; h < s.sizes[0]; ++h, x += s.sizes[1], a += s.sizes[5], b += s.sizes[5]) {
        int64_t i = 0;
        for (; step == 1 && i + W <= pairs; i += W) {
            const vf one = load(x + i), other = load(x + i + apart), c = load(a + i), d = load(b + i);
            store(x + i, one * c - other * d);
            store(x + i + apart, other * c + one * d);
        }
        for (; i < pairs; ++i) {
            float *p = x + i * step, *q = p + apart;
            const float one = *p, other = *q;
            *p = one * a[i] - other * b[i];
            *q = other * a[i] + one * b[i];
        }
    }
}

// to = a + b within one turn, added up in double precision.
void phase(const RowStep& s, const float* a, const float* b, float* to) {
    for (int64_t i = 0; i < s.width; ++i) {
        const double sum = static_cast<double>(a[i]) + static_cast<double>(b[i]);
        to[i] = static_cast<float>(sum - kTurn * __builtin_floor(sum / kTurn));
    }
}

void take(const ProgramRun& run, const RowStep& s, int64_t row) {
    if (s.op == RowStep::kPosition) {  // to: the count of a; b: one more
        const int64_t count = *resolve_count(run.before, s.a, row);
        *resolve_count(run.after, s.b, row) = count + 1;
        *resolve(run, s.to, row) = static_cast<float>(count);
        return;
    }
    const float *a = resolve(run, s.a, row), *b = s.b.space == Operand::kNone ? a : resolve(run, s.b, row);
    float* to = resolve(run, s.to, row);
    switch (s.op) {
        case RowStep::kAdd: return apply(s, a, b, to, [](vf x, vf y) { return x + y; });
        case RowStep::kSubtract: return apply(s, a, b, to, [](vf x, vf y) { return x - y; });
        case RowStep::kMultiply: return apply(s, a, b, to, [](vf x, vf y) { return x * y; });
        case RowStep::kDivide: return apply(s, a, b, to, [](vf x, vf y) { return x / y; });
        case RowStep::kMaximum: return apply(s, a, b, to, [](vf x, vf y) { return max(x, y); });
        case RowStep::kUnlessEmpty: return apply(s, a, b, to, [](vf x, vf y) { return y == splat(0) ? splat(kNothing) : x; });
        case RowStep::kCopy: return apply(s, a, b, to, [](vf x, vf) { return x; });
        case RowStep::kExp: return apply(s, a, b, to, [](vf x, vf) { return exp(x); });
        case RowStep::kExpm1: return apply(s, a, b, to, [](vf x, vf) { return expm1(x); });
        case RowStep::kSigmoid: return apply(s, a, b, to, [](vf x, vf) { return sigmoid(x); });
        case RowStep::kSilu: return apply(s, a, b, to, [](vf x, vf) { return x * sigmoid(x); });
        case RowStep::kTanh: return apply(s, a, b, to, [](vf x, vf) { return tanh(x); });
        case RowStep::kSoftplus: return apply(s, a, b, to, [](vf x, vf) { return softplus(x); });
        case RowStep::kGelu: return apply(s, a, b, to, [](vf x, vf) { return x * by_lane<half_erfc>(x * -0.7071067811865476f); });
        case RowStep::kGeluTanh: return apply(s, a, b, to, [](vf x, vf) { return gelu_tanh(x); });
        case RowStep::kRoot: return apply(s, a, b, to, [](vf x, vf) { return by_lane<root>(x); });
        case RowStep::kAbs: return apply(s, a, b, to, [](vf x, vf) { return abs(x); });
        case RowStep::kCos: return apply(s, a, b, to, [](vf x, vf) { return wave<cosine, true>(x); });
        case RowStep::kSin: return apply(s, a, b, to, [](vf x, vf) { return wave<sine, false>(x); });
        case RowStep::kSum: return sums(s, a, to);
        case RowStep::kTurn: return turn(s, a, b, to);
        case RowStep::kPhase: return phase(s, a, b, to);
        case RowStep::kPosition: return;
    }
}

}  // namespace

void take_steps(const ProgramRun& run, const Instruction& i, int64_t row) {
    for (int64_t s = i.index; s < i.index + i.count; ++s) take(run, run.program.steps[s], row);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
