// A program that decodes one position of each row: instructions over fixed tiles. Activations are float32 rows of a workspace; `source`,
// `other`, `target` and the letters of a struct here are offsets into such a row, in floats; -1 is an absent one.
#pragma once
#include "kernels.h"

namespace statescan {

// Where a step of a row finds or leaves its numbers.
struct Operand {
    enum Space : int32_t { kNone, kPlace, kFixed, kBefore, kAfter };
    Space space = kNone;
    int64_t at = 0;      // offset in the workspace row, address of fixed numbers, or number of a state
    int64_t offset = 0;  // in a row of that state
    int64_t row = 0;     // numbers of a row of that state
    int64_t each = 0;    // 0: a number for every output; n: one for n outputs; -n: n numbers, again and again
};

// One step over a row: to = op(a, b) number by number, or one of the last few, which say what they do in rows.cpp.
struct RowStep {
    enum Op : int32_t {
        kAdd, kSubtract, kMultiply, kDivide, kMaximum, kUnlessEmpty,
        kCopy, kExp, kExpm1, kSigmoid, kSilu, kTanh, kSoftplus, kGelu, kGeluTanh, kRoot, kAbs, kCos, kSin,
        kSum, kTurn, kPhase, kPosition
    };
    Op op;
    int64_t width;
    Operand a, b, to;
    int64_t sizes[6] = {0, 0, 0, 0, 0, 0};
};

// One position of linear attention or the delta rule, S <- Diag(d) S + k u^T for each write, y = scale S^T q:
// u = value; with beta u = beta (value - S^T k), S decayed; with read the first write has no value and u = -S^T read, S not decayed.
struct MatrixStep {
    bool by_channel, transposed;  // a factor of decay a key channel, not a head; state (H, V, K): neither beta nor read
    float scale;
    int64_t heads, groups, keys, width, writes, queries;
    int64_t q, key, value, beta, decay, read, y;  // (queries, G, K), (writes, G, K), (writes, H, V), (writes, H), (H, 1 or K), (H, K), (queries, H, V)
    int64_t state;                                // (H, K, V)
};

// One position of softmax attention behind a cache of entries (kv_heads, size), the newest last.
struct Attend {
    float scale;
    int64_t heads, kv_heads, size, window;  // window: keys that a query sees; 0: all
    int64_t q, k, v, y, count;              // count: existing positions before this one
    int64_t keys, values;                   // states
};

struct Instruction {
    enum Kind : int32_t { kEmbed, kNorm, kLinear, kConv, kSelective, kSsd, kGatedNorm, kGatedUnit, kRows, kMatrix, kAttend, kRemember, kLevels, kMesa };
    Kind kind;
    int64_t source = 0, other = 0, target = 0, width = 0, groups = 1;
    bool add = false, gate_last = false;
    bool beside = false;  // reads nothing that the instruction before it writes, and may run along with it
    float eps = 0;
    Matrix matrix;  // of a product; its weight is also the table of an embedding and the weight of a norm
    int64_t blocks = 1, block_stride = 0;  // of a block-diagonal product: its blocks, each of in inputs, and their distance in the weight
    int64_t index = 0;  // of the scan, convolution, ssd, first step, matrix step, attention, log-linear or mesa layer
    int64_t count = 0;  // steps
};

constexpr int64_t kOutput = -1;  // target: the logits

struct Program {
    const Instruction* instructions;
    int64_t count, stride;  // stride: floats of a workspace row
    const CausalConv* convs;  // the Views of these five hold byte offsets into the workspace where an address is to come, and the
    const SelectiveScan* scans;  // number of a state where a state is to come
    const Ssd* ssds;
    const LogLinear* levels;  // before: the number of the state that counts positions
    const Mesa* mesas;
    const RowStep* steps;
    const MatrixStep* matrices;
    const Attend* attends;
};

struct ProgramRun {
    Program program;
    int threads;
    int64_t rows;
    const int64_t* ids;  // (rows,)
    float *workspace, *output;
    int64_t output_stride;
    float *const *before, *const *after;             // states
    const int64_t *entries_before, *entries_after;  // of a state that is a cache: its entries
};

}  // namespace statescan
