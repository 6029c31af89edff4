// What the kernels take: raw pointers with strides, nothing else. The Python gate keeps the tensors alive and checks the shapes.
#pragma once
#include <cstdint>

// Forced inline: a copy compiled for a newer processor must not become the one that every instruction set calls.
#define STATESCAN_INLINE inline __attribute__((always_inline))

namespace statescan {

enum Type : int32_t { kFloat = 0, kBFloat16 = 1, kBool = 2, kComplex = 3, kInt8 = 4, kInt4 = 5 };

// A tensor: strides in elements; the last axis is contiguous unless a kernel says otherwise. data is null for an absent tensor.
struct View {
    char* data = nullptr;
    int32_t type = kFloat;
    int64_t stride[5] = {0, 0, 0, 0, 0};

    STATESCAN_INLINE explicit operator bool() const { return data != nullptr; }
    STATESCAN_INLINE int64_t bytes() const { return type == kFloat ? 4 : type == kBFloat16 ? 2 : type == kComplex ? 8 : 1; }
    STATESCAN_INLINE char* at(int64_t i, int64_t j = 0, int64_t k = 0, int64_t l = 0) const {
        return data + (i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3]) * bytes();
    }
    STATESCAN_INLINE float* f(int64_t i, int64_t j = 0, int64_t k = 0, int64_t l = 0) const { return reinterpret_cast<float*>(at(i, j, k, l)); }
    STATESCAN_INLINE bool flag(int64_t i, int64_t j) const { return *at(i, j) != 0; }
};

struct Line {  // the timeline; an absent interval tensor means the number
    View reset, mask, interval;
    float unit = 1;

    STATESCAN_INLINE bool resets(int64_t b, int64_t t) const { return reset && reset.flag(b, t); }
    STATESCAN_INLINE bool exists(int64_t b, int64_t t) const { return !mask || mask.flag(b, t); }
    STATESCAN_INLINE float time(int64_t b, int64_t t) const { return interval ? *interval.f(b, t) : unit; }
};

constexpr int64_t kChunk = 64;      // positions between two saved states, in every op but
constexpr int64_t kScanChunk = 32;  // the selective scan, whose backward makes so much of a position that a chunk must be short to stay in the cache
constexpr int64_t kTile = 64;       // channels a tile
constexpr int64_t kHeads = 4;       // heads a tile of ssd and log_linear
constexpr int64_t kTogether = 4;    // rows of the batch a tile of slstm

struct SelectiveScan {
    int threads;
    bool softplus;
    int64_t batch, length, width, n, groups;
    View x, delta, A, B, C, D, z, bias, state, reset_to;
    Line line;
    View y, last, chunks;  // chunks: (B, chunks, N, E), may be absent
    View weight;           // (E, rank) float, may be absent: else delta is (B, L, rank) float and the raw steps are its product with this
    int64_t rank;
};

struct SelectiveScanGrad {
    SelectiveScan forward;
    View gy, glast;                                                                  // glast may be absent
    View gx, gdelta, gA, gB, gC, gD, gz, gbias, gstate, greset, ginterval;           // outputs; gD, gz, gbias, greset, ginterval may be absent
    View part_B, part_C, part_A, part_D, part_bias, part_interval;                   // temporaries, see selective_scan_backward.cpp
};

struct CausalConv {
    int threads;
    bool silu;
    int64_t batch, length, width, taps;
    View x, weight, bias, state;  // weight: (K, E) float, one row a tap
    Line line;
    View source;  // temporary int32 (B, L + 1, K) or absent: see causal_conv1d.cpp
    View y, last;
};

struct CausalConvGrad {
    CausalConv forward;
    View gy, glast;
    View gx, gweight, gbias, gstate;  // gweight: (K, E)
    View part;                        // temporary (B, K + 1, E)
};

struct Ssd {
    int threads;
    bool softplus;
    float low, high;
    int64_t batch, length, heads, p, n, groups;
    View x, delta, A, B, C, D, bias, state, reset_to;
    Line line;
    View y, last, chunks;  // chunks: (B, chunks, H, N, P), may be absent
};

