// Runs every kernel of one instruction set forwards and backwards over odd sizes, without Python: for the sanitizers.
//     c++ -std=gnu++17 -g -O1 -fsanitize=address,undefined -mavx2 -mfma -DSTATESCAN_ISA=avx2 -Inative native/check/check.cpp \
//         native/selective_scan*.cpp native/ssd*.cpp native/matrix_state*.cpp native/mamba3*.cpp native/log_linear*.cpp native/mesa*.cpp native/causal_conv1d.cpp \
//         native/diagonal_scan.cpp native/product.cpp native/dequantize.cpp native/gemm.cpp native/rms_norm.cpp native/program.cpp native/rows.cpp native/matrix_step.cpp native/attend_step.cpp native/table.cpp -pthread
// Each tensor is an allocation of exactly its size between guard bytes; scratch and outputs start as NaN, and so do inputs at positions
// that do not exist. Outputs must be finite and the same bits at one, two and three threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace statescan {

char* shared_scratch(int64_t bytes) {
    static std::vector<char> memory;
    memory.assign(static_cast<size_t>(bytes) + 64, static_cast<char>(0xff));
    return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

void parallel(int threads, int64_t tiles, int64_t scratch_bytes, TileFn fn, const void* context) {
    auto work = [&](int first) {
        const size_t size = static_cast<size_t>((scratch_bytes + 63) / 64 * 64);
        char* scratch = static_cast<char*>(std::aligned_alloc(64, size));
        for (int64_t tile = first; tile < tiles; tile += threads) {
            std::memset(scratch, 0xff, size);
            fn(context, tile, scratch);
        }
        std::free(scratch);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
}

namespace {

const char* running = "";
int failures = 0;

void fail(const char* what) {
    std::printf("%s: %s\n", running, what);
    ++failures;
}

constexpr size_t kGuard = 32;

struct Buffer {
    std::vector<char> bytes;  // guard, numbers, guard
    bool output;
};

struct Case {
    std::deque<Buffer> buffers;
    uint64_t seed = 1;
    int32_t type = kFloat;  // of inputs that may be bfloat16

    float random(float low, float high) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        return low + (high - low) * static_cast<float>(seed >> 40) / 16777216.0f;
    }
    View make(std::vector<int64_t> shape, int32_t kind, bool output) {
        View v;
        v.type = kind;
        int64_t count = 1;
        for (size_t i = shape.size(); i-- > 0;) {
            v.stride[i] = count;
            count *= shape[i];
        }
        const size_t size = static_cast<size_t>(count * v.bytes());
        buffers.push_back({std::vector<char>(size + 2 * kGuard, static_cast<char>(0xab)), output});
        v.data = buffers.back().bytes.data() + kGuard;
        std::memset(v.data, 0xff, size);
        return v;
    }
    View in(std::vector<int64_t> shape, int32_t kind = kFloat, float low = -1, float high = 1) {
        const View v = make(shape, kind, false);
        int64_t count = kind == kComplex ? 2 : 1;
        for (int64_t size : shape) count *= size;
        for (int64_t i = 0; i < count; ++i) {
            const float value = random(low, high);
            uint32_t bits;
            std::memcpy(&bits, &value, 4);
            const uint16_t half = static_cast<uint16_t>(bits >> 16);
            if (kind == kBFloat16) std::memcpy(v.data + 2 * i, &half, 2);
            else if (kind == kBool) v.data[i] = value > 0;
            else if (kind == kInt8 || kind == kInt4) v.data[i] = static_cast<char>(127 * value);
            else std::memcpy(v.data + 4 * i, &value, 4);
        }
        return v;
    }
    View out(std::vector<int64_t> shape, int32_t kind = kFloat) { return make(shape, kind, true); }

    // NaN where the mask (B, L) has a hole; row: numbers a position.
    void holes(const View& v, const View& mask, int64_t positions, int64_t row) {
        for (int64_t i = 0; i < positions; ++i)
            if (mask.data[i] == 0) std::memset(v.data + i * row * v.bytes(), 0xff, static_cast<size_t>(row * v.bytes()));
    }
    Line line(bool with, int64_t batch, int64_t length, bool interval) {
        Line l;
        if (!with) return l;
        l.reset = in({batch, length}, kBool, -1, 0.2f);
        l.mask = in({batch, length}, kBool, -0.3f, 1);
        if (interval) l.interval = in({batch, length}, kFloat, 0, 2);
        return l;
    }
    void check_guards() {
        for (const Buffer& b : buffers)
            for (size_t i = 0; i < kGuard; ++i)
                if (static_cast<unsigned char>(b.bytes[i]) != 0xab || static_cast<unsigned char>(b.bytes[b.bytes.size() - 1 - i]) != 0xab)
                    return fail("wrote outside a tensor");
    }
    // Runs at 1, 2 and 3 threads and compares everything written.
    void run(const std::function<void(int)>& kernel) {
        std::deque<Buffer> first;
        for (int threads = 1; threads <= 3; ++threads) {
            for (Buffer& b : buffers)
                if (b.output) std::memset(b.bytes.data() + kGuard, 0xff, b.bytes.size() - 2 * kGuard);
            kernel(threads);
            check_guards();
            if (threads == 1) first = buffers;
            for (size_t i = 0; i < buffers.size(); ++i)
                if (buffers[i].bytes != first[i].bytes) return fail("other bits at another number of threads");
        }
    }
};

void finite(const View& v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits = 0;
        if (v.type == kBFloat16) std::memcpy(reinterpret_cast<char*>(&bits) + 2, v.data + 2 * i, 2);
        else std::memcpy(&bits, v.data + 4 * i, 4);
        if ((bits & 0x7f800000u) == 0x7f800000u) return fail("an output is not finite");
    }
}

// Outputs stay where they are while the backward reads them.
void keep(Case& c) {
    for (Buffer& b : c.buffers) b.output = false;
}

void scan_case(const Kernels& kernels, int64_t B, int64_t L, int64_t E, int64_t N, int64_t G, bool timeline, int32_t type, bool gate) {
    Case c;
    SelectiveScan a{};
    a.softplus = true;
    a.batch = B, a.length = L, a.width = E, a.n = N, a.groups = G;
    a.line = c.line(timeline, B, L, true);
    a.x = c.in({B, L, E}, type), a.delta = c.in({B, L, E}, type, -3, 2), a.A = c.in({E, N}, kFloat, gate ? -80.0f : -4.0f, -0.1f);
    a.B = c.in({B, L, G, N}, type), a.C = c.in({B, L, G, N}, type);
    if (gate) a.D = c.in({E}), a.z = c.in({B, L, E}, type), a.bias = c.in({E});
    a.state = c.in({B, E, N}), a.reset_to = timeline ? c.in({B, E, N}) : View{};
    a.y = c.out({B, L, E}, type), a.last = c.out({B, E, N});
    if (timeline) {
        const View* const inputs[] = {&a.x, &a.delta, &a.B, &a.C, &a.z};
        const int64_t rows[] = {E, E, G * N, G * N, E};
        for (int i = 0; i < 5; ++i)
            if (*inputs[i]) c.holes(*inputs[i], a.line.mask, B * L, rows[i]);
    }
    auto forward = [&](int threads) { a.threads = threads, kernels.selective_scan(a); };
    c.run(forward);
    finite(a.y, B * L * E), finite(a.last, B * E * N);
    const View steps = a.delta;
    a.rank = 7, a.delta = c.in({B, L, a.rank}), a.weight = c.in({E, a.rank});
    if (timeline) c.holes(a.delta, a.line.mask, B * L, a.rank);
    c.run(forward);
    finite(a.y, B * L * E), finite(a.last, B * E * N);
    a.rank = 0, a.delta = steps, a.weight = View{};
    const int64_t chunks = (L + kScanChunk - 1) / kScanChunk, tiles = B * G * ((E / G + kTile - 1) / kTile);
    a.chunks = c.out({B, chunks, N, E});
    c.run(forward);
    keep(c);
    SelectiveScanGrad g{};
    g.gy = c.in({B, L, E}, type), g.glast = c.in({B, E, N});
    g.gx = c.out({B, L, E}, type), g.gdelta = c.out({B, L, E}, type), g.gA = c.out({E, N}), g.gstate = c.out({B, E, N});
    g.gB = c.out({B, L, G, N}, type), g.gC = c.out({B, L, G, N}, type);
    if (gate) g.gD = c.out({E}), g.gz = c.out({B, L, E}, type), g.gbias = c.out({E});
    if (timeline) g.greset = c.out({B, E, N}), g.ginterval = c.out({B, L});
    g.part_B = c.out({tiles, L, N}), g.part_C = c.out({tiles, L, N}), g.part_A = c.out({B, N, E}), g.part_D = c.out({B, E});
    g.part_bias = c.out({B, E}), g.part_interval = timeline ? c.out({tiles, L}) : c.out({1, 1});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.selective_scan_backward(g); });
    finite(g.gx, B * L * E), finite(g.gdelta, B * L * E), finite(g.gA, E * N), finite(g.gB, B * L * G * N), finite(g.gC, B * L * G * N);
    finite(g.gstate, B * E * N);
}

