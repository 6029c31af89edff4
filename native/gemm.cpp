// A product of large matrices, as training and prompts have them: c (rows, columns) = a b + bias, sums in float32.
//
// A block of a is copied into panels of kRows rows, in the order in which they are read. Then each thread takes two vectors of columns of b at
// a time, copies those (its second-level cache holds them) and multiplies them with all panels of a, so that what of b is not in a cache is
// fetched between products. The order of a sum depends on nothing but the depth.
#include "small_products.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 sums of the 32 registers
#else
constexpr int kRows = 6;  // 12 of 16
#endif
constexpr int64_t kColumns = 2 * W;
constexpr int64_t kDepth = 768;
constexpr int64_t kChain = 128;   // numbers that are summed one after the other
constexpr int64_t kBlock = 1536;  // rows of a block: 4.7 MB, for the last cache
constexpr int64_t kShare = 4;     // tasks a thread, at least, so that all end at about the same time

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// A part of at most `most`, so that all are about equal.
int64_t even(int64_t whole, int64_t most) { return parts(whole, parts(whole, most)); }

struct Block {
    const Gemm& a;
    float* left;  // packed
    int64_t row, rows, first, depth;
    int64_t high;           // panels of rows a task
    int64_t taken, number;  // tasks that threads have begun, of how many

    int64_t panels() const { return parts(rows, kRows); }
};

// `width` lines of `depth` numbers, `across` apart, as (depth, panel), zeros behind the last line. Either lines or their numbers are contiguous.
// What comes a little later is asked for, here and in the panel that follows: lines are too short for the hardware to look ahead.
template <int64_t panel>
void pack(const float* from, int64_t across, int64_t along, int64_t width, int64_t depth, float* to) {
    constexpr int64_t line = 16, ahead = 64;
    if (width < panel) memset(to, 0, static_cast<size_t>(depth * panel) * sizeof(float));
    if (along == 1) {
        for (int64_t k = 0; k < depth; k += line) {
            const float* later = from + (k + ahead < depth ? k + ahead : panel * across + k + ahead - depth);
            for (int64_t i = 0; i < width; ++i) __builtin_prefetch(later + i * across);
            transpose(from + k, width, least(line, depth - k), across, to + k * panel, panel);
        }
        return;
    }
    for (int64_t k = 0; k < depth; ++k) {
        const float* later = from + (k + line < depth ? (k + line) * along : panel + (k + line - depth) * along);
        for (int64_t i = 0; i < panel; i += line) __builtin_prefetch(later + i);
        if (width == panel) memcpy(to + k * panel, from + k * along, panel * sizeof(float));
        else memcpy(to + k * panel, from + k * along, static_cast<size_t>(width) * sizeof(float));
    }
}

void pack_rows(Block& block, int64_t index, char*) {
    const View& a = block.a.a;
    const int64_t m = index * kRows;
    pack<kRows>(a.f(block.row + m, block.first), a.stride[0], a.stride[1], least(kRows, block.rows - m), block.depth, block.left + m * block.depth);
}

// M rows of a panel of a with V vectors of a panel of b, added to `begin` where it is given, else to c. Sums of kChain numbers are added up,
// because one long chain of additions would round twice as coarsely as other libraries.
template <int M, int V>
void sums(int64_t depth, const float* a, const float* b, const float* begin, float* c, int64_t ldc) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) __builtin_prefetch(c + m * ldc + v * W, 1);
    for (int64_t first = 0; first < depth; first += kChain) {
        const int64_t last = least(depth, first + kChain);
        vf s[M][V] = {};
        for (int64_t k = first; k < last; ++k) {
            vf right[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) right[v] = load(b + k * kColumns + v * W);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                const float left = a[k * kRows + m];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) s[m][v] += left * right[v];
            }
        }
        const bool begins = begin != nullptr && first == 0;
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                float* to = c + m * ldc + v * W;
                store(to, s[m][v] + load(begins ? begin + v * W : to));
            }
    }
}

