// Matrices of integers <-> bytes, and the search for the integers that are cheapest to code.
#pragma once

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "model.hpp"

namespace tersor {

// A matrix of `rows` rows of `inner` runs of `outer` integers: see docs/format.md, "Order". In memory
// a row begins `stride` integers after the one before.
struct Shape {
    int64_t rows, inner, outer, stride;
    int64_t columns() const { return inner * outer; }
};

constexpr int64_t kBlock = 4096;  // columns after which the trellis starts anew

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

constexpr int kPrices = 64;  // magnitudes in a table of costs

struct Prices {
    float bits[kLevels][2][kPrices];
    Prices() = default;
    explicit Prices(const Model& model) {
        const auto& cost = kTables.cost;
        for (int level = 0; level < kLevels; ++level)
            for (int grid = 0; grid < 2; ++grid) {
                const uint32_t* bins = model.bins(level, grid);
                float sum = 0;
                for (int m = 0; m < kPrices; ++m) {
                    float end = 0;
                    if (m < kEscape) {
                        const uint32_t p = probability(bins[std::min(m, kBins - 1)]);
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

// Means of prices, as they are where slices of a matrix end.
class MeanPrices {
public:
    void add(const Prices& prices, double weight) {
        for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += weight * (&prices.bits[0][0][0])[i];
        weight_ += weight;
    }
    Prices mean() const {
        Prices prices;
        for (size_t i = 0; i < sum_.size(); ++i)
            (&prices.bits[0][0][0])[i] = static_cast<float>(sum_[i] / weight_);
        return prices;
    }

private:
    std::vector<double> sum_ = std::vector<double>(kLevels * 2 * kPrices, 0.0);
    double weight_ = 0;
};

// Slope, at a real number, of the bits of the integer next to it on a grid: those of the table,
// joined by lines and averaged over a cell of the grid, which is smooth and even.
inline float slope(float z, const float* bits, int shift, int grid, int states) {
    const float spacing = states == 1 ? 1.0f : 2.0f, first = states == 1 ? 0.0f : static_cast<float>(grid);
    const auto joined = [&](float a) {  // `first` moves the magnitudes of indices above 0 only
        const float whole = a < spacing - first ? a / (spacing - first) : (a + first) / spacing;
        const float position = std::min(std::ldexp(whole, -shift), kPrices - 1.0f);
        const int below = position < kPrices - 2 ? static_cast<int>(position) : kPrices - 2;  // of NaN too
        return bits[below] + (position - static_cast<float>(below)) * (bits[below + 1] - bits[below]);
    };
    const float a = std::fabs(z), half = 0.5f * spacing;
    return std::copysign((joined(a + half) - joined(std::fabs(a - half))) / spacing, z);
}

// ---------------------------------------------------------------------------------------------
// Search

struct Candidate { float cost; int16_t value; };

// The cheapest magnitude near `a` of one grid, for both parities of its index: zero, the index next
// below, or one of its neighbours. Others are farther away and no cheaper.
inline void candidates(float a, float curvature, float price, const float* bits, int shift, int grid,
                       int states, Candidate out[2]) {
    const float position = states == 1 ? a : grid ? 0.5f * (a + 1) : 0.5f * a;
    const int last = states == 1 ? kLargest : (kLargest + grid) / 2;
    const int floor = position < static_cast<float>(last) ? static_cast<int>(position) : last;
    const float spacing = states == 1 ? 1.0f : 2.0f, first = states == 1 ? 0.0f : static_cast<float>(grid);
    const auto cost = [&](int index) {
        const float gap = a - (spacing * static_cast<float>(index) - first);
        return curvature * gap * gap + price * bits[std::min(index >> shift, kPrices - 1)];
    };
    const float none = std::numeric_limits<float>::infinity();
    const int lower = std::max(floor - 1, 0), upper = std::min(floor + 1, last), parity = floor & 1;
    const float below = lower ? cost(lower) : none, above = upper > floor ? cost(upper) : none;
    const int other = above < below ? upper : lower;
    const float costs[2] = {floor ? cost(floor) : none, std::min(above, below)};
    const int indices[2] = {floor, other};
    const float zero = curvature * a * a + price * bits[0];
    const bool keep = costs[parity] < zero;
    out[0].cost = keep ? costs[parity] : zero;
    out[0].value = static_cast<int16_t>(keep ? spacing * indices[parity] - first : 0.0f);
    out[1].cost = costs[1 - parity];
    out[1].value = static_cast<int16_t>(spacing * indices[1 - parity] - first);
}

struct Path {  // scratch of one thread
    std::vector<std::array<int16_t, 4>> values;
    std::vector<uint8_t> choices;
};

// Cheapest path from a state; returns the state that it ends in.
template <int S>
int viterbi(int first, const float* wanted, const float* curvature, float price, const uint8_t* places,
             const Prices& prices, int64_t n, float* z, Path& path) {
    constexpr Trellis trellis(S);
    constexpr int H = S / 2, h0 = trellis.h0, h1 = trellis.h1;
    path.values.resize(n);
    path.choices.resize(n * S);
    float old[S], fresh[S];
    for (int s = 0; s < S; ++s) old[s] = s == first ? 0.0f : 1e30f;
    for (int64_t c = 0; c < n; ++c) {
        const float a = std::fabs(wanted[c]);
        const int level = places[c] >> 1, shift = coarseness(level);
        Candidate best[4];
        candidates(a, curvature[c], price, prices.bits[level][0], shift, 0, S, best);
        candidates(a, curvature[c], price, prices.bits[level][1], shift, 1, S, best + 2);
        path.values[c] = {best[0].value, best[1].value, best[2].value, best[3].value};
        uint8_t* choice = &path.choices[c * S];
        for (int j = 0; j < H; ++j) {
            const float even0 = old[j] + best[0].cost, even1 = old[j ^ h1] + best[1].cost;
            const float odd0 = old[H + (j ^ h0)] + best[2].cost, odd1 = old[H + (j ^ h0 ^ h1)] + best[3].cost;
            choice[2 * j] = even1 < even0;
            choice[2 * j + 1] = odd1 < odd0;
            fresh[2 * j] = std::min(even0, even1);
            fresh[2 * j + 1] = std::min(odd0, odd1);
        }
        float least = fresh[0];
        for (int s = 1; s < S; ++s) least = std::min(least, fresh[s]);
        for (int s = 0; s < S; ++s) old[s] = fresh[s] - least;
    }
    int state = 0;
    for (int s = 1; s < S; ++s) if (old[s] < old[state]) state = s;
    const int last = state;
    for (int64_t c = n - 1; c >= 0; --c) {
        const int parity = path.choices[c * S + state], top = state & 1, j = state >> 1;
        const float value = path.values[c][2 * top + parity];
        z[c] = std::copysign(value, wanted[c]);
        state = top ? H + (j ^ h0 ^ (parity ? h1 : 0)) : j ^ (parity ? h1 : 0);
    }
    return last;
}

inline int scalar(const float* wanted, const float* curvature, float price, const uint8_t* places,
                   const Prices& prices, int64_t n, float* z) {
    for (int64_t c = 0; c < n; ++c) {
        const int level = places[c] >> 1;
        Candidate best[2];
        candidates(std::fabs(wanted[c]), curvature[c], price, prices.bits[level][0], coarseness(level), 0, 1, best);
        z[c] = std::copysign(static_cast<float>(best[best[1].cost < best[0].cost].value), wanted[c]);
    }
    return 0;
}

inline int cheapest(int states, int first, const float* wanted, const float* curvature, float price,
                    const uint8_t* places, const Prices& prices, int64_t n, float* z, Path& path) {
    switch (states) {
        case 1: return scalar(wanted, curvature, price, places, prices, n, z);
        case 4: return viterbi<4>(first, wanted, curvature, price, places, prices, n, z, path);
        case 8: return viterbi<8>(first, wanted, curvature, price, places, prices, n, z, path);
        case 16: return viterbi<16>(first, wanted, curvature, price, places, prices, n, z, path);
        case 32: return viterbi<32>(first, wanted, curvature, price, places, prices, n, z, path);
        case 64: return viterbi<64>(first, wanted, curvature, price, places, prices, n, z, path);
        default: throw std::invalid_argument("unknown number of states");
    }
}

// What a row of the latent should be, in real numbers, while the others stay as they are.
inline void best_row(const float* target, const float* gram, const float* z, int64_t stride,
                     int64_t r, int64_t k, int64_t n, float* wanted) {
    for (int64_t c = 0; c < n; ++c) wanted[c] = target[r * stride + c];
    for (int64_t q = 0; q < k; ++q) {
        const float g = gram[r * k + q];
        if (q == r || g == 0) continue;
        const float* other = z + q * stride;
        for (int64_t c = 0; c < n; ++c) wanted[c] -= g * other[c];
    }
    const float curvature = std::max(gram[r * k + r], 1e-30f);
    for (int64_t c = 0; c < n; ++c) wanted[c] /= curvature;
}

// Row by row, with the others fixed, the integers of least curvature * error + price * bits, in n
// columns from `offset` on, a multiple of kBlock. `importance`, if any, is what the error of each
// element counts for.
inline void search(const float* target, const float* gram, float* z, const uint8_t* places,
                   const Prices& prices, const Shape& shape, int64_t offset, int64_t n, int states,
                   float price, const float* importance, int threads) {
    const int64_t k = shape.rows, blocks = (n + kBlock - 1) / kBlock;
    auto work = [&](int64_t first) {
        Path path;
        std::vector<float> wanted(kBlock), curvature(kBlock);
        for (int64_t b = first; b < blocks; b += threads) {
            const int64_t start = b * kBlock, size = std::min(kBlock, n - start);
            for (int64_t r = 0; r < k; ++r) {
                best_row(target + start, gram, z + start, n, r, k, size, wanted.data());
                const float own = std::max(gram[r * k + r], 1e-30f);
                for (int64_t c = 0; c < size; ++c)
                    curvature[c] = importance ? own * importance[r * n + start + c] : own;
                cheapest(states, 0, wanted.data(), curvature.data(), price,
                         places + r * shape.columns() + offset + start, prices, size, z + r * n + start, path);
            }
        }
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
    work(0);
    for (auto& thread : pool) thread.join();
}

// The same for one run of `size` columns, which begins at column `offset` of the whole; the paths
// begin in the given states, which become those in which they end.
inline void search_run(const float* target, const float* gram, float* z, const uint8_t* places,
                       const Prices& prices, const Shape& shape, int64_t offset, int64_t size,
                       int32_t* carried, int states, float price, int sweeps) {
    const int64_t n = shape.columns(), k = shape.rows;
    Path path;
    std::vector<float> wanted(size), curvatures(size);
    std::vector<int32_t> ends(k);
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (int64_t r = 0; r < k; ++r) {
            best_row(target, gram, z, size, r, k, size, wanted.data());
            std::fill(curvatures.begin(), curvatures.end(), std::max(gram[r * k + r], 1e-30f));
            int state = carried[r];
            for (int64_t c = 0; c < size;) {
                const int64_t left = kBlock - (offset + c) % kBlock, length = std::min(left, size - c);
                if (left == kBlock) state = 0;
                state = cheapest(states, state, wanted.data() + c, curvatures.data() + c, price,
                                 places + r * n + offset + c, prices, length, z + r * size + c, path);
                c += length;
            }
            ends[r] = state;
        }
    std::copy(ends.begin(), ends.end(), carried);
}

}  // namespace tersor
