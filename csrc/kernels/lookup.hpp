// SPDX-License-Identifier: Apache-2.0
// Products with a weight of few small integers per tile: y = Z (C.T x), by tables of 16 entries.
//
// Transformed once, a block of inputs is a few numbers, u = C.T x, one for each column of the codebook.
// What a row does with them is coded in bytes, in one of two ways:
//
// - nonzeros: a tile is a sum of a few of 16 columns, each times an integer of magnitude up to 7. A byte
//   picks one of the 16 numbers and multiplies it.
// - binary: a tile is a sum of all columns, each with a sign. A byte has the signs of eight, and each half
//   of it picks one of the 16 sums that four numbers can have.
//
// Two kernels:
//
// - `few`, for few inputs: 16 integers of 8 bits are one vector register, rows are in lanes, and a
//   byte shuffle is the look-up. One scale per `SHUFFLED` pairs of bytes. Error about 0.8 %.
// - `many`: inputs are in lanes, and what each of the 256 bytes stands for is tabulated as integers of
//   16 bits, so that a byte costs one addition; or, for binary latents of few rows, what each half of a byte does.
//   One scale per input and `SUMMED` pairs of bytes. Error about 0.05 %.
//
// Any of the pointers may be misaligned. The result does not depend on the number of threads, nor, to
// the bit, on the instruction set. Inputs that are not finite make all outputs of their batch item NaN.
#pragma once

#include <cstdint>

namespace tersor::lookup {

constexpr int64_t ATOMS = 16;      // columns of the codebook that a pair of bytes is about
constexpr int64_t LARGEST = 7;     // magnitude of a latent
constexpr int64_t PANEL = 32;      // rows that are packed together: at two bytes each, a cache line
constexpr int64_t FEW = 4;         // batch items that `few` takes at once
constexpr int64_t LANES = 16;      // batch items that `many` takes at once
constexpr int64_t SHUFFLED = 8;    // pairs with one scale; 2**15 allows 16, at a tenth more error
constexpr int64_t SUMMED = 4;      // pairs with one scale, the most of a tile: 4 * 2 * 4095 < 2**15

struct Layer {
    int64_t rows, inputs, tile, pairs;  // of bytes in a tile
    bool binary;
    const float* codebook;  // (tile, atoms()), multiplied by the scale, with columns of zeros appended
    // Nonzeros: (panels, blocks, pairs, PANEL, 2), each a sign, three bits of magnitude, four of index.
    // Binary: (panels, blocks, pairs, 2, PANEL), a bit for each of eight columns, set if it is subtracted.
    const uint8_t* codes;

    int64_t atoms() const { return binary ? ATOMS * pairs : ATOMS; }
    int64_t tables() const { return binary ? 4 * pairs : 1; }  // of 16 entries, for each block
    int64_t blocks() const { return (inputs + tile - 1) / tile; }
    int64_t panels() const { return (rows + PANEL - 1) / PANEL; }
    int64_t panel_bytes() const { return blocks() * pairs * PANEL * 2; }
};

struct Kernels {
    // Tables (blocks, tables(), count, 16) and scales (groups, count) of `count` <= FEW inputs.
    void (*tabulate)(const Layer&, const float* x, int64_t count, int8_t* tables, float* scales);
    // y[n][row] for those and the rows of panels first to last.
    void (*few)(const Layer&, const int8_t* tables, const float* scales, int64_t count, const float* bias,
                float* y, int64_t first, int64_t last);
    // The same for `count` <= LANES inputs; sums (rows of all panels, LANES) are working memory.
    void (*many)(const Layer&, const float* x, int64_t count, const float* bias, float* sums, float* y,
                 int64_t first, int64_t last);
};

extern const Kernels baseline, avx2, avx512;

}  // namespace tersor::lookup