void conv_case(const Kernels& kernels, int64_t B, int64_t L, int64_t E, int64_t K, bool timeline, int32_t type) {
    Case c;
    CausalConv a{};
    a.silu = true;
    a.batch = B, a.length = L, a.width = E, a.taps = K;
    a.line = c.line(timeline, B, L, false);
    a.x = c.in({B, L, E}, type), a.weight = c.in({E, K}), a.bias = c.in({E}), a.state = c.in({B, K - 1, E}, type);
    if (timeline) c.holes(a.x, a.line.mask, B * L, E);
    if (timeline) a.source = c.out({B, L + 1, K});
    a.y = c.out({B, L, E}, type), a.last = c.out({B, K - 1, E}, type);
    c.run([&](int threads) { a.threads = threads, kernels.causal_conv1d(a); });
    finite(a.y, B * L * E), finite(a.last, B * (K - 1) * E);
    keep(c);
    CausalConvGrad g{};
    g.gy = c.in({B, L, E}, type), g.glast = c.in({B, K - 1, E}, type);
    g.gx = c.out({B, L, E}, type), g.gweight = c.out({E, K}), g.gbias = c.out({E}), g.gstate = c.out({B, K - 1, E}, type);
    g.part = c.out({B, K + 1, E});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.causal_conv1d_backward(g); });
    finite(g.gx, B * L * E), finite(g.gweight, E * K), finite(g.gbias, E), finite(g.gstate, B * (K - 1) * E);
}

