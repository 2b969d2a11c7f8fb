// SPDX-License-Identifier: Apache-2.0
// Convolutions of whole tensors: padding, threads, memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "convolution.hpp"
#include "dispatch.hpp"

namespace tersor {

// x (n, c, h, w) with zeros around; x itself if it needs none.
inline const float* padded(const Window& s, const float* x, Workspace& workspace) {
    if (!s.is_padded()) return x;
    const int64_t h = s.padded_h(), w = s.padded_w();
    auto* to = reinterpret_cast<float*>(workspace.of(s.n * s.c * h * w * sizeof(float)));
    for (int64_t plane = 0; plane < s.n * s.c; ++plane, to += h * w) {
        std::memset(to, 0, h * w * sizeof(float));
        for (int64_t row = 0; row < s.h; ++row)
            std::copy_n(x + (plane * s.h + row) * s.w, s.w, to + (s.top + row) * w + s.left);
    }
    return to - s.n * s.c * h * w;
}

// Whether what the lists say is inside of them, of so many entries, runs and codes, and of the columns.
inline bool leads_inside(const Listed& w, int64_t entries, int64_t runs, int64_t codes) {
    const int64_t columns = (w.inputs + w.d - 1) / w.d * w.rank;
    const auto rising = [&](std::initializer_list<int64_t> numbers) {
        return std::is_sorted(numbers.begin(), numbers.end());
    };
    const int32_t* last = w.block + w.blocks * FIELDS;
    if (w.block[COLUMN] || w.block[ENTRY] || w.block[RUN] || w.block[CODE] || last[COLUMN] != columns ||
        last[ENTRY] != entries || last[RUN] != runs || last[CODE] != codes)
        return false;
    for (int64_t b = 0; b < w.blocks; ++b) {
        const int32_t *at = w.block + b * FIELDS, *end = at + FIELDS;
        if (!rising({0, at[COLUMN], at[SECOND_PART], at[THIRD_PART], at[FOURTH_PART], end[COLUMN], columns}) ||
            !rising({0, at[ENTRY], at[SECOND_ENTRY], end[ENTRY], entries}) || !rising({0, at[RUN], end[RUN], runs}) ||
            at[SECOND_ENTRY] - at[ENTRY] > TABLE || end[ENTRY] - at[SECOND_ENTRY] > TABLE)
            return false;
        const int64_t wide = end[COLUMN] - at[COLUMN];
        for (int64_t e = at[ENTRY]; e < end[ENTRY]; ++e)
            if (w.entries[2 * e] < 0 || w.entries[2 * e] >= std::max<int64_t>(wide, 1)) return false;
        int64_t rows = 0, bytes = 0;
        for (int64_t r = at[RUN]; r < end[RUN]; ++r) {
            const int64_t quads = w.runs[2 * r], some = w.runs[2 * r + 1];
            if (quads < 0 || quads > codes || some < 0 || (rows += some) > w.rows) return false;
            if ((bytes += 4 * quads * some) > codes) return false;
        }
        if (rows != w.rows || bytes != int64_t{end[CODE]} - at[CODE]) return false;
    }
    // To the end, in vectors: that takes less time than to stop at the first that is wrong.
    uint16_t row = 0;
    for (int64_t i = 0; i < w.blocks * w.rows; ++i) row = std::max(row, w.order[i]);
    uint8_t code = 0;
    for (int64_t i = 0; i < codes; ++i) code = std::max(code, w.codes[i]);
    return row < w.rows && code < TABLE;
}

// Powers of two that bring each image to about 1: the squares of its numbers do not overflow.
inline void find_powers(const ConvolutionKernels& kernels, const Window& s, const float* x, float* powers) {
    const int64_t size = s.c * s.h * s.w;
    for (int64_t n = 0; n < s.n; ++n) {
        int exponent = 0;
        std::frexp(kernels.largest(x + n * size, size), &exponent);
        exponent = exponent < -120 ? -120 : exponent > 120 ? 120 : exponent;
        powers[n] = std::ldexp(1.f, -exponent);
    }
}

inline void convolve(const ConvolutionKernels& kernels, const Listed& w, const Window& s, const float* x,
                     const float* bias, float* y, int64_t threads, Workspace& around, Workspace& workspace) {
    const int64_t blocks = (s.pixels() + LANES - 1) / LANES;
    int64_t most = 0;
    for (int64_t b = 0; b < w.blocks; ++b) {
        const int64_t columns = w.block[(b + 1) * FIELDS + COLUMN] - w.block[b * FIELDS + COLUMN];
        most = most > columns ? most : columns;
    }
    const int64_t bytes = aligned(2 * TABLE * LANES * 2 + (w.rows + w.d + most) * LANES * 4);
    threads = worth(w.rows * w.inputs * s.pixels() / 16, threads);
    char* memory = workspace.of(aligned(s.n * sizeof(float)) + threads * bytes);
    auto* powers = reinterpret_cast<float*>(memory);
    memory += aligned(s.n * sizeof(float));
    find_powers(kernels, s, x, powers);
    const float* in = padded(s, x, around);
    parallel(blocks, threads, [&](int64_t job, int64_t slot) {
        kernels.listed(w, s, in, powers, job * LANES, bias, y, memory + slot * bytes);
    });
}

// x with zeros around, such that the inputs of tiles that follow one another do so too: for each channel
// [row of a tile, modulo size][column of a tile, size + 2][tiles down, and one more][tiles across].
inline const float* by_tiles(const Window& s, const float* x, const Window& tiles, int64_t size,
                             Workspace& workspace) {
    const int64_t plane = (tiles.oh + 1) * tiles.ow, channel = size * (size + 2) * plane;
    const int64_t bytes = (s.n * s.c * channel + STRIP) * sizeof(float);
    auto* to = reinterpret_cast<float*>(workspace.of(bytes));
    std::memset(to, 0, bytes);
    for (int64_t c = 0; c < s.n * s.c; ++c)
        for (int64_t row = 0; row < s.h; ++row) {
            const float* in = x + (c * s.h + row) * s.w;
            const int64_t y = s.top + row;
            float* out = to + c * channel + y % size * (size + 2) * plane + y / size * tiles.ow;
            for (int64_t j = 0; j < size + 2 && y / size <= tiles.oh; ++j, out += plane) {
                int64_t tx = j < s.left ? (s.left - j + size - 1) / size : 0;
                for (; tx < tiles.ow && tx * size + j < s.left + s.w; ++tx) out[tx] = in[tx * size + j - s.left];
            }
        }
    return to;
}

// Panels of (size + 2)^2 matrices (rows, channels).
inline void convolve_winograd(const DirectKernels& kernels, const Window& s, int64_t size, int64_t rows,
                              const float* x, const float* panels, const float* bias, float* y,
                              int64_t threads, Workspace& around, Workspace& workspace) {
    Window tiles = s;
    tiles.oh = (s.oh + size - 1) / size, tiles.ow = (s.ow + size - 1) / size;
    const float* in = by_tiles(s, x, tiles, size, around);
    const int64_t strips = (tiles.pixels() + STRIP - 1) / STRIP, numbers = (size + 2) * (size + 2);
    const int64_t bytes = aligned(numbers * winograd_step(s.c, STRIP) * sizeof(float));
    threads = worth(rows * s.c * tiles.pixels() * numbers / 8, threads);
    char* memory = workspace.of(threads * bytes);
    parallel(strips, threads, [&](int64_t job, int64_t slot) {
        kernels.winograd(tiles, size, rows, panels, in, job * STRIP, bias, y, s.oh, s.ow,
                         reinterpret_cast<float*>(memory + slot * bytes));
    });
}

inline void convolve_depthwise(const DirectKernels& kernels, const Window& s, const float* x,
                               const float* weight, const float* bias, float* y, int64_t threads,
                               Workspace& around) {
    const float* in = padded(s, x, around);
    const int64_t size = s.padded_h() * s.padded_w(), window = s.kernel_h * s.kernel_w;
    threads = worth(s.pixels() * s.c * window / 4, threads);
    parallel(s.n * s.c, threads, [&](int64_t plane, int64_t) {
        const int64_t c = plane % s.c;
        kernels.depthwise(s, in + plane * size, weight + c * window, bias ? bias[c] : 0,
                          y + plane * s.oh * s.ow);
    });
}

// The same of images that lie channels last.
inline void convolve_depthwise_last(const DirectKernels& kernels, const Window& s, const float* x,
                                    const float* weight, const float* bias, float* y, int64_t threads,
                                    Workspace& workspace) {
    const int64_t bytes = aligned(DepthwiseLast::bytes(s));
    threads = worth(s.pixels() * s.c * s.kernel_h * s.kernel_w / 4, threads);
    char* memory = workspace.of(threads * bytes);
    for (int64_t slot = 0; slot < threads; ++slot)
        std::memset(DepthwiseLast(s, memory + slot * bytes).zeros, 0, s.c * sizeof(float));
    parallel(s.n * s.oh, threads, [&](int64_t row, int64_t slot) {
        const float* image = x + row / s.oh * s.h * s.w * s.c;
        kernels.depthwise_last(s, image, weight, bias, row % s.oh, y + row * s.ow * s.c, memory + slot * bytes);
    });
}

// What the windows of pixels first to last see, of images that lie channels last: (last - first, kernel_h,
// kernel_w, c), with zeros from outside.
inline void gather(const Window& s, const float* x, int64_t first, int64_t last, float* to) {
    for (int64_t pixel = first; pixel < last; ++pixel) {
        const int64_t oy = pixel / s.ow % s.oh, ox = pixel % s.ow;
        const float* image = x + pixel / (s.oh * s.ow) * s.h * s.w * s.c;
        for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
            const int64_t iy = oy * s.stride_h - s.top + ky * s.dilation_h;
            for (int64_t kx = 0; kx < s.kernel_w; ++kx, to += s.c) {
                const int64_t ix = ox * s.stride_w - s.left + kx * s.dilation_w;
                if (0 <= iy && iy < s.h && 0 <= ix && ix < s.w)
                    std::copy_n(image + (iy * s.w + ix) * s.c, s.c, to);
                else
                    std::fill_n(to, s.c, 0.f);
            }
        }
    }
}

