// No -fopenmp and no libgomp of our own: its entry points are looked up in the runtime that torch has loaded (GNU's, or LLVM's
// and Intel's, which export the same names). One runtime in the process means one pool of threads.
#include "parallel.h"

#include <dlfcn.h>

#include <cstdlib>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace statescan {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();
Parallel gomp_parallel = nullptr;
Number thread_number = nullptr;

struct Scratch {
    char* data = nullptr;
    int64_t size = 0;
    ~Scratch() { std::free(data); }
    char* get(int64_t bytes) {
        bytes = (bytes + 4095) / 4096 * 4096;
        if (bytes > size) {
            std::free(data);
            data = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
            if (data == nullptr) std::abort();
            size = bytes;
        }
        return data;
    }
};
thread_local Scratch scratch, shared;

// What is left of a thread's tiles: the first of them in the low half, the one behind the last in the high half.
struct alignas(64) Share {
    uint64_t tiles;
};

// A quarter of it, from the front for its owner and from the back for another thread; false where nothing is left.
bool take(Share& share, bool own, int64_t& first, int64_t& last) {
    uint64_t now = __atomic_load_n(&share.tiles, __ATOMIC_RELAXED), then;
    do {
        first = static_cast<int64_t>(now & 0xffffffff), last = static_cast<int64_t>(now >> 32);
        if (first == last) return false;
        const int64_t some = (last - first + 3) / 4;
        if (own) last = first + some; else first = last - some;
        then = own ? now + static_cast<uint64_t>(some) : now - (static_cast<uint64_t>(some) << 32);
    } while (!__atomic_compare_exchange_n(&share.tiles, &now, then, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

constexpr int kMost = 256;  // threads

struct Job {
    TileFn fn;
    const void* context;
    int64_t scratch_bytes;
    int threads;
    Share shares[kMost];
};

// Decays underflow, and Intel's processors need a hundred cycles for a number below 1.2e-38: while a kernel runs such numbers are zeros.
struct NothingTiny {
#if defined(__SSE2__)
    const unsigned before = _mm_getcsr();
    NothingTiny() { _mm_setcsr(before | 0x8040); }
    ~NothingTiny() { _mm_setcsr(before); }
#endif
};

// A thread's own tiles are neighbours, and the same ones from call to call: what lies together stays in one core's caches. Whoever has done his
// helps the others, because rows may be of different length and a core may be disturbed.
void work(Job& job, int member) {
    const NothingTiny guard;
    char* memory = scratch.get(job.scratch_bytes);
    for (int i = 0; i < job.threads; ++i)
        for (int64_t tile, last; take(job.shares[(member + i) % job.threads], i == 0, tile, last);)
            for (; tile < last; ++tile) job.fn(job.context, tile, memory);
}

void member(void* data) { work(*static_cast<Job*>(data), thread_number()); }

}  // namespace

bool find_openmp(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return false;
    auto parallel_fn = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
    auto number_fn = reinterpret_cast<Number>(dlsym(library, "omp_get_thread_num"));
    if (parallel_fn == nullptr || number_fn == nullptr) return false;
    thread_number = number_fn;
    gomp_parallel = parallel_fn;
    return true;
}

char* shared_scratch(int64_t bytes) { return shared.get(bytes); }

void parallel(int threads, int64_t tiles, int64_t scratch_bytes, TileFn fn, const void* context) {
    if (threads > tiles) threads = static_cast<int>(tiles);
    if (threads > kMost) threads = kMost;
    if (threads < 1 || gomp_parallel == nullptr) threads = 1;
    Job job;
    job.fn = fn, job.context = context, job.scratch_bytes = scratch_bytes, job.threads = threads;
    for (int i = 0; i < threads; ++i)
        job.shares[i].tiles = static_cast<uint64_t>(tiles * (i + 1) / threads) << 32 | static_cast<uint64_t>(tiles * i / threads);
    if (threads == 1) work(job, 0);
    else gomp_parallel(member, &job, static_cast<unsigned>(threads), 0);
}

}  // namespace statescan
