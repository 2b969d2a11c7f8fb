// SPDX-License-Identifier: Apache-2.0
// Product with factors whose latent is small integers: what it is given, and by which instruction sets.
#pragma once

#include <cstdint>

namespace tersor {

// A matrix of `rows` rows, cut into `tiles` tiles of `d` inputs each: codebook (d, padded_rank) times scale
// times small integers. These are sorted by position in the tile, within a position by tile, and come in
// four sections: 4 bits of `wide_rank` positions; 2 bits of the `narrow_rank` positions after them; 2 bits
// of the first `middle_rank` positions, which count 16 times; 2 bits of the first `top_rank`, which count
// 64 times. `columns` are the integers of a row in each, padded with zeros to a multiple of 16, or of 64 if
// there are only the first two sections. Rows are padded to 16.
//
// Codes: for each 16 rows, for each group of 8 (4 bits) or 16 (2 bits) integers of a row, for each of the
// rows, 4 bytes; byte c has integers c, c + 4, ... of the group, the first in the lowest bits, plus 8
// (4 bits) or plus 1 (2 bits). Escapes add to what does not fit: 8 bits of how many columns it is from the
// one before, counted without any padding, and 8 bits of difference.
struct Integers {
    int64_t rows, inputs, d, padded_rank, wide_rank, narrow_rank, middle_rank, top_rank;
    const int16_t* codebook;
    const float* scale;
    const uint8_t* codes;
    const float* reach;     // of each 32 integers of 4 bits or 64 of 2: largest norm of a row
    const int32_t* starts;  // of each row's escapes, and where the last ends
    const int16_t* escapes;
    int64_t escape_count;
    int64_t tiles = (inputs + d - 1) / d;
    int64_t wide = padded(wide_rank), narrow = padded(narrow_rank), middle = padded(middle_rank),
            top = padded(top_rank);

    int64_t padded(int64_t positions) const {
        const int64_t unit = middle_rank ? 16 : 64;
        return (positions * tiles + unit - 1) / unit * unit;
    }
    int64_t rank() const { return wide_rank + narrow_rank; }
    int64_t low_columns() const { return wide + narrow; }
    int64_t columns() const { return wide + narrow + middle + top; }
    int64_t row_bytes() const { return wide / 2 + (narrow + middle + top) / 4; }
    int64_t blocks() const { return wide / 32 + narrow / 64; }
    int64_t padded_rows() const { return (rows + 15) / 16 * 16; }
    // Where integers of position p begin in a row.
    int64_t place(int64_t p) const { return p < wide_rank ? p * tiles : wide + (p - wide_rank) * tiles; }
    // Where a column that was counted without padding is.
    int64_t place_of(int64_t column) const {
        const int64_t before = wide_rank * tiles;
        return column < before ? column : column - before + wide;
    }
};

constexpr int64_t GROUP = 64;  // inputs of a section that share a scale of 8 bits
constexpr int64_t FEW = 4;     // vectors that the product of bytes takes at once
constexpr int64_t MANY = 16;   // vectors that the product by tables takes at once
constexpr int64_t SOME = 3;    // vectors from which on to unpack is faster than bytes: measured, AVX2, 384 to 1536
constexpr int64_t MOST = 96;   // vectors that the product of what is unpacked takes at once, and rows

// An input that is transformed and rounded to bytes, one scale for each group.
struct Rounded {
    float* real;     // columns()
    int8_t* bytes;   // columns()
    float* scales;   // columns() / 16, of which each group has the first of its columns
    float* offset;   // 1: what the unsigned codes add too much
};

struct IntegerKernels {
    // x (inputs), real, to u (columns), padded with zeros, and rounded.
    void (*round)(const Integers&, const float* x, const Rounded& u);
    // y[n][row] for `count` <= FEW rounded inputs and the rows of 16-row tiles first to last.
    void (*few)(const Integers&, const Rounded* u, int64_t count, const float* bias, float* y, int64_t first,
                int64_t last);
    // The same for `count` <= MANY inputs by tables of sums of 16-bit integers; only without middle and top.
    void (*many)(const Integers&, const float* x, int64_t count, const float* bias, float* y, int64_t first,
                 int64_t last, char* workspace);
    // The same for `count` <= MOST inputs in float32, of integers that are unpacked.
    void (*unpacked)(const Integers&, const float* x, int64_t count, const float* bias, float* y,
                     int64_t first, int64_t last, char* workspace);
    // `count` <= MOST rows of the matrix, to y (count, inputs).
    void (*pick)(const Integers&, const int64_t* index, int64_t count, float* y, char* workspace);
};

extern const IntegerKernels integers_baseline, integers_avx2, integers_avx512;

}  // namespace tersor