// Of images that lie channels last: a matrix (rows, (kernel_h, kernel_w, c)) times what each window sees.
inline void convolve_panels(const PanelKernels& kernels, const Window& s, int64_t rows, const float* x,
                            const float* numbers, const float* bias, float* y, int64_t threads,
                            Workspace& workspace) {
    const Panels w{rows, s.kernel_h * s.kernel_w * s.c, numbers};
    const bool as_they_are = w.inputs == s.c && s.stride_h == 1 && s.stride_w == 1 && !s.is_padded();
    // What is gathered, and multiplied by all panels, stays in the cache.
    const int64_t most = as_they_are ? 96 : std::clamp<int64_t>(65536 / w.inputs, 24, 96);
    const int64_t sets = (s.pixels() + most - 1) / most, panels = w.count();
    threads = worth(rows * w.inputs * s.pixels() / 8, threads);
    const int64_t parts = parts_of(sets, panels, threads);
    const int64_t bytes = as_they_are ? 0 : aligned(most * w.inputs * sizeof(float));
    char* memory = workspace.of(threads * bytes);
    parallel(sets * parts, threads, [&](int64_t job, int64_t slot) {
        const int64_t set = job / parts, part = job % parts;
        const int64_t first = set * s.pixels() / sets, last = (set + 1) * s.pixels() / sets;
        auto* gathered = reinterpret_cast<float*>(memory + slot * bytes);
        if (!as_they_are) gather(s, x, first, last, gathered);
        kernels.multiply(w, as_they_are ? x + first * s.c : gathered, last - first, bias, y + first * rows,
                         part * panels / parts, (part + 1) * panels / parts);
    });
}

}  // namespace tersor