// The same with `rows` and `columns` of them, through a tile of its own.
template <int M, int V>
void edge(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, const float* begin, float* c, int64_t ldc) {
    float tile[M * V * W];
    memset(tile, 0, sizeof tile);
    if (begin == nullptr)
        for (int64_t m = 0; m < rows; ++m) memcpy(tile + m * V * W, c + m * ldc, static_cast<size_t>(columns) * sizeof(float));
    sums<M, V>(depth, a, b, begin, tile, V * W);
    for (int64_t m = 0; m < rows; ++m) memcpy(c + m * ldc, tile + m * V * W, static_cast<size_t>(columns) * sizeof(float));
}

template <int V>
void edge_rows(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, const float* begin, float* c, int64_t ldc) {
    constexpr int third = kRows / 3;
    if (rows <= third) edge<third, V>(rows, columns, depth, a, b, begin, c, ldc);
    else if (rows <= 2 * third) edge<2 * third, V>(rows, columns, depth, a, b, begin, c, ldc);
    else edge<kRows, V>(rows, columns, depth, a, b, begin, c, ldc);
}

void multiply_columns(Block& block, int64_t index, char* scratch) {
    const View &b = block.a.b, &c = block.a.c;
    const int64_t down = parts(block.panels(), block.high), n = index / down * kColumns, columns = least(kColumns, block.a.columns - n);
    const int64_t top = index % down * block.high * kRows, bottom = least(block.rows, top + block.high * kRows);
    float* right = reinterpret_cast<float*>(scratch);
    pack<kColumns>(b.f(block.first, n), b.stride[1], b.stride[0], columns, block.depth, right);
    float zeros[kColumns];
    const float* begin = nullptr;
    if (block.first == 0) {
        memset(zeros, 0, sizeof zeros);
        if (block.a.bias) memcpy(zeros, block.a.bias.f(n), static_cast<size_t>(columns) * sizeof(float));
        begin = zeros;
    }
    for (int64_t m = top; m < bottom; m += kRows) {
        const int64_t rows = least(kRows, bottom - m);
        const float* a = block.left + m * block.depth;
        float* to = c.f(block.row + m, n);
        if (rows == kRows && columns == kColumns) sums<kRows, 2>(block.depth, a, right, begin, to, c.stride[0]);
        else if (columns > W) edge_rows<2>(rows, columns, block.depth, a, right, begin, to, c.stride[0]);
        else edge_rows<1>(rows, columns, block.depth, a, right, begin, to, c.stride[0]);
    }
}

// Threads take what comes next, because one that is disturbed should not be waited for.
template <void (*task)(Block&, int64_t, char*)>
void share(Block& block, int64_t number, int64_t scratch) {
    block.taken = 0, block.number = number;
    parallel(block.a.threads, least(block.a.threads, number), scratch, [](const void* context, int64_t, char* memory) {
        Block& shared = *static_cast<Block*>(const_cast<void*>(context));
        for (int64_t i; (i = __atomic_fetch_add(&shared.taken, 1, __ATOMIC_RELAXED)) < shared.number;) task(shared, i, memory);
    }, &block);
}

}  // namespace

void gemm(const Gemm& a) {
    const int64_t deep = even(a.depth, kDepth), across = parts(a.columns, kColumns);
    float* left = reinterpret_cast<float*>(shared_scratch(least(kBlock, ceil_to(a.rows, kRows)) * deep * 4));
    for (int64_t row = 0; row < a.rows; row += kBlock)
        for (int64_t first = 0; first < a.depth; first += deep) {
            Block block{a, left, row, least(kBlock, a.rows - row), first, least(deep, a.depth - first), 1, 0, 0};
            block.high = parts(block.panels(), least(block.panels(), parts(kShare * a.threads, across)));
            share<pack_rows>(block, block.panels(), 64);
            share<multiply_columns>(block, parts(block.panels(), block.high) * across, deep * kColumns * 4);
        }
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
