// Product with factors whose latent is small integers: what it is given, and by which instruction sets.
#pragma once

#include <cstdint>

namespace tersor {

// A matrix of `rows` rows, cut into `tiles` tiles of `d` inputs each: codebook (d, padded_rank), scaled,
// times small integers. These are sorted by position in the tile, the `wide_rank` positions of 4 bits
// first, then `narrow_rank` positions of 2 bits; within a position by tile. `wide` and `narrow` are the
// numbers of integers of a row, each padded with zeros to a multiple of 64. Rows are padded to 16.
//
// Codes: for each 16 rows, for each group of 8 (wide) or 16 (narrow) integers of a row, for each of the
// rows, 4 bytes; byte c has integers c, c + 4, ... of the group, the first in the lowest bits, plus 8
// (wide) or plus 1 (narrow). Escapes add to what does not fit: column + (difference << 19), the column
// counted without any padding.
struct Integers {
    int64_t rows, inputs, d, tiles, padded_rank, wide_rank, narrow_rank, wide, narrow;
    const float* codebook;
    const uint8_t* codes;
    const float* reach;     // of each 32 wide or 64 narrow integers: largest norm of a row
    const int32_t* starts;  // of each row's escapes, and where the last ends
    const int32_t* escapes;

    int64_t columns() const { return wide + narrow; }
    int64_t row_bytes() const { return wide / 2 + narrow / 4; }
    int64_t blocks() const { return wide / 32 + narrow / 64; }
    int64_t padded_rows() const { return (rows + 15) / 16 * 16; }
    // Where integers of position p begin in a row.
    int64_t place(int64_t p) const { return p < wide_rank ? p * tiles : wide + (p - wide_rank) * tiles; }
};

constexpr int64_t GROUP = 64;  // inputs that share a scale of 8 bits
constexpr int64_t FEW = 4;     // vectors that the product of bytes takes at once
constexpr int64_t MANY = 16;   // vectors that the product by tables takes at once

// An input that is transformed and rounded to bytes, one scale for each group.
struct Rounded {
    float* real;     // columns()
    int8_t* bytes;   // columns()
    float* scales;   // columns() / GROUP
    float* offset;   // 1: what the unsigned codes add too much
};

struct IntegerKernels {
    // x (inputs), real, to u (columns), padded with zeros, and rounded.
    void (*round)(const Integers&, const float* x, const Rounded& u);
    // y[n][row] for `count` <= FEW rounded inputs and the rows of 16-row tiles first to last.
    void (*few)(const Integers&, const Rounded* u, int64_t count, const float* bias, float* y, int64_t first,
                int64_t last);
    // The same for `count` <= MANY inputs by tables of sums of 16-bit integers.
    void (*many)(const Integers&, const float* x, int64_t count, const float* bias, float* y, int64_t first,
                 int64_t last, char* workspace);
};




extern const IntegerKernels integers_baseline, integers_avx2, integers_avx512;

}  // namespace tersor
