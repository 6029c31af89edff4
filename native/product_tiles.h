// Several rows with AMX, for product_quantised.h. A tile of the weight, 64 inputs of 16 outputs, lies as the instruction reads it; a tile of
// activations is h and then l of so many rows, 64 bytes of a group each. The sums are integers, so the bits are those of product_bytes.h.
#pragma once
#include "simd.h"

#if defined(__AVX512VNNI__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

constexpr int64_t kDepth = 64;  // inputs a tile, of which a group has whole ones; bytes of a row of each tile

// Whether the processor has tiles of bytes and the system lets this process use them.
static inline bool have_tiles() {
    static const bool have = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3) != 3) return false;  // AMX-TILE and AMX-INT8
        constexpr long kAskForState = 0x1023, kTileData = 18;
        return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
    }();
    return have;
}

// Fewer rows wait for the weight anyhow.
static inline bool by_tiles(int64_t together) { return together >= 4 && have_tiles(); }

// W numbers of a row of a group; l comes `plane` bytes after h.
STATESCAN_INLINE void put_apart(vi v, char* to, int64_t plane) {
    typedef int8_t quarter __attribute__((vector_size(W)));
    const vi h = (v + 128) >> 8;
    const quarter first = __builtin_convertvector(h, quarter), second = __builtin_convertvector(v - (h << 8), quarter);
    memcpy(to, &first, sizeof first);
    memcpy(to + plane, &second, sizeof second);
}

// Shapes this thread's tiles, for so many rows, if any, while it lives: 0 sums, 1 activations, 2 weights.
struct Tiles {
    const bool used;
    explicit Tiles(int rows) : used(rows > 0) {
        if (!used) return;
        alignas(64) struct {
            uint8_t palette, start, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } shape = {};
        shape.palette = 1;
        for (int i = 0; i < 3; ++i) shape.bytes[i] = 64, shape.rows[i] = static_cast<uint8_t>(i == 2 ? 16 : 2 * rows);
        asm volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~Tiles() {
        if (used) asm volatile("tilerelease");
    }
};

// A group's bytes, low halves and then high ones.
STATESCAN_INLINE void take_apart(const char* q, int64_t bytes, char* to) {
    for (int64_t k = 0; k < bytes; k += 64) {
        vub v;
        memcpy(&v, q + k, sizeof v);
        const vub low = v & 15, high = (vub)_mm512_srli_epi16((__m512i)v, 4) & 15;
        memcpy(to + k, &low, sizeof low);
        memcpy(to + bytes + k, &high, sizeof high);
    }
}

// The sums of one group: h of each row, then l.
template <bool nibbles>
STATESCAN_INLINE void tile_sums(const char* x, const char* weight, int64_t group, int32_t (*sums)[16]) {
    asm volatile("tilezero %%tmm0" ::: "memory");
    for (int64_t k = 0; k < group; k += kDepth) {
        asm volatile("tileloadd (%0,%1,1), %%tmm1" ::"r"(x + k), "r"(group) : "memory");
        asm volatile("tileloadd (%0,%1,1), %%tmm2" ::"r"(weight + 16 * k), "r"(kDepth) : "memory");
        if (nibbles) asm volatile("tdpbsud %%tmm2, %%tmm1, %%tmm0" ::: "memory");
        else asm volatile("tdpbssd %%tmm2, %%tmm1, %%tmm0" ::: "memory");
    }
    asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(sums), "r"(kDepth) : "memory");
}

// As dots(), for activations that lie in planes. What tiles read, and what is read of them, must have reached the cache: so a group's bytes are taken
// apart two groups ahead, and its products made one ahead.
template <bool nibbles, int R>
STATESCAN_INLINE void tile_dots(const char* q, const char* scale, const Activations& a, int64_t count, int64_t group, bool ask, float (*sums)[16]) {
    const int64_t bytes = nibbles ? 8 * group : 16 * group;
    alignas(64) char apart[2][nibbles ? 256 * 16 : 64];
    alignas(64) int32_t dot[2][2 * R][16];
    vf total[R] = {};
    for (int64_t g = -2; g < count; ++g) {
        if (g + 1 >= 0 && g + 1 < count) {
            const char* weight = nibbles ? apart[(g + 1) % 2] : q + (g + 1) * bytes;
            tile_sums<nibbles>(a.numbers + (g + 1) * 2 * R * group, weight, group, dot[(g + 1) % 2]);
        }
        if (g + 2 < count) {
            const char* coming = q + (g + 2) * bytes;
            for (int64_t k = 0; ask && k < bytes; k += 64) __builtin_prefetch(coming + kAhead + k, 0, 2);
            if (nibbles) take_apart(coming, bytes, apart[(g + 2) % 2]);
        }
        if (g < 0) continue;
        const vf s = from_bf16(scale + 32 * g);
        for (int i = 0; i < R; ++i) {
            vi h, l;
            memcpy(&h, dot[g % 2][i], sizeof h);
            memcpy(&l, dot[g % 2][R + i], sizeof l);
            if (nibbles) l -= a.offset[g * R + i];
            total[i] += __builtin_convertvector((h << 8) + l, vf) * (s * a.step[g * R + i]);
        }
    }
    for (int i = 0; i < R; ++i) store(sums[i], total[i]);
}

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
#else
namespace statescan {
namespace STATESCAN_ISA {
namespace quantised {

STATESCAN_INLINE bool by_tiles(int64_t) { return false; }
STATESCAN_INLINE void put_apart(vi, char*, int64_t) {}
struct Tiles {
    explicit Tiles(int) {}
};
template <bool nibbles, int R>
void tile_dots(const char*, const char*, const Activations&, int64_t, int64_t, bool, float (*)[16]) {}

}  // namespace quantised
}  // namespace STATESCAN_ISA
}  // namespace statescan
#endif
