// Decoding: a program of instructions over fixed tiles, run by all threads in one parallel region. Tiles are handed out in order, in pieces of
// several, by a counter; a thread that draws a piece of an instruction waits until every tile of the instructions before it is done, or of those
// before the first of several that run beside each other. A tile's work does not depend on the thread that does it, nor on its piece.
#include <sched.h>

#include "product.h"
#include "rows.h"

namespace statescan {
namespace STATESCAN_ISA {

Work selective_scan_work(const SelectiveScan&);
Work causal_conv1d_work(const CausalConv&);
Work ssd_work(const Ssd&);
Work log_linear_work(const LogLinear&);
Work mesa_work(const Mesa&);

namespace {

constexpr int64_t kSpin = 2000;  // looks before the thread offers its core to others

STATESCAN_INLINE void wait_for(const int64_t* done, int64_t count) {
    for (int64_t looks = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < count; ++looks) {
        if (looks > kSpin) sched_yield();
#if defined(__x86_64__)
        else _mm_pause();
#endif
    }
}

// Views whose data is an offset into the workspace, or the number of a state.
STATESCAN_INLINE void locate(View& v, const ProgramRun& run) {
    v.data = reinterpret_cast<char*>(run.workspace) + reinterpret_cast<intptr_t>(v.data);
    v.stride[0] = run.program.stride;
}
STATESCAN_INLINE void locate_state(View& v, float* const* states) {
    v.data = reinterpret_cast<char*>(states[reinterpret_cast<intptr_t>(v.data)]);
}

CausalConv located(const ProgramRun& run, CausalConv a) {
    a.batch = run.rows;
    locate(a.x, run);
    locate(a.y, run);
    locate_state(a.state, run.before);
    locate_state(a.last, run.after);
    return a;
}

SelectiveScan located(const ProgramRun& run, SelectiveScan a) {
    a.batch = run.rows;
    View* const views[] = {&a.x, &a.delta, &a.B, &a.C, &a.z, &a.y};
    for (View* v : views) locate(*v, run);
    locate_state(a.state, run.before);
    locate_state(a.last, run.after);
    return a;
}

Ssd located(const ProgramRun& run, Ssd a) {
    a.batch = run.rows;
    View* const views[] = {&a.x, &a.delta, &a.B, &a.C, &a.y};
    for (View* v : views) locate(*v, run);
    locate_state(a.state, run.before);
    locate_state(a.last, run.after);
    return a;
}

LogLinear located(const ProgramRun& run, LogLinear a) {
    a.batch = run.rows;
    View* const views[] = {&a.q, &a.k, &a.v, &a.weight, &a.decay, &a.y};
    for (View* v : views) locate(*v, run);
    if (a.beta.stride[2] != 0) locate(a.beta, run);
    a.before = reinterpret_cast<const int64_t*>(run.before[reinterpret_cast<intptr_t>(a.before)]);
    locate_state(a.state, run.before);
    locate_state(a.last, run.after);
    return a;
}

Mesa located(const ProgramRun& run, Mesa a) {
    a.batch = run.rows;
    View* const views[] = {&a.q, &a.k, &a.v, &a.beta, &a.decay, &a.y};
    for (View* v : views) locate(*v, run);
    View *const before[] = {&a.G, &a.S}, *const after[] = {&a.G_last, &a.S_last};
    for (View* v : before) locate_state(*v, run.before);
    for (View* v : after) locate_state(*v, run.after);
    return a;
}

struct Extent {
    int64_t tiles, scratch;
};

Extent extent(const ProgramRun& run, const Instruction& i) {
    Work work{run.rows, 64, nullptr};
    switch (i.kind) {
        case Instruction::kLinear: return {product_tiles(i.matrix), product_scratch(i.matrix, run.rows) + ceil_to(4 * run.rows * product_tile(i.matrix), 64)};
        case Instruction::kConv: work = causal_conv1d_work(located(run, run.program.convs[i.index])); break;
        case Instruction::kSelective: work = selective_scan_work(located(run, run.program.scans[i.index])); break;
        case Instruction::kSsd: work = ssd_work(located(run, run.program.ssds[i.index])); break;
        case Instruction::kLevels: work = log_linear_work(located(run, run.program.levels[i.index])); break;
        case Instruction::kMesa: work = mesa_work(located(run, run.program.mesas[i.index])); break;
        case Instruction::kMatrix: {
            const MatrixStep& a = run.program.matrices[i.index];
            return {run.rows * a.heads, matrix_step_scratch(a)};
        }
        case Instruction::kAttend: {
            const Attend& a = run.program.attends[i.index];
            return {run.rows * a.heads, attend_scratch(run, a)};
        }
        case Instruction::kRemember: return {remember_tiles(run, run.program.attends[i.index]), 64};
        default: break;
    }
    return {work.tiles, work.scratch};
}

// weight * x / sqrt(mean(x^2) + eps)
void norm(const float* x, const View& weight, int64_t first, int64_t width, float eps, float* y) {
    vf squares = splat(0);
    float tail = 0;
    int64_t k = 0;
    for (; k + W <= width; k += W) squares += load(x + k) * load(x + k);
    for (; k < width; ++k) tail += x[k] * x[k];
    const float mean = (sum(squares) + tail) / static_cast<float>(width) + eps;
    const float scale = 1.0f / __builtin_sqrtf(mean);
    const bool half = weight.type == kBFloat16;
    for (k = 0; k + W <= width; k += W) {
        const char* w = weight.at(first + k);
        store(y + k, load(x + k) * scale * (half ? from_bf16(w) : load(reinterpret_cast<const float*>(w))));
    }
    for (; k < width; ++k) {
        float w[W];
        load_row(weight.at(first + k), weight.type, 1, w);
        y[k] = x[k] * scale * w[0];
    }
}

// y * silu(z)
void gate(float* y, const float* z, int64_t width) {
    int64_t k = 0;
    for (; k + W <= width; k += W) {
        const vf v = load(z + k);
        store(y + k, load(y + k) * v * sigmoid(v));
    }
    for (; k < width; ++k) {
        const vf v = splat(z[k]);
        y[k] = y[k] * (v * sigmoid(v))[0];
    }
}

void gated_norm(const Instruction& i, float* row) {
    float *y = row + i.source, *target = row + i.target;
    const float* z = row + i.other;
    if (!i.gate_last) gate(y, z, i.width);
    const int64_t part = i.width / i.groups;
    if (i.matrix.weight) for (int64_t g = 0; g < i.groups; ++g) norm(y + g * part, i.matrix.weight, g * part, part, i.eps, target + g * part);
    else memcpy(target, y, static_cast<size_t>(4 * i.width));
    if (i.gate_last) gate(target, z, i.width);
}

// Outputs [first, last) of a product whose blocks each map a part of the input to a part of the output.
void block_product(const ProgramRun& run, const Instruction& i, int64_t first, int64_t last, float* y, int64_t y_stride, Arena& arena,
                   bool again) {
    const float* x = run.workspace + i.source;
    const int64_t size = i.matrix.out / i.blocks;
    for (int64_t block = first / size; block * size < last; ++block) {
        Matrix w = i.matrix;
        w.out = size;
        w.weight.data += block * i.block_stride * w.weight.bytes();
        if (w.bias) w.bias.data += block * size * w.bias.bytes();
        const int64_t begin = first > block * size ? first - block * size : 0, end = least(size, last - block * size);
        product(w, x + block * w.in, run.program.stride, run.rows, begin, end, y + block * size, y_stride, arena, again);
    }
}

void linear(const ProgramRun& run, const Instruction& i, int64_t tile, Arena& arena, bool again) {
    const Matrix& w = i.matrix;
    const int64_t size = product_tile(w), first = tile * size, last = least(w.out, first + size), stride = run.program.stride;
    float* y = i.target == kOutput ? run.output : run.workspace + i.target;
    const int64_t y_stride = i.target == kOutput ? run.output_stride : stride;
    if (!i.add) return block_product(run, i, first, last, y, y_stride, arena, again);
    float* part = arena.floats(run.rows * size);
    block_product(run, i, first, last, part - first, size, arena, again);
    for (int64_t r = 0; r < run.rows; ++r)
        for (int64_t o = first; o < last; ++o) y[r * y_stride + o] += part[r * size + o - first];
}

void embed(const ProgramRun& run, const Instruction& i, int64_t r) {
    float rest[W], *to = run.workspace + r * run.program.stride + i.target;
    const int64_t whole = i.width / W * W;
    const char* from = i.matrix.weight.at(run.ids[r]);
    load_row(from, i.matrix.weight.type, whole, to);
    if (whole == i.width) return;
    load_row(from + whole * i.matrix.weight.bytes(), i.matrix.weight.type, i.width - whole, rest);
    memcpy(to + whole, rest, static_cast<size_t>(4 * (i.width - whole)));
}

void gated_unit(const Instruction& i, float* row) {
    memcpy(row + i.target, row + i.source, static_cast<size_t>(4 * i.width));
    gate(row + i.target, row + i.other, i.width);
}

template <class Op>
void tiles_of(Work (*work)(const Op&), const Op& a, int64_t first, int64_t last, char* scratch) {
    const TileFn fn = work(a).fn;
    for (int64_t tile = first; tile < last; ++tile) fn(&a, tile, scratch);
}

// Tiles [first, last). `again`: this thread's last piece was of the same instruction.
void execute(const ProgramRun& run, const Instruction& i, int64_t first, int64_t last, char* scratch, bool again) {
    const auto each = [&](auto&& fn) {
        for (int64_t tile = first; tile < last; ++tile) fn(tile);
    };
    const auto row = [&](int64_t r) { return run.workspace + r * run.program.stride; };
    switch (i.kind) {
        case Instruction::kEmbed: return each([&](int64_t r) { embed(run, i, r); });
        case Instruction::kNorm: return each([&](int64_t r) { norm(row(r) + i.source, i.matrix.weight, 0, i.width, i.eps, row(r) + i.target); });
        case Instruction::kGatedNorm: return each([&](int64_t r) { gated_norm(i, row(r)); });
        case Instruction::kGatedUnit: return each([&](int64_t r) { gated_unit(i, row(r)); });
        case Instruction::kLinear:
            return each([&](int64_t tile) {
                Arena arena{scratch};
                linear(run, i, tile, arena, again);
                again = true;
            });
        case Instruction::kConv: return tiles_of(causal_conv1d_work, located(run, run.program.convs[i.index]), first, last, scratch);
        case Instruction::kSelective: return tiles_of(selective_scan_work, located(run, run.program.scans[i.index]), first, last, scratch);
        case Instruction::kSsd: return tiles_of(ssd_work, located(run, run.program.ssds[i.index]), first, last, scratch);
        case Instruction::kLevels: return tiles_of(log_linear_work, located(run, run.program.levels[i.index]), first, last, scratch);
        case Instruction::kMesa: return tiles_of(mesa_work, located(run, run.program.mesas[i.index]), first, last, scratch);
        case Instruction::kRows: return each([&](int64_t r) { take_steps(run, i, r); });
        case Instruction::kMatrix: return each([&](int64_t tile) { matrix_step(run, run.program.matrices[i.index], tile, scratch); });
        case Instruction::kAttend: return each([&](int64_t tile) { attend(run, run.program.attends[i.index], tile, scratch); });
        case Instruction::kRemember: return each([&](int64_t tile) { remember(run, run.program.attends[i.index], tile); });
    }
}

struct Shared {
    const ProgramRun* run;
    const int64_t* tiles;  // of each instruction
    alignas(64) mutable int64_t next;  // piece to draw
    alignas(64) mutable int64_t done;  // tiles
};

// How many of an instruction's tiles go together when so many are left. To draw costs more than many a tile, and what a product asks for ahead at
// a piece's end is another thread's; the last pieces are small, so that no thread waits long for another.
STATESCAN_INLINE int64_t piece(int64_t left, int threads) { return left > 2 * threads ? left / (2 * threads) : 1; }

void work(const void* context, int64_t, char* scratch) {
    const Shared& shared = *static_cast<const Shared*>(context);
    const ProgramRun& run = *shared.run;
    int64_t i = 0, previous = -1, first = 0, number = 0;  // the piece with this number begins at this tile of this instruction
    int64_t before = 0, needed = 0;                       // tiles of the instructions before; those that must be done
    for (;;) {
        const int64_t drawn = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
        for (;; ++number) {
            while (first == shared.tiles[i]) {
                before += shared.tiles[i];
                if (++i == run.program.count) return;
                if (!run.program.instructions[i].beside) needed = before;
                first = 0;
            }
            if (number == drawn) break;
            first += piece(shared.tiles[i] - first, run.threads);
        }
        const int64_t tiles = piece(shared.tiles[i] - first, run.threads);
        wait_for(&shared.done, needed);
        execute(run, run.program.instructions[i], first, first + tiles, scratch, i == previous);
        previous = i;
        __atomic_fetch_add(&shared.done, tiles, __ATOMIC_RELEASE);
    }
}

}  // namespace

void run_program(const ProgramRun& run) {
    int64_t scratch = 64;
    int64_t* tiles = reinterpret_cast<int64_t*>(shared_scratch(8 * run.program.count));
    for (int64_t i = 0; i < run.program.count; ++i) {
        const Extent needed = extent(run, run.program.instructions[i]);
        tiles[i] = needed.tiles;
        if (needed.scratch > scratch) scratch = needed.scratch;
    }
    const Shared shared{&run, tiles, 0, 0};
    parallel(run.threads, run.threads, scratch, work, &shared);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