void ssd_case(const Kernels& kernels, int64_t B, int64_t L, int64_t H, int64_t P, int64_t N, int64_t G, bool timeline, int32_t type) {
    Case c;
    Ssd a{};
    a.softplus = true, a.low = 0, a.high = INFINITY;
    a.batch = B, a.length = L, a.heads = H, a.p = P, a.n = N, a.groups = G;
    a.line = c.line(timeline, B, L, true);
    a.x = c.in({B, L, H, P}, type), a.delta = c.in({B, L, H}, type, -3, 2), a.A = c.in({H}, kFloat, -4, -0.1f);
    a.B = c.in({B, L, G, N}, type), a.C = c.in({B, L, G, N}, type), a.D = c.in({H, P}), a.bias = c.in({H});
    a.state = c.in({B, H, P, N}), a.reset_to = timeline ? c.in({B, H, P, N}) : View{};
    a.y = c.out({B, L, H, P}, type), a.last = c.out({B, H, P, N});
    if (timeline) {
        const View* const inputs[] = {&a.x, &a.delta, &a.B, &a.C};
        const int64_t rows[] = {H * P, H, G * N, G * N};
        for (int i = 0; i < 4; ++i) c.holes(*inputs[i], a.line.mask, B * L, rows[i]);
    }
    auto forward = [&](int threads) { a.threads = threads, kernels.ssd(a); };
    c.run(forward);
    finite(a.y, B * L * H * P), finite(a.last, B * H * P * N);
    const int64_t chunks = (L + kChunk - 1) / kChunk, tiles = B * G * ((H / G + kHeads - 1) / kHeads);
    a.chunks = c.out({B, chunks, H, N, P});
    c.run(forward);
    keep(c);
    SsdGrad g{};
    g.gy = c.in({B, L, H, P}, type), g.glast = c.in({B, H, P, N});
    g.gx = c.out({B, L, H, P}, type), g.gdelta = c.out({B, L, H}, type), g.gA = c.out({H}), g.gB = c.out({B, L, G, N}, type);
    g.gC = c.out({B, L, G, N}, type), g.gD = c.out({H, P}), g.gbias = c.out({H}), g.gstate = c.out({B, H, P, N});
    if (timeline) g.greset = c.out({B, H, P, N}), g.ginterval = c.out({B, L});
    g.part_B = c.out({tiles, L, N}), g.part_C = c.out({tiles, L, N}), g.part_A = c.out({B, H}), g.part_D = c.out({B, H, P});
    g.part_bias = c.out({B, H}), g.part_interval = timeline ? c.out({tiles, L}) : c.out({1, 1});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.ssd_backward(g); });
    finite(g.gx, B * L * H * P), finite(g.gdelta, B * L * H), finite(g.gB, B * L * G * N), finite(g.gC, B * L * G * N);
    finite(g.gstate, B * H * P * N);
}

enum class Decay { none, head, channel };

