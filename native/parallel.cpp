// No -fopenmp and no libgomp of our own: the three entry points are looked up in the runtime that torch has loaded (GNU's, or LLVM's
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
Number team_size = nullptr;

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

struct Job {
    TileFn fn;
    const void* context;
    int64_t tiles, scratch_bytes;
};

// Decays underflow, and Intel's processors need a hundred cycles for a number below 1.2e-38: while a kernel runs such numbers are zeros.
struct NothingTiny {
#if defined(__SSE2__)
    const unsigned before = _mm_getcsr();
    NothingTiny() { _mm_setcsr(before | 0x8040); }
    ~NothingTiny() { _mm_setcsr(before); }
#endif
};

void work(const Job& job, int64_t member, int64_t team) {
    const NothingTiny guard;
    char* memory = scratch.get(job.scratch_bytes);
    const int64_t last = job.tiles * (member + 1) / team;
    for (int64_t tile = job.tiles * member / team; tile < last; ++tile) job.fn(job.context, tile, memory);
}

void member(void* data) { work(*static_cast<const Job*>(data), thread_number(), team_size()); }

}  // namespace

bool find_openmp(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) return false;
    auto parallel_fn = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
    auto number_fn = reinterpret_cast<Number>(dlsym(library, "omp_get_thread_num"));
    auto size_fn = reinterpret_cast<Number>(dlsym(library, "omp_get_num_threads"));
    if (parallel_fn == nullptr || number_fn == nullptr || size_fn == nullptr) return false;
    thread_number = number_fn;
    team_size = size_fn;
    gomp_parallel = parallel_fn;
    return true;
}

char* shared_scratch(int64_t bytes) { return shared.get(bytes); }

void parallel(int threads, int64_t tiles, int64_t scratch_bytes, TileFn fn, const void* context) {
    Job job{fn, context, tiles, scratch_bytes};
    if (threads > tiles) threads = static_cast<int>(tiles);
    if (threads <= 1 || gomp_parallel == nullptr) {
        work(job, 0, 1);
        return;
    }
    gomp_parallel(member, &job, static_cast<unsigned>(threads), 0);
}

}  // namespace statescan
