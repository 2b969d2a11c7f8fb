// SPDX-License-Identifier: Apache-2.0
// Pixels that are computed with at once, one in each lane. Included for each instruction set.
#pragma once

#include "convolution.hpp"
#include "simd.hpp"

namespace TERSOR_TARGET {
using namespace tersor;

using Eight = Vector<float, 8>;

// Lanes whose inputs, or outputs, are neighbours in memory.
struct Stretch {
    int lane, count;
    int64_t from;
};

template <int N>
struct Lanes {
    Stretch in[N], out[N];
    int ins = 0, outs = 0, count = 0;
    int64_t image[N] = {};
};

static inline void extend(Stretch* stretches, int& count, int lane, int64_t from) {
    if (count) {
        Stretch& last = stretches[count - 1];
        if (last.from + last.count == from) {
            ++last.count;
            return;
        }
    }
    stretches[count++] = {lane, 1, from};
}

// The lanes of pixels from `first` on, in a grid of oh x ow for each image: where their inputs are, in
// images of `image` numbers in rows of `row`, and their outputs, in images of `rows` channels.
template <int N>
static void find(const Window& s, int64_t image, int64_t row, int64_t rows, int64_t first, Lanes<N>& lanes) {
    const int64_t size = s.oh * s.ow;
    int64_t n = first / size, pixel = first % size, y = pixel / s.ow, x = pixel % s.ow;
    for (int lane = 0; lane < N && n < s.n; ++lane, ++lanes.count) {
        extend(lanes.in, lanes.ins, lane, n * image + y * s.stride_h * row + x * s.stride_w);
        extend(lanes.out, lanes.outs, lane, n * rows * size + y * s.ow + x);
        lanes.image[lane] = n;
        if (++x == s.ow) x = 0, ++y;
        if (y == s.oh) y = 0, ++n;
    }
}

static inline void copy(const float* from, int count, float* to) {
    using Four = Vector<float, 4>;
    if (count >= 8) {
        for (int i = 0; i + 8 < count; i += 8) store(to + i, load<Eight>(from + i));
        store(to + count - 8, load<Eight>(from + count - 8));
    } else if (count >= 4) {
        store(to, load<Four>(from));
        store(to + count - 4, load<Four>(from + count - 4));
    } else {
        for (int i = 0; i < count; ++i) to[i] = from[i];
    }
}

// One input of all lanes; zero in those that are not there.
template <int N>
static inline void gather(const Lanes<N>& lanes, const float* x, float* to) {
    if (lanes.ins == 1 && lanes.count == N) {
        for (int i = 0; i < N; i += 8) store(to + i, load<Eight>(x + lanes.in[0].from + i));
        return;
    }
    for (int i = 0; i < lanes.ins; ++i) {
        const Stretch& s = lanes.in[i];
        copy(x + s.from, s.count, to + s.lane);
    }
    for (int lane = lanes.count; lane < N; ++lane) to[lane] = 0;
}

// Where an input of a window is, counted from that of the first.
struct Input {
    int64_t c, ky, kx;
    Input(const Window& s, int64_t i) {
        const int64_t window = s.kernel_h * s.kernel_w;
        c = i / window, ky = i % window / s.kernel_w, kx = i % s.kernel_w;
    }
    void next(const Window& s) {
        if (++kx == s.kernel_w) kx = 0, ++ky;
        if (ky == s.kernel_h) ky = 0, ++c;
    }
    int64_t at(const Window& s) const {
        return (c * s.padded_h() + ky * s.dilation_h) * s.padded_w() + kx * s.dilation_w;
    }
};

}  // namespace TERSOR_TARGET