void matrix_case(const Kernels& kernels, int64_t B, int64_t L, int64_t n, int64_t H, int64_t G, int64_t K, int64_t V, Decay decay, char reads,
                 bool timeline, int32_t type) {
    Case c;
    MatrixState a{};
    a.batch = B, a.length = L, a.writes = n, a.heads = H, a.groups = G, a.keys = K, a.width = V;
    a.by_channel = decay == Decay::channel, a.scale = 0.5f;
    a.line = c.line(timeline, B, L, false);
    const int64_t decays = decay == Decay::channel ? K : 1;
    const float small = 1 / static_cast<float>(K);
    a.q = c.in({B, L, G, K}, type), a.key = c.in({B, L, n, G, K}, type, -small, small), a.value = c.in({B, L, n, H, V}, type);
    if (decay != Decay::none) a.decay = c.in({B, L, H, decays}, type, -3, 0);
    if (reads == 'b') a.beta = c.in({B, L, n, H}, type, 0, 1);
    if (reads == 'r') a.read = c.in({B, L, n, H, K}, type);
    a.state = c.in({B, H, K, V}), a.y = c.out({B, L, H, V}, type), a.last = c.out({B, H, K, V});
    if (timeline) {
        const View* const inputs[] = {&a.q, &a.key, &a.value, &a.decay, &a.beta, &a.read};
        const int64_t row[] = {G * K, n * G * K, n * H * V, H * decays, n * H, n * H * K};
        for (int i = 0; i < 6; ++i)
            if (*inputs[i]) c.holes(*inputs[i], a.line.mask, B * L, row[i]);
    }
    auto forward = [&](int threads) { a.threads = threads, kernels.matrix_state(a); };
    c.run(forward);
    finite(a.y, B * L * H * V), finite(a.last, B * H * K * V);
    a.chunks = c.out({B, (L + kChunk - 1) / kChunk, H, K, V});
    c.run(forward);
    keep(c);
    MatrixStateGrad g{};
    g.gy = c.in({B, L, H, V}, type), g.glast = c.in({B, H, K, V});
    g.gq = c.out({B, L, G, K}, type), g.gkey = c.out({B, L, n, G, K}, type), g.gvalue = c.out({B, L, n, H, V}, type);
    g.gstate = c.out({B, H, K, V});
    if (a.decay) g.gdecay = c.out({B, L, H, decays}, type);
    if (a.beta) g.gbeta = c.out({B, L, n, H}, type);
    if (a.read) g.gread = c.out({B, L, n, H, K}, type);
    if (H > G) g.part_q = c.out({B, L, H, K}), g.part_key = c.out({B, L, n, H, K});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.matrix_state_backward(g); });
    finite(g.gq, B * L * G * K), finite(g.gkey, B * L * n * G * K), finite(g.gvalue, B * L * n * H * V), finite(g.gstate, B * H * K * V);
    if (a.decay) finite(g.gdecay, B * L * H * decays);
    if (a.beta) finite(g.gbeta, B * L * n * H);
    if (a.read) finite(g.gread, B * L * n * H * K);
}

void mamba3_case(const Kernels& kernels, int64_t B, int64_t L, int64_t R, int64_t H, int64_t G, int64_t N, int64_t P, int64_t T, bool gate,
                 bool timeline, int32_t type) {
    Case c;
    Mamba3 a{};
    a.batch = B, a.length = L, a.rank = R, a.heads = H, a.groups = G, a.keys = N, a.width = P, a.angles = T;
    a.line = c.line(timeline, B, L, false);
    a.q = c.in({B, L, R, G, N}, type), a.k = c.in({B, L, R, G, N}, type), a.v = c.in({B, L, H, P}, type);
    a.log_decay = c.in({B, L, H}, kFloat, -4, 0), a.delta = c.in({B, L, H}, kFloat, 0, 1), a.mix = c.in({B, L, H}, kFloat, 0, 1);
    a.speed = c.in({B, L, T}, kFloat, -3, 3), a.q_bias = c.in({H, R, N}), a.k_bias = c.in({H, R, N}), a.D = c.in({H});
    if (gate) a.z = c.in({B, L, H, P}, type), a.z_weight = c.in({H, R, P}), a.y_weight = c.in({H, R, P}), a.v_weight = c.in({H, R, P});
    a.angle = c.in({B, H, T}), a.ssm = c.in({B, H, P, N}), a.last_k = c.in({B, R, H, N}), a.last_v = c.in({B, H, P});
    a.y = gate ? c.out({B, L, H, P}, type) : c.out({B, L, R, H, P}, type);
    a.angle_last = c.out({B, H, T}), a.ssm_last = c.out({B, H, P, N}), a.k_last = c.out({B, R, H, N}), a.v_last = c.out({B, H, P});
    if (timeline) {
        const View* const inputs[] = {&a.q, &a.k, &a.v, &a.z, &a.log_decay, &a.delta, &a.mix, &a.speed};
        const int64_t row[] = {R * G * N, R * G * N, H * P, H * P, H, H, H, T};
        for (int i = 0; i < 8; ++i)
            if (*inputs[i]) c.holes(*inputs[i], a.line.mask, B * L, row[i]);
    }
    c.run([&](int threads) { a.threads = threads, kernels.mamba3(a); });
    finite(a.y, B * L * H * P * (gate ? 1 : R)), finite(a.ssm_last, B * H * P * N), finite(a.angle_last, B * H * T);
    finite(a.k_last, B * R * H * N), finite(a.v_last, B * H * P);
    keep(c);
    Mamba3Grad g{};
    g.gy = gate ? c.in({B, L, H, P}, type) : c.in({B, L, R, H, P}, type);
    g.gangle_last = c.in({B, H, T}), g.gssm_last = c.in({B, H, P, N}), g.gk_last = c.in({B, R, H, N}), g.gv_last = c.in({B, H, P});
    g.gq = c.out({B, L, R, H, N}), g.gk = c.out({B, L, R, H, N}), g.gv = c.out({B, L, H, P});
    g.glog_decay = c.out({B, L, H}), g.gdelta = c.out({B, L, H}), g.gmix = c.out({B, L, H}), g.gspeed = c.out({B, L, H, T});
    g.gq_bias = c.out({B, H, R, N}), g.gk_bias = c.out({B, H, R, N}), g.gD = c.out({B, H});
    if (gate) g.gz = c.out({B, L, H, P}), g.gv_weight = c.out({B, H, R, P}), g.gz_weight = c.out({B, H, R, P}), g.gy_weight = c.out({B, H, R, P});
    g.gangle = c.out({B, H, T}), g.gssm = c.out({B, H, P, N}), g.glast_k = c.out({B, R, H, N}), g.glast_v = c.out({B, H, P});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.mamba3_backward(g); });
    finite(g.gq, B * L * R * H * N), finite(g.gk, B * L * R * H * N), finite(g.gv, B * L * H * P), finite(g.gspeed, B * L * H * T);
    finite(g.glog_decay, B * L * H), finite(g.gdelta, B * L * H), finite(g.gmix, B * L * H), finite(g.gD, B * H);
    finite(g.gq_bias, B * H * R * N), finite(g.gk_bias, B * H * R * N), finite(g.gangle, B * H * T), finite(g.gssm, B * H * P * N);
    finite(g.glast_k, B * R * H * N), finite(g.glast_v, B * H * P);
    if (gate) finite(g.gz, B * L * H * P), finite(g.gv_weight, B * H * R * P), finite(g.gz_weight, B * H * R * P), finite(g.gy_weight, B * H * R * P);
}

