// Products with a weight of few small integers per tile: y = Z (C.T x), by tables of 16 entries.
//
// Transformed once, a block of inputs is a few numbers, u = C.T x, one for each column of the codebook.
// What a row does with them is coded in bytes, in one of two ways:
//
// - nonzeros: a tile is a sum of a few of 16 columns, each times an integer of magnitude up to 7. A byte
//   picks one of the 16 numbers and multiplies it.
// - signs: a tile is a sum of all columns, each with a sign. A byte has the signs of eight, and each half
//   of it picks one of the 16 sums that four numbers can have.
//
// Two kernels:
//
// - `look_up`, for few inputs: 16 integers of 8 bits are one vector register, rows are in lanes, and a
//   byte shuffle is the look-up. One scale per `SHUFFLED` pairs of bytes. Error about 0.8 %.
// - `batched`, for many: inputs are in lanes, and what each of the 256 bytes stands for is tabulated as
//   integers of 16 bits, so that a byte costs one addition. One scale per input and `SUMMED` pairs of
//   bytes. Error about 0.05 %.
//
// No function allocates. Any of the pointers may be misaligned. The result does not depend on the
// number of threads. Inputs that are not finite make all outputs of their batch item NaN.
#pragma once

#include <cstdint>

namespace tersor::lookup {

constexpr int64_t ATOMS = 16;      // columns of the codebook that a pair of bytes is about
constexpr int64_t LARGEST = 7;     // magnitude of a latent
constexpr int64_t PANEL = 32;      // rows that are packed together: at two bytes each, a cache line
constexpr int64_t MOST_PAIRS = 4;  // of bytes in a tile
constexpr int64_t FEW = 4;         // batch items that `look_up` takes at once
constexpr int64_t LANES = 16;      // batch items that `batched` takes at once
constexpr int64_t SHUFFLED = 8;    // pairs with one scale; 2**15 allows 16, at a tenth more error
constexpr int64_t SUMMED = 4;      // pairs with one scale: 4 * 2 * 4095 is below 2**15

struct Layer {
    // Nonzeros: (panels, blocks, pairs, PANEL, 2), each a sign, three bits of magnitude, four of index.
    // Signs: (panels, blocks, pairs, 2, PANEL), a bit for each of eight columns, set if it is subtracted.
    const uint8_t* codes;
    const float* codebook;  // (tile, atoms()), multiplied by the scale, with columns of zeros appended
    int64_t rows, inputs, tile, pairs;
    bool signs;

    int64_t atoms() const { return signs ? ATOMS * pairs : ATOMS; }

    int64_t tables() const { return signs ? 4 * pairs : 1; }  // of 16 entries, for each block
    int64_t blocks() const { return (inputs + tile - 1) / tile; }
    int64_t panels() const { return (rows + PANEL - 1) / PANEL; }
    int64_t panel_bytes() const { return blocks() * pairs * PANEL * 2; }
};

// A matrix of any strides, in elements: one row per batch item.
template <class Number>
struct Matrix {
    Number* data;
    int64_t item, element;

    Number& at(int64_t i, int64_t j) const { return data[i * item + j * element]; }
    Matrix from(int64_t i) const { return {data + i * item, item, element}; }
};

// Codes of a latent (atoms, rows * blocks). False if it cannot be coded in this way, in so many pairs.
bool pack(const int16_t* latent, int64_t atoms, const Layer& layer, uint8_t* codes, int threads);

// Bytes of working memory for one of the kernels, whatever the batch.
int64_t working_bytes(const Layer& layer, bool batched);

// y (batch, rows) = x (batch, inputs) times the transposed weight.
void look_up(const Layer& layer, Matrix<const float> x, Matrix<float> y, int64_t batch, void* working,
             int threads);
void batched(const Layer& layer, Matrix<const float> x, Matrix<float> y, int64_t batch, void* working,
             int threads);

// Instruction sets that this machine has a kernel for, the fastest first; the first is used. `use` says
// whether there is one of that name, for tests.
const char* in_use();
bool use(const char* name);

}  // namespace tersor::lookup
