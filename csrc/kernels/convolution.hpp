// SPDX-License-Identifier: Apache-2.0
// Convolutions: with factors whose latent is integers, and with a dense weight.
#pragma once

#include <cstdint>

namespace tersor {

// Sizes of a convolution of n images of c channels. Outputs are oh x ow; padding is on top and left, what
// is needed below and on the right follows from these.
struct Window {
    int64_t n, c, h, w, kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w, oh, ow;

    int64_t pixels() const { return n * oh * ow; }
    bool is_padded() const { return top || left || padded_h() > h || padded_w() > w; }
    int64_t padded_h() const { return most((oh - 1) * stride_h + (kernel_h - 1) * dilation_h + 1, top + h); }
    int64_t padded_w() const { return most((ow - 1) * stride_w + (kernel_w - 1) * dilation_w + 1, left + w); }
    static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
};

// A matrix of `rows` rows over inputs (channel, y, x), cut into tiles of d: the codebook (d, rank), scaled,
// times integers, whose columns are numbered by tile, then position. Blocks of columns have two tables of
// integer multiples of inputs, and each row a list of quads of indices: two into each table. `parts`
// accumulators of 16 bits, two or four, add them up, each for its part of the columns.
struct Listed {
    int64_t rows, inputs, d, rank, blocks, parts;
    const float* codebook;
    const int32_t* block;    // of each: FIELDS numbers, see below; one more says where the last ends
    const float* needs;      // of each part of each block: what a norm of 1 takes of a sum's 16 bits
    const int16_t* entries;  // column in the block, multiple; the first of a table is zero
    const int32_t* runs;     // of rows with lists of the same length: quads of a row, number of rows
    const uint16_t* order;   // of each block: its rows in the order of the runs
    const uint8_t* codes;    // the quads
};

enum Field { COLUMN, SECOND_PART, THIRD_PART, FOURTH_PART, ENTRY, SECOND_ENTRY, RUN, CODE, FIELDS };

constexpr int64_t LANES = 32;   // pixels that are computed with at once; half of them where fewer are left
constexpr int64_t TABLE = 192;  // entries of each of the two tables of a block

struct ConvolutionKernels {
    // Sums of `size` pixels from `first` on, into y. `x` is padded, `powers` scale each image to about 1.
    void (*listed)(const Listed&, const Window&, const float* x, const float* powers, int64_t first,
                   const float* bias, float* y, char* workspace);
    // The largest finite magnitude.
    float (*largest)(const float* x, int64_t size);
};

// Dense weights. A panel is PANEL rows of a matrix, side by side: [inputs][PANEL].
constexpr int64_t PANEL = 6, STRIP = 16;  // rows, and tiles, that are computed with at once

// Numbers from one matrix of transformed tiles to the next: not all in one set of the cache.
inline int64_t winograd_step(int64_t channels, int64_t strip) { return (channels + 1) * strip; }

struct DirectKernels {
    // Windows of 3 x 3 and stride 1: size x size pixels, size 2 or 4, of each of up to STRIP tiles from
    // `first` on, of images oh x ow. The window counts tiles as pixels, x is sorted by tiles, with room
    // for STRIP more numbers. Panels of (size + 2)^2 matrices.
    void (*winograd)(const Window&, int64_t size, int64_t rows, const float* panels, const float* x,
                     int64_t first, const float* bias, float* y, int64_t oh, int64_t ow, float* workspace);
    // One channel of one image.
    void (*depthwise)(const Window&, const float* x, const float* weight, float bias, float* y);
    // All channels of one row of the output, images channels last, as the weight is: [ky][kx][channel].
    // `memory` has DepthwiseLast::bytes, of which the zeros are set.
    void (*depthwise_last)(const Window&, const float* image, const float* weight, const float* bias, int64_t oy,
                           float* y, char* memory);
};

// What a row of depthwise_last needs: addresses of what PIXELS windows see, a pixel of zeros, and one to
// write to where there are fewer.
struct DepthwiseLast {
    static constexpr int64_t PIXELS = 4;
    const float** seen;
    float *zeros, *spare;
    DepthwiseLast(const Window& s, char* memory)
        : seen(reinterpret_cast<const float**>(memory)),
          zeros(reinterpret_cast<float*>(seen + s.kernel_h * s.kernel_w * PIXELS)), spare(zeros + s.c) {}
    static int64_t bytes(const Window& s) { return s.kernel_h * s.kernel_w * PIXELS * 8 + 2 * s.c * 4; }
};

extern const ConvolutionKernels convolutions_baseline, convolutions_avx2, convolutions_avx512;
extern const DirectKernels direct_baseline, direct_avx2, direct_avx512;

}  // namespace tersor