void log_linear_case(const Kernels& kernels, int64_t B, int64_t L, int64_t H, int64_t G, int64_t K, int64_t V, int64_t M, bool delta,
                     bool timeline, int32_t type) {
    Case c;
    LogLinear a{};
    const std::vector<int64_t> before{5, 200};
    a.batch = B, a.length = L, a.heads = H, a.groups = G, a.keys = K, a.width = V, a.levels = M, a.scale = 0.5f, a.before = before.data();
    a.line = c.line(timeline, B, L, false);
    const float size = 1 / std::sqrt(static_cast<float>(K));
    a.q = c.in({B, L, G, K}, type), a.k = c.in({B, L, G, K}, type, -size, size), a.v = c.in({B, L, H, V}, type);
    a.weight = c.in({B, L, H, M}, type), a.decay = c.in({B, L, H}, type, -4, 0), a.state = c.in({B, H, M, K, V});
    if (delta) a.beta = c.in({B, L, H}, type, 0, 2);
    a.y = c.out({B, L, H, V}, type), a.last = c.out({B, H, M, K, V});
    if (timeline) {
        const View* const inputs[] = {&a.q, &a.k, &a.v, &a.weight, &a.decay, &a.beta};
        const int64_t row[] = {G * K, G * K, H * V, H * M, H, H};
        for (int i = 0; i < 6; ++i)
            if (*inputs[i]) c.holes(*inputs[i], a.line.mask, B * L, row[i]);
    }
    c.run([&](int threads) { a.threads = threads, kernels.log_linear(a); });
    finite(a.y, B * L * H * V), finite(a.last, B * H * M * K * V);
    keep(c);
    LogLinearGrad g{};
    g.gy = c.in({B, L, H, V}, type);
    g.gq = c.out({B, L, G, K}, type), g.gk = c.out({B, L, G, K}, type), g.gv = c.out({B, L, H, V}, type), g.gweight = c.out({B, L, H, M}, type);
    g.gdecay = c.out({B, L, H}, type);
    if (delta) g.gbeta = c.out({B, L, H}, type);
    if (L != 2) g.glast = c.in({B, H, M, K, V}), g.gstate = c.out({B, H, M, K, V});
    const int64_t tiles = (H / G + kHeads - 1) / kHeads;
    if (tiles > 1) g.part_q = c.out({B * G * tiles, L, K}), g.part_k = c.out({B * G * tiles, L, K});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.log_linear_backward(g); });
    finite(g.gq, B * L * G * K), finite(g.gk, B * L * G * K), finite(g.gv, B * L * H * V), finite(g.gweight, B * L * H * M);
    finite(g.gdecay, B * L * H);
    if (delta) finite(g.gbeta, B * L * H);
    if (g.gstate) finite(g.gstate, B * H * M * K * V);
}

