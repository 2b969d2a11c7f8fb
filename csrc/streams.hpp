// SPDX-License-Identifier: Apache-2.0
// Streams of a codebook and a latent, and what a latent costs: what the module offers, without Python.
#pragma once

#include <stdexcept>
#include <vector>

#include "latents.hpp"

namespace tersor {

// A latent in runs of `outer` integers, and a codebook, which is one run a row.
inline Shape shape_of(int64_t rows, int64_t columns, int64_t outer) {
    if (outer < 1 || columns % outer) throw std::invalid_argument("runs do not fit the columns");
    return {rows, columns / outer, outer, columns};
}
inline Shape codebook_shape(int64_t rows, int64_t columns) { return {rows, 1, columns, columns}; }

template <class Coder>
void both(Coder& coder, int16_t* codebook, const Shape& first, int codebook_start, int16_t* latent,
          const Shape& second, int states, int latent_start) {
    const auto ignore = [](const auto&...) {};
    if (!first.rows) return;  // nor does the latent have any, whatever its columns
    Model of_codebook(first.outer, first.inner, codebook_start, 1);
    code(coder, of_codebook, codebook, first, 1, ignore);
    Model of_latent(second.outer, second.inner, latent_start, states);
    code(coder, of_latent, latent, second, states, ignore);
}

struct Analysis {
    Shape shape;
    Rates rates;
    std::vector<uint8_t> places;  // in the model: level of the expected magnitude << 1 | grid
    std::vector<double> bits;
};

// Analyses slices of a matrix that lie side by side, of runs of these lengths. Rates are those of the
// coder where slices end; or, if `expected` is not 0, those that it begins with for so many states.
inline Analysis analyse(float* z, int64_t rows, int64_t columns, const std::vector<int64_t>& outers,
                        int states, int start, int expected = 0) {
    int64_t outer = 0;
    for (const int64_t length : outers) {
        if (length < 1) throw std::invalid_argument("a slice has no rows");
        outer += length;
    }
    const Shape whole = shape_of(rows, columns, outer);
    const int64_t n = whole.columns();
    Analysis found{whole, Rates(), std::vector<uint8_t>(rows * columns), std::vector<double>(whole.rows, 0.0)};
    MeanRates rates;
    int64_t first = 0;
    for (const int64_t length : outers) {
        const Shape shape{whole.rows, whole.inner, length, n};
        Model model(shape.outer, shape.inner, start, states);
        Counter coder;
        std::vector<double> ends(shape.rows, 0.0);
        code(coder, model, z + first, shape, states,
             [&](const Counter& now, int64_t r, int64_t c, int at, int grid) {
            found.places[r * n + first + c] = static_cast<uint8_t>(Model::level(at) << 1 | grid);
            if (c == 0 && r) ends[r - 1] = now.bits;
        });
        if (shape.rows) ends.back() = coder.bits;
        for (int64_t r = 0; r < shape.rows; ++r) found.bits[r] += r ? ends[r] - ends[r - 1] : ends[r];
        rates.add(Rates(model), static_cast<double>(std::max<int64_t>(shape.columns(), 1)));
        first += shape.columns();
    }
    found.rates = expected ? Rates(Model(0, 0, start, expected)) : rates.mean();
    return found;
}

}  // namespace tersor
