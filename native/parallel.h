// Fixed tiles over the threads of the OpenMP runtime that is already in the process.
#pragma once
#include <cstdint>

namespace statescan {

using TileFn = void (*)(const void* context, int64_t tile, char* scratch);

// Calls fn(context, tile, scratch) for every tile (fewer than 2^32), on at most `threads` threads. `scratch` is 64-byte aligned, belongs to the thread and
// holds anything. A tile's work does not depend on the thread that does it, so results are the same bits at any number of threads.
void parallel(int threads, int64_t tiles, int64_t scratch_bytes, TileFn fn, const void* context);

// Memory that the calling thread keeps from call to call: for what the tiles of one call share.
char* shared_scratch(int64_t bytes);

// What a call to parallel() needs besides its context: a program of many calls runs their tiles in one parallel region.
struct Work {
    int64_t tiles, scratch;
    TileFn fn;
};

// Takes GOMP_parallel and its companions from the library at `path`, which must be loaded already; null searches the process.
bool find_openmp(const char* path);

}  // namespace statescan