void mesa_case(const Kernels& kernels, int64_t B, int64_t L, int64_t H, int64_t K, int64_t V, bool timeline, int32_t type) {
    Case c;
    Mesa a{};
    a.batch = B, a.length = L, a.heads = H, a.keys = K, a.width = V, a.iterations = 30;
    a.line = c.line(timeline, B, L, false);
    a.q = c.in({B, L, H, K}, type), a.k = c.in({B, L, H, K}, type), a.v = c.in({B, L, H, V}, type);
    a.beta = c.in({B, L, H}, type, 0, 1), a.decay = c.in({B, L, H}, type, -4, 0), a.ridge = c.in({H, K}, kFloat, 1, 2);
    a.G = c.in({B, H, K, K}, kFloat, 0, 0.01f), a.S = c.in({B, H, K, V});
    a.y = c.out({B, L, H, V}, type), a.G_last = c.out({B, H, K, K}), a.S_last = c.out({B, H, K, V});
    a.x = c.out({B, L, H, K});
    if (timeline) {
        const View* const inputs[] = {&a.q, &a.k, &a.v, &a.beta, &a.decay};
        const int64_t row[] = {H * K, H * K, H * V, H, H};
        for (int i = 0; i < 5; ++i) c.holes(*inputs[i], a.line.mask, B * L, row[i]);
    }
    c.run([&](int threads) { a.threads = threads, kernels.mesa(a); });
    finite(a.y, B * L * H * V), finite(a.G_last, B * H * K * K), finite(a.S_last, B * H * K * V);
    keep(c);
    MesaGrad g{};
    g.gy = c.in({B, L, H, V}, type), g.gG_last = timeline ? View{} : c.in({B, H, K, K}), g.gS_last = c.in({B, H, K, V});
    g.gq = c.out({B, L, H, K}, type), g.gk = c.out({B, L, H, K}, type), g.gv = c.out({B, L, H, V}, type), g.gbeta = c.out({B, L, H}, type);
    g.gdecay = c.out({B, L, H}, type), g.gridge = c.out({H, K}), g.gG = c.out({B, H, K, K}), g.gS = c.out({B, H, K, V});
    g.part_ridge = c.out({B, H, K});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.mesa_backward(g); });
    finite(g.gq, B * L * H * K), finite(g.gk, B * L * H * K), finite(g.gv, B * L * H * V), finite(g.gbeta, B * L * H);
    finite(g.gdecay, B * L * H), finite(g.gridge, H * K), finite(g.gG, B * H * K * K), finite(g.gS, B * H * K * V);
}

void slstm_case(const Kernels& kernels, int64_t B, int64_t L, int64_t H, int64_t P, bool timeline, int32_t type) {
    Case c;
    Slstm a{};
    a.batch = B, a.length = L, a.heads = H, a.cells = P;
    a.line = c.line(timeline, B, L, false);
    a.gates = c.in({B, L, 4, H, P}, type), a.R = c.in({4, H, P, P}, kFloat, -0.1f, 0.1f), a.state = c.in({4, B, H, P}, kFloat, 0.5f, 1);
    a.y = c.out({B, L, H, P}, type), a.last = c.out({4, B, H, P});
    if (timeline) c.holes(a.gates, a.line.mask, B * L, 4 * H * P);
    auto forward = [&](int threads) { a.threads = threads, kernels.slstm(a); };
    c.run(forward);
    finite(a.y, B * L * H * P), finite(a.last, 4 * B * H * P);
    a.raw = c.out({B, L, 4, H, P}), a.chunks = c.out({B, (L + kChunk - 1) / kChunk, 4, H, P});
    c.run(forward);
    keep(c);
    SlstmGrad g{};
    g.gy = c.in({B, L, H, P}, type), g.glast = c.in({4, B, H, P}), g.ggates = c.out({B, L, 4, H, P}, type);
    const int64_t blocks = (B + kTogether - 1) / kTogether;
    g.gR = c.out({blocks, 4, H, P, P}), g.gstate = c.out({4, B, H, P});
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.slstm_backward(g); });
    finite(g.ggates, B * L * 4 * H * P), finite(g.gR, blocks * 4 * H * P * P), finite(g.gstate, 4 * B * H * P);
}

void diagonal_case(const Kernels& kernels, int64_t B, int64_t L, int64_t M, bool one_a, int32_t a_type, int32_t type, bool timeline) {
    Case c;
    DiagonalScan a{};
    a.batch = B, a.length = L, a.width = M;
    a.line = c.line(timeline, B, L, false);
    const int32_t state = type == kComplex ? kComplex : kFloat;
    a.a = c.in({one_a ? 1 : B, one_a ? 1 : L, M}, a_type, -0.6f, 0.6f);
    if (one_a) a.a.stride[0] = a.a.stride[1] = 0;
    a.b = c.in({B, L, M}, type), a.state = c.in({B, M}, state), a.reset_to = timeline ? c.in({B, M}, state) : View{};
    a.h = c.out({B, L, M}, type), a.last = c.out({B, M}, state);
    if (timeline) c.holes(a.b, a.line.mask, B * L, M);
    c.run([&](int threads) { a.threads = threads, kernels.diagonal_scan(a); });
    const int64_t parts = type == kComplex ? 2 : 1;
    finite(a.h, B * L * M * parts), finite(a.last, B * M * parts);
    keep(c);
    DiagonalScanGrad g{};
    g.gh = c.in({B, L, M}, type), g.glast = c.in({B, M}, state), g.gb = c.out({B, L, M}, type), g.gstate = c.out({B, M}, state);
    if (timeline) g.greset = c.out({B, M}, state), g.previous = c.out({B, L});
    g.part_a = c.out({B, one_a ? 1 : L, M}, a_type == kComplex ? kComplex : kFloat);
    if (one_a) g.part_a.stride[1] = 0;
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.diagonal_scan_backward(g); });
    finite(g.gb, B * L * M * parts), finite(g.gstate, B * M * parts);
}

