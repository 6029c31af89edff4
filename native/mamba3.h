// Shared by the forward and the backward of Mamba-3: a head's keys and queries, made in scratch from the rows of the projections and the angles.
#pragma once
#include "simd.h"

namespace statescan {
namespace STATESCAN_ISA {

// The angles of a head, and keys that turn by them. Halves of a key take `half` floats each, whole vectors; zeros fill them up.
struct Turns {
    const Mamba3& a;
    int64_t b, head, group;
    int64_t half, turning;  // floats of half a key; how many pairs turn
    float *sin, *cos, *raw;
    double* phase;

    Turns(const Mamba3& a, int64_t tile) : a(a), b(tile / a.heads), head(tile % a.heads), group(head / (a.heads / a.groups)) {
        half = ceil_to(a.keys / 2, W);
        turning = a.angles;
    }
    void load_key(const char* row, int32_t type, float* out) const {
        const int64_t n = a.keys / 2, size = type == kFloat ? 4 : 2;
        load_row(row, type, n, out);
        load_row(row + n * size, type, n, out + half);
    }
    void store_key(const float* in, char* row) const {
        const int64_t n = a.keys / 2;
        store_row(row, kFloat, n, in);
        store_row(row + n * 4, kFloat, n, in + half);
    }
    // Where the state n stands in a key.
    int64_t key_row(int64_t n) const { return n < a.keys / 2 ? n : n - a.keys / 2 + half; }
    // The rotated sum of a projection's row and its bias.
    void turn(const char* row, int32_t type, const float* bias, float* out) const {
        const float* in = reinterpret_cast<const float*>(row);
        if (type != kFloat || 2 * half != a.keys) {
            load_key(row, type, raw);
            in = raw;
        }
        for (int64_t i = 0; i < half; i += W) {
            const vf one = load(in + i) + load(bias + i), two = load(in + half + i) + load(bias + half + i);
            const vf s = load(sin + i), c = load(cos + i);
            store(out + i, one * c - two * s);
            store(out + half + i, one * s + two * c);
        }
    }
    static double within_a_turn(double p) {
        const double rest = p - 6.283185307179586476925 * __builtin_floor(p * 0.15915494309189533577);
        return rest < 0 ? 0 : rest;
    }
    void begin() const {
        for (int64_t i = 0; i < half; ++i) {
            sin[i] = 0, cos[i] = 1;
            phase[i] = i < turning ? within_a_turn(static_cast<double>(a.angle.f(b, head)[i])) : 0;
        }
    }
    void advance(int64_t t, float delta) const {
        const float* speed = a.speed.f(b, t);
        for (int64_t i = 0; i < turning; ++i) phase[i] = within_a_turn(phase[i] + static_cast<double>(speed[i]) * static_cast<double>(delta));
        aim();
    }
    // Sines and cosines of the phases.
    void aim() const {
        for (int64_t i = 0; i < turning; ++i) raw[i] = static_cast<float>(phase[i]);
        for (int64_t i = 0; i < turning; i += W) {
            vf s, c;
            sincos(load(raw + i), s, c);
            store(sin + i, s);
            store(cos + i, c);
        }
        for (int64_t i = turning; i < ceil_to(turning, W); ++i) sin[i] = 0, cos[i] = 1;  // the vector's rest does not turn
    }
};

}  // namespace STATESCAN_ISA
}  // namespace statescan