struct SsdGrad {
    Ssd forward;
    View gy, glast;
    View gx, gdelta, gA, gB, gC, gD, gbias, gstate, greset, ginterval;
    View part_B, part_C, part_A, part_D, part_bias, part_interval;
};

struct MatrixState {  // linear attention (neither beta nor read) and the delta rule
    int threads;
    bool by_channel;  // one decay a key channel, not a head
    float scale;
    int64_t batch, length, writes, heads, groups, keys, width;
    View q, key, value, beta, decay, read, state;  // (B, L, G, K), (B, L, n, G, K), (B, L, n, H, V), (B, L, n, H), (B, L, H, 1 or K), (B, L, n, H, K)
    Line line;
    View y, last, chunks;  // chunks: (B, chunks, H, K, V), may be absent
};

struct MatrixStateGrad {
    MatrixState forward;
    View gy, glast;  // glast may be absent
    View gq, gkey, gvalue, gbeta, gdecay, gread, gstate;
    View part_q, part_key;  // temporaries (B, L, H, K), (B, L, n, H, K), absent where every head has keys of its own
};

struct Mamba3 {
    int threads;
    int64_t batch, length, rank, heads, groups, keys, width, angles;
    View q, k, v, z;                                       // (B, L, R, G, N), the same, (B, L, H, P), the same or absent; halves of N turn
    View log_decay, delta, mix, speed;                          // float32 (B, L, H), three times; (B, L, T)
    View q_bias, k_bias, D, v_weight, z_weight, y_weight;       // float32 (H, R, N), twice; (H,); (H, R, P), may be absent
    View angle, ssm, last_k, last_v;                            // float32 (B, H, T), (B, H, P, N), (B, R, H, N), (B, H, P)
    Line line;
    View y;                                                     // (B, L, H, P); without z (B, L, R, H, P)
    View angle_last, ssm_last, k_last, v_last;                  // as the incoming ones
};

struct Mamba3Grad {
    Mamba3 forward;
    View gy, gangle_last, gssm_last, gk_last, gv_last;  // all but gy may be absent
    View gq, gk, gv, gz;                                // float32 (B, L, R, H, N), the same, (B, L, H, P), the same or absent
    View glog_decay, gdelta, gmix, gspeed;              // float32 (B, L, H), three times; (B, L, H, T)
    View gq_bias, gk_bias, gD;                          // float32 (B, H, R, N), twice; (B, H)
    View gv_weight, gz_weight, gy_weight;               // float32 (B, H, R, P), may be absent
    View gangle, gssm, glast_k, glast_v;                // as the incoming ones
};

struct LogLinear {
    int threads;
    float scale;
    int64_t batch, length, heads, groups, keys, width, levels;
    View q, k, v, weight, decay, beta, state;  // (B, L, G, K), twice; (B, L, H, V); (B, L, H, M); (B, L, H); the same, may be absent; (B, H, M, K, V)
    const int64_t* before;                     // (B,): positions before the call in each row's document
    Line line;
    View y, last;
};

struct LogLinearGrad {
    LogLinear forward;
    View gy, glast;  // glast may be absent
    View gq, gk, gv, gweight, gdecay, gbeta, gstate;  // gbeta is absent where beta is; gstate may be
    View part_q, part_k;                              // temporaries (tiles, L, K), absent where a tile has all heads of a group
};

struct Mesa {
    int threads;
    int64_t iterations, batch, length, heads, keys, width;
    View q, k, v, beta, decay, ridge, G, S;  // (B, L, H, K), twice; (B, L, H, V); (B, L, H), twice; (H, K); (B, H, K, K); (B, H, K, V)
    Line line;
    View y, G_last, S_last;
    View x;  // (B, L, H, K): the solutions, for the backward; may be absent
};

struct MesaGrad {
    Mesa forward;
    View gy, gG_last, gS_last;  // those of the last matrices may be absent
    View gq, gk, gv, gbeta, gdecay, gridge, gG, gS;
    View part_ridge;  // temporary (B, H, K)
};

struct Slstm {
    int threads;
    int64_t batch, length, heads, cells;
    View gates, R, state;  // (B, L, 4, H, P), (4, H, P, P), (4, B, H, P): h, c, n, m
    Line line;
    View y, last, raw, chunks;  // raw: (B, L, 4, H, P), what the nonlinearities saw; chunks: (B, chunks, 4, H, P); both may be absent
};