void product_case(const Kernels& kernels, int64_t rows, int64_t out, int64_t in, int32_t type) {
    Case c;
    Product p{};
    p.rows = rows;
    p.matrix.out = out, p.matrix.in = in;
    p.matrix.weight = c.in({out, in}, type), p.matrix.bias = c.in({out});
    p.x = c.in({rows, in}), p.y = c.out({rows, out});
    c.run([&](int threads) { p.threads = threads, kernels.product(p); });
    finite(p.y, rows * out);
}

// The weight as product_quantised.h says; its product, and its numbers.
void quantised_case(const Kernels& kernels, int64_t rows, int64_t out, int64_t in, int64_t group, int32_t type) {
    Case c;
    const int64_t tiles = (out + 15) / 16, groups = (in + group - 1) / group;
    Product p{};
    p.rows = rows;
    p.matrix.out = out, p.matrix.in = in, p.matrix.group = group;
    p.matrix.weight = c.in({tiles, groups * group * (type == kInt4 ? 1 : 2) / 8, 16, 4}, type);
    p.matrix.scale = c.in({tiles, groups, 16}, kBFloat16), p.matrix.bias = c.in({out});
    p.x = c.in({rows, in}), p.y = c.out({rows, out});
    Dequantize d{1, p.matrix, c.out({out, in})};
    c.run([&](int threads) { p.threads = d.threads = threads, kernels.product(p), kernels.dequantize(d); });
    finite(p.y, rows * out), finite(d.y, out * in);
}

void gemm_case(const Kernels& kernels, int64_t rows, int64_t columns, int64_t depth, bool turn_a, bool turn_b, bool bias) {
    Case c;
    Gemm a{};
    a.rows = rows, a.columns = columns, a.depth = depth;
    a.a = turn_a ? c.in({depth, rows}) : c.in({rows, depth}), a.b = turn_b ? c.in({columns, depth}) : c.in({depth, columns});
    if (turn_a) a.a.stride[0] = 1, a.a.stride[1] = rows;
    if (turn_b) a.b.stride[0] = 1, a.b.stride[1] = depth;
    if (bias) a.bias = c.in({columns});
    a.c = c.out({rows, columns});
    c.run([&](int threads) { a.threads = threads, kernels.gemm(a); });
    finite(a.c, rows * columns);
}

void norm_case(const Kernels& kernels, int64_t rows, int64_t width, int64_t groups, int gate, int32_t type) {
    Case c;
    RmsNorm a{};
    a.rows = rows, a.width = width, a.groups = groups, a.block = 8, a.eps = 1e-5f, a.gate_last = gate == 2;
    a.x = c.in({rows, width}, type), a.y = c.out({rows, width}, type);
    if (gate > 0) a.z = c.in({rows, width}, type);
    if (gate != 1) a.weight = c.in({width}, type);
    c.run([&](int threads) { a.threads = threads, kernels.rms_norm(a); });
    finite(a.y, rows * width);
    keep(c);
    RmsNormGrad g{};
    g.gy = c.in({rows, width}, type), g.gx = c.out({rows, width}, type), g.part = c.out({(rows + 7) / 8, width});
    if (a.z) g.gz = c.out({rows, width}, type);
    if (a.weight) g.gweight = c.out({width}, type);
    c.run([&](int threads) { a.threads = threads, g.forward = a, kernels.rms_norm_backward(g); });
    finite(g.gx, rows * width);
    if (a.z) finite(g.gz, rows * width);
    if (a.weight) finite(g.gweight, width);
}

