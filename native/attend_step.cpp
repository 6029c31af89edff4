// One position of softmax attention behind a cache. Entries that are not filled yet are zero and stand first.
#include "rows.h"

namespace statescan {
namespace STATESCAN_ISA {
namespace {

constexpr int64_t kPiece = 64;  // floats of an entry a tile of remember()

int64_t filled(const ProgramRun& run, const Attend& a, int64_t b) {
    const int64_t count = static_cast<int64_t>(run.workspace[b * run.program.stride + a.count]);
    return least(count, run.entries_before[a.keys]);
}

void add_scaled(float* y, const float* x, float by, int64_t width) {
    int64_t k = 0;
    for (; k + W <= width; k += W) store(y + k, load(y + k) + by * load(x + k));
    for (; k < width; ++k) y[k] += by * x[k];
}

}  // namespace

int64_t attend_scratch(const ProgramRun& run, const Attend& a) { return 4 * ceil_to(run.entries_before[a.keys] + 1, W) + 64; }

void attend(const ProgramRun& run, const Attend& a, int64_t tile, char* scratch) {
    const int64_t head = tile % a.heads, b = tile / a.heads, kv = head / (a.heads / a.kv_heads), entry = a.kv_heads * a.size;
    const int64_t entries = run.entries_before[a.keys], known = filled(run, a, b);
    const int64_t seen = a.window > 0 ? least(known, a.window - 1) : known;
    float* row = run.workspace + b * run.program.stride;
    const float* q = row + a.q + head * a.size;
    const int64_t first = (b * entries + entries - seen) * entry + kv * a.size;
    const float *keys = run.before[a.keys] + first, *values = run.before[a.values] + first;
    float *weights = Arena{scratch}.floats(ceil_to(seen + 1, W)), *y = row + a.y + head * a.size;
    float top = weights[seen] = a.scale * dot(q, row + a.k + kv * a.size, a.size);
    for (int64_t i = 0; i < seen; ++i) {
        weights[i] = a.scale * dot(q, keys + i * entry, a.size);
        if (weights[i] > top) top = weights[i];
    }
    for (int64_t i = seen + 1; i < ceil_to(seen + 1, W); ++i) weights[i] = -1e30f;
    float total = 0;
    for (int64_t i = 0; i <= seen; i += W) {
        const vf part = exp(load(weights + i) - top);
        store(weights + i, part);
        total += sum(part);
    }
    zero(y, a.size);
    for (int64_t i = 0; i < seen; ++i) add_scaled(y, values + i * entry, weights[i] / total, a.size);
    add_scaled(y, row + a.v + kv * a.size, weights[seen] / total, a.size);
}

int64_t remember_tiles(const ProgramRun& run, const Attend& a) { return run.rows * 2 * ((a.kv_heads * a.size + kPiece - 1) / kPiece); }

void remember(const ProgramRun& run, const Attend& a, int64_t tile) {
    const int64_t entry = a.kv_heads * a.size, pieces = (entry + kPiece - 1) / kPiece, piece = tile % pieces, b = tile / pieces / 2;
    const bool of_keys = tile / pieces % 2 == 0;
    const int64_t state = of_keys ? a.keys : a.values, old = run.entries_before[state], now = run.entries_after[state];
    if (now == 0) return;
    const int64_t from = piece * kPiece;
    const size_t bytes = static_cast<size_t>(4 * least(kPiece, entry - from));
    const float* before = run.before[state] + b * old * entry + from;
    float* after = run.after[state] + b * now * entry + from;
    const int64_t known = filled(run, a, b), kept = least(known, now - 1);
    if (before != after)
        for (int64_t i = 0; i < now - 1 - kept; ++i) memset(after + i * entry, 0, bytes);
    for (int64_t i = 0; i < kept; ++i) memcpy(after + (now - 1 - kept + i) * entry, before + (old - kept + i) * entry, bytes);
    memcpy(after + (now - 1) * entry, run.workspace + b * run.program.stride + (of_keys ? a.k : a.v) + from, bytes);
}

}  // namespace STATESCAN_ISA
}  // namespace statescan