struct SlstmGrad {
    Slstm forward;
    View gy, glast;          // glast may be absent
    View ggates, gR, gstate;  // gR: (blocks of the batch, 4, H, P, P), to be added up
};

struct DiagonalScan {
    int threads;
    int64_t batch, length, width;  // width counts numbers of the input's kind
    View a, b, state, reset_to;
    Line line;
    View h, last;
};

struct DiagonalScanGrad {
    DiagonalScan forward;
    View previous;  // temporary int32 (B, L) or absent: see diagonal_scan.cpp
    View gh, glast;
    View gb, gstate, greset;
    View part_a;  // (B, L or 1, M): the gradient of a before the sum over what it is broadcast over; float or complex
};

// A weight (out, in) for products with a few rows. Quantised, with a group: bytes and scales as product_quantised.h says, contiguous.
struct Matrix {
    int64_t out = 0, in = 0, group = 0;
    View weight, scale, bias;  // bias may be absent
};

struct ProgramRun;  // see program.h

struct RmsNorm {
    int threads;
    bool gate_last;  // the gate multiplies the norm's output, not its input
    float eps;
    int64_t rows, width, groups, block;  // block: rows a tile
    View x, weight, z, y;                // (rows, width) and (width,); weight and z may be absent
};

struct RmsNormGrad {
    RmsNorm forward;
    View gy, gx, gweight, gz;  // gweight and gz are absent where weight and z are
    View part;                 // temporary (blocks, width)
};

// A product of rows of activations alone.
struct Product {
    int threads;
    int64_t rows;
    Matrix matrix;
    View x, y;  // (rows, in), (rows, out): float32
};

// A quantised weight as numbers: y (out, in), float32.
struct Dequantize {
    int threads;
    Matrix matrix;
    View y;
};

// A product of large matrices: c = a b + bias. One of the two strides of a is 1, and of b.
struct Gemm {
    int threads;
    int64_t rows, columns, depth;
    View a, b, bias, c;  // (rows, depth), (depth, columns), (columns,) or absent, (rows, columns): float32
};

// Contiguous double-precision complex arrays: c, d, b (D, M); p, q (D, R, M). k is (D, L).
struct DplrKernel {
    int threads;
    int64_t width, modes, rank, length;
    const double *c, *d, *p, *q, *b;
    double* k;
};

struct DplrKernelGrad {
    DplrKernel forward;
    const double* gk;
    double *gc, *gd, *gp, *gq, *gb;
};

struct Kernels {
    void (*selective_scan)(const SelectiveScan&);
    void (*selective_scan_backward)(const SelectiveScanGrad&);
    void (*causal_conv1d)(const CausalConv&);
    void (*causal_conv1d_backward)(const CausalConvGrad&);
    void (*ssd)(const Ssd&);
    void (*ssd_backward)(const SsdGrad&);
    void (*matrix_state)(const MatrixState&);
    void (*matrix_state_backward)(const MatrixStateGrad&);
    void (*mamba3)(const Mamba3&);
    void (*mamba3_backward)(const Mamba3Grad&);
    void (*log_linear)(const LogLinear&);
    void (*log_linear_backward)(const LogLinearGrad&);
    void (*mesa)(const Mesa&);
    void (*mesa_backward)(const MesaGrad&);
    void (*slstm)(const Slstm&);
    void (*slstm_backward)(const SlstmGrad&);
    void (*diagonal_scan)(const DiagonalScan&);
    void (*diagonal_scan_backward)(const DiagonalScanGrad&);
    void (*product)(const Product&);
    void (*dequantize)(const Dequantize&);
    void (*gemm)(const Gemm&);
    void (*run_program)(const ProgramRun&);
    void (*rms_norm)(const RmsNorm&);
    void (*rms_norm_backward)(const RmsNormGrad&);
    void (*dplr_kernel)(const DplrKernel&);
    void (*dplr_kernel_backward)(const DplrKernelGrad&);
};

namespace baseline { Kernels table(); }
namespace avx2 { Kernels table(); }
namespace avx512 { Kernels table(); }

}  // namespace statescan