void all(const Kernels& kernels) {
    for (int32_t type : {kFloat, kBFloat16})
        for (bool timeline : {false, true}) {
            running = "log_linear";  // long enough that its backward pass keeps the levels of a part of it only
            log_linear_case(kernels, 1, 2700, 1, 1, 3, 3, 14, true, timeline, type);
            for (int64_t length : {1, 2, 3, 65, 130}) {
                running = "selective_scan";
                scan_case(kernels, 1, length, 1, 1, 1, timeline, type, false);
                scan_case(kernels, 2, length, 9, 3, 1, timeline, type, true);
                scan_case(kernels, 1, length, 150, 16, 2, timeline, type, length != 3);
                scan_case(kernels, 1, length, 65, 33, 1, timeline, type, true);
                running = "causal_conv1d";
                conv_case(kernels, 1, length, 1, 1, timeline, type);
                conv_case(kernels, 2, length, 137, 4, timeline, type);
                conv_case(kernels, 1, length, 16, 7, timeline, type);
                running = "ssd";
                ssd_case(kernels, 1, length, 1, 1, 1, 1, timeline, type);
                ssd_case(kernels, 2, length, 10, 5, 9, 2, timeline, type);
                ssd_case(kernels, 1, length, 2, 24, 17, 1, timeline, type);
                running = "matrix_state";
                matrix_case(kernels, 1, length, 1, 1, 1, 1, 1, Decay::head, 'b', timeline, type);
                matrix_case(kernels, 2, length, 1, 4, 2, 5, 17, Decay::none, length % 2 == 0 ? '-' : 'b', timeline, type);
                matrix_case(kernels, 1, length, 3, 2, 1, 9, 70, Decay::head, 'b', timeline, type);
                matrix_case(kernels, 1, length, 2, 1, 1, 33, 24, Decay::channel, 'r', timeline, type);
                matrix_case(kernels, 1, length, 1, 1, 1, 34, 9, Decay::channel, '-', timeline, type);
                running = "mamba3";
                mamba3_case(kernels, 1, length, 1, 1, 1, 2, 1, 1, false, timeline, type);
                mamba3_case(kernels, 2, length, 1, 4, 2, 18, 40, 8, true, timeline, type);
                mamba3_case(kernels, 1, length, 4, 1, 1, 34, 35, 9, length != 3, timeline, type);
                mamba3_case(kernels, 2, length, 3, 2, 1, 16, 9, 0, length % 2 == 0, timeline, type);
                mamba3_case(kernels, 1, length, 7, 1, 1, 6, 20, 2, true, timeline, type);
                running = "log_linear";
                log_linear_case(kernels, 1, length, 1, 1, 1, 1, 1, false, timeline, type);
                log_linear_case(kernels, 2, length, 6, 1, 18, 9, 9, length % 2 == 0, timeline, type);
                log_linear_case(kernels, 1, length, 2, 2, 33, 40, 4, true, timeline, type);
                running = "mesa";
                mesa_case(kernels, 1, length, 1, 1, 1, timeline, type);
                mesa_case(kernels, 2, length, 2, 18, 9, timeline, type);
                mesa_case(kernels, 1, length, 1, 33, 40, timeline, type);
                running = "slstm";
                slstm_case(kernels, 1, length, 1, 1, timeline, type);
                slstm_case(kernels, 6, length, 2, 9, timeline, type);
                slstm_case(kernels, 3, length, 1, 24, timeline, type);
                running = "diagonal_scan";
                diagonal_case(kernels, 2, length, 131, false, type, type, timeline);
                diagonal_case(kernels, 2, length, 5, true, kFloat, kFloat, timeline);
                diagonal_case(kernels, 1, length, 67, length % 2 == 0, kComplex, kComplex, timeline);
                diagonal_case(kernels, 1, length, 9, false, kFloat, kComplex, timeline);
            }
        }
    running = "product";
    for (int32_t type : {kFloat, kBFloat16})
        for (int64_t rows : {1, 3, 9}) {
            product_case(kernels, rows, 1, 1, type);
            product_case(kernels, rows, 70, 33, type);
            product_case(kernels, rows, 130, 96, type);
        }
    for (int32_t type : {kInt8, kInt4})
        for (int64_t group : {64, 128, 256})
            for (int64_t rows : {1, 3, 15}) {
                quantised_case(kernels, rows, 1, 1, group, type);
                quantised_case(kernels, rows, 70, 300, group, type);
                quantised_case(kernels, rows, 128, 256, group, type);
            }
    running = "gemm";
    for (bool turn_a : {false, true})
        for (bool turn_b : {false, true}) {
            gemm_case(kernels, 1, 1, 1, turn_a, turn_b, false);
            gemm_case(kernels, 13, 33, 7, turn_a, turn_b, true);
            gemm_case(kernels, 25, 67, 800, turn_a, turn_b, true);
            gemm_case(kernels, 1540, 18, 5, turn_a, turn_b, false);
        }
    running = "rms_norm";
    for (int32_t type : {kFloat, kBFloat16})
        for (int gate : {0, 1, 2}) {
            norm_case(kernels, 1, 1, 1, gate, type);
            norm_case(kernels, 17, 35, 5, gate, type);
            norm_case(kernels, 9, 300, 2, gate, type);
            norm_case(kernels, 20, 64, 1, gate, type);
        }
}

}  // namespace
}  // namespace statescan

int main() {
    statescan::all(statescan::STATESCAN_ISA::table());
    if (statescan::failures == 0) std::puts("clean");
    return statescan::failures == 0 ? 0 : 1;
}
