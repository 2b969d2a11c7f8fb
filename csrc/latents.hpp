// SPDX-License-Identifier: Apache-2.0
// Matrices of integers <-> bytes, and what an integer costs.
#pragma once

#include <algorithm>
#include <utility>

#include "model.hpp"
#include "solver/solver.hpp"

namespace tersor {

// A matrix of `rows` rows of `inner` runs of `outer` integers: see docs/format.md, "Order". In memory
// a row begins `stride` integers after the one before.
struct Shape {
    int64_t rows, inner, outer, stride;
    int64_t columns() const { return inner * outer; }
};

inline int index_of(int value, int grid, int states) {  // of a magnitude, within its grid
    if (states == 1) return value;
    return grid ? (value + 1) >> 1 : value >> 1;
}
inline int value_of(int index, int grid, int states) {
    if (states == 1) return index;
    return grid ? 2 * index - (index > 0) : 2 * index;
}

// Whether the trellis can reach these integers.
inline bool reachable(const int16_t* z, const Shape& shape, int states) {
    const Trellis trellis(states);
    for (int64_t r = 0; r < shape.rows; ++r) {
        int state = 0;
        for (int64_t c = 0; c < shape.columns(); ++c) {
            if (c % kBlock == 0) state = 0;
            const int value = std::abs(static_cast<int>(*z++)), grid = trellis.grid(state);
            if (states > 1 && value && (value & 1) != grid) return false;
            state = trellis.next(state, index_of(value, grid, states));
        }
    }
    return true;
}

// Codes all integers; calls `visit(coder, row, column, place in the tables, grid)` before each.
template <class Coder, class Number, class Visit>
void code(Coder& given, Model& model, Number* first, const Shape& shape, int states, Visit visit) {
    const Trellis trellis(states);
    Coder coder = std::move(given);  // in registers: stores to the model cannot change a local one
    for (int64_t r = 0; r < shape.rows; ++r) {
        model.new_row();
        Number* z = first + r * shape.stride;
        int state = 0;
        int64_t c = 0;
        for (int64_t j = 0; j < shape.inner; ++j)
            for (int64_t i = 0; i < shape.outer; ++i, ++c, ++z) {
                if (c % kBlock == 0) state = 0;
                const int grid = trellis.grid(state), at = model.expect(i, j);
                visit(coder, r, c, at, grid);
                const int index = model.magnitude(coder, at, grid, index_of(std::abs(static_cast<int>(*z)), grid, states));
                if (index) {
                    const int positive = coder.flat(*z > 0), value = value_of(index, grid, states);
                    if (value > kLargest) throw std::invalid_argument("an integer is too large");
                    *z = static_cast<Number>(value * (2 * positive - 1));
                } else *z = 0;
                model.learn(i, j, at, index);
                state = trellis.next(state, index);
            }
    }
    given = std::move(coder);
}

struct Rates {
    float bits[kLevels][2][kRates];
    Rates() = default;
    explicit Rates(const Model& model) {
        const auto& cost = kTables.cost;
        for (int level = 0; level < kLevels; ++level)
            for (int grid = 0; grid < 2; ++grid) {
                const Bin* bins = model.bins(level, grid);
                float sum = 0;
                for (int m = 0; m < kRates; ++m) {
                    float end = 0;
                    if (m < kEscape) {
                        const uint32_t p = bins[std::min(m, kBins - 1)].probability();
                        bits[level][grid][m] = sum + cost[(32768 - p) >> 3];
                        sum += cost[p >> 3];
                    } else {
                        end = 2 * std::log2(1.0f + (m - kEscape) / 4.0f) + 3;
                        bits[level][grid][m] = sum + end;
                    }
                    if (m) bits[level][grid][m] += 1 + coarseness(level);
                    else bits[level][grid][m] += coarseness(level);
                }
            }
    }
};

// Means of rates, as they are where slices of a matrix end.
class MeanRates {
public:
    void add(const Rates& rates, double weight) {
        for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += weight * (&rates.bits[0][0][0])[i];
        weight_ += weight;
    }
    Rates mean() const {
        Rates rates;
        for (size_t i = 0; i < sum_.size(); ++i)
            (&rates.bits[0][0][0])[i] = static_cast<float>(sum_[i] / weight_);
        return rates;
    }

private:
    std::vector<double> sum_ = std::vector<double>(kLevels * 2 * kRates, 0.0);
    double weight_ = 0;
};

// Slope, at a real number, of the bits of the integer next to it on a grid: those of the table,
// joined by lines and averaged over a cell of the grid, which is smooth and even.
inline float slope(float z, const float* bits, int shift, int grid, int states) {
    const float spacing = states == 1 ? 1.0f : 2.0f, first = states == 1 ? 0.0f : static_cast<float>(grid);
    const auto joined = [&](float a) {  // `first` moves the magnitudes of indices above 0 only
        const float whole = a < spacing - first ? a / (spacing - first) : (a + first) / spacing;
        const float position = std::min(std::ldexp(whole, -shift), kRates - 1.0f);
        const int below = position < kRates - 2 ? static_cast<int>(position) : kRates - 2;  // of NaN too
        return bits[below] + (position - static_cast<float>(below)) * (bits[below + 1] - bits[below]);
    };
    const float a = std::fabs(z), half = 0.5f * spacing;
    return std::copysign((joined(a + half) - joined(std::fabs(a - half))) / spacing, z);
}

}  // namespace tersor
