// SPDX-License-Identifier: Apache-2.0
// The search for the integers that are cheapest in error and bits, and sums over matrices, in threads:
// the work is cut in the same way for any number of them.
#pragma once

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "latents.hpp"

namespace tersor {

// Calls work(job, scratch) for each job, in threads of its own that wait for nothing.
template <class Work>
void in_threads(int64_t jobs, int64_t threads, const Work& work) {
    threads = std::max<int64_t>(1, std::min(threads, jobs));
    const auto some = [&](int64_t first) {
        const auto scratch = std::make_unique<Scratch>();
        for (int64_t job = first; job < jobs; job += threads) work(job, *scratch);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(some, t);
    some(0);
    for (auto& thread : others) thread.join();
}

inline std::unique_ptr<Costs> costs_of(const Rates& rates, float lagrangian, int states) {
    static_assert(kGrades == kLevels, "one table for each level");
    auto costs = std::make_unique<Costs>();
    costs->states = states;
    for (int level = 0; level < kLevels; ++level) {
        costs->shift[level] = coarseness(level);
        for (int grid = 0; grid < 2; ++grid)
            for (int m = 0; m < kRates; ++m)
                costs->bits[level][grid][m] = lagrangian * rates.bits[level][grid][m];
    }
    return costs;
}

// What the error of each number of a row counts for, in memory of the scratch.
inline const float* weighted(const Row& row, const float* importance, Scratch& scratch) {
    for (int64_t c = 0; c < row.count; ++c) scratch.curvature[c] = row.own * importance[c];
    return scratch.curvature;
}

// Row by row, with the others fixed, the integers of least curvature * error + lagrangian * bits, in n
// columns from `offset` on, a multiple of kBlock. `importance`, if any, is what the error of each
// element counts for.
inline void search(const Solver& solver, const float* target, const float* gram, float* z,
                   const uint8_t* places, const Rates& rates, const Shape& shape, int64_t offset,
                   int64_t n, int states, float lagrangian, const float* importance, int threads) {
    const int64_t k = shape.rows;
    const auto costs = costs_of(rates, lagrangian, states);
    in_threads((n + kBlock - 1) / kBlock, threads, [&](int64_t block, Scratch& scratch) {
        const int64_t start = block * kBlock, size = std::min(kBlock, n - start);
        for (int64_t r = 0; r < k; ++r) {
            solver.best_row(target + start, gram, z + start, n, r, k, size, scratch.wanted);
            Row row{scratch.wanted, nullptr, std::max(gram[r * k + r], 1e-30f),
                    places + r * shape.columns() + offset + start, size};
            if (importance) row.curvature = weighted(row, importance + r * n + start, scratch);
            solver.cheapest(*costs, row, 0, z + r * n + start, scratch);
        }
    });
}

// Of an analysed matrix of integers, what a search of a part of it has to know.
struct Prices {
    const uint8_t* places;
    Shape shape;
    std::unique_ptr<Costs> costs;
    std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
    Prices(const uint8_t* places, const Rates& rates, const Shape& shape, int states, float lagrangian)
        : places(places), shape(shape), costs(costs_of(rates, lagrangian, states)) {}
};

// The same for one run of `size` columns, which begins at column `offset` of the whole; the paths
// begin in the given states, which become those in which they end. `importance`, if any, is what the
// error of each column counts for.
inline void search_run(const Solver& solver, const float* target, const float* gram, float* z,
                       Prices& prices, int64_t offset, int64_t size, int32_t* carried, int sweeps,
                       const float* importance = nullptr) {
    const int64_t n = prices.shape.columns(), k = prices.shape.rows;
    std::vector<float> wanted(size);
    std::vector<int32_t> ends(k);
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (int64_t r = 0; r < k; ++r) {
            solver.best_row(target, gram, z, size, r, k, size, wanted.data());
            int state = carried[r];
            for (int64_t c = 0; c < size;) {
                const int64_t left = kBlock - (offset + c) % kBlock, length = std::min(left, size - c);
                if (left == kBlock) state = 0;
                Row row{wanted.data() + c, nullptr, std::max(gram[r * k + r], 1e-30f),
                        prices.places + r * n + offset + c, length};
                if (importance) row.curvature = weighted(row, importance + c, *prices.scratch);
                state = solver.cheapest(*prices.costs, row, state, z + r * size + c, *prices.scratch);
                c += length;
            }
            ends[r] = state;
        }
    std::copy(ends.begin(), ends.end(), carried);
}

constexpr int64_t kChunk = 16;  // columns after which the later ones make up for the errors so far

// The same where the columns of a run share what is to be approximated: `wanted` (d, rows), which begins
// `first` columns before the run, and takes in what the later ones make up for: an error of column c is
// felt in column q by feedback[c, q] (rows, rows). The codebook is (d, k).
inline void search_fed_run(const Solver& solver, float* wanted, const float* codebook, const float* gram,
                           float* z, Prices& prices, int64_t offset, int64_t size, int32_t* carried,
                           int sweeps, const float* importance, const float* feedback, int64_t d,
                           int64_t rows, int64_t first) {
    const int64_t k = prices.shape.rows;
    std::vector<float> target(k * kChunk), own(k * kChunk);
    float error[kChunk];
    for (int64_t start = 0; start < size; start += kChunk) {
        const int64_t count = std::min(kChunk, size - start), here = first + start;
        std::fill(target.begin(), target.end(), 0.0f);
        for (int64_t r = 0; r < k; ++r) {
            for (int64_t i = 0; i < d; ++i)
                for (int64_t c = 0; c < count; ++c)
                    target[r * count + c] += codebook[i * k + r] * wanted[i * rows + here + c];
            std::copy_n(z + r * size + start, count, own.data() + r * count);
        }
        search_run(solver, target.data(), gram, own.data(), prices, offset + start, count, carried, sweeps,
                   importance + here);
        for (int64_t r = 0; r < k; ++r) std::copy_n(own.data() + r * count, count, z + r * size + start);
        for (int64_t i = 0; i < d; ++i) {
            float* const later = wanted + i * rows;
            for (int64_t c = 0; c < kChunk; ++c) error[c] = c < count ? later[here + c] : 0.0f;
            for (int64_t r = 0; r < k; ++r)
                for (int64_t c = 0; c < count; ++c) error[c] -= codebook[i * k + r] * own[r * count + c];
            for (int64_t c = 0; c < count; c += 4) {  // of columns beyond the last, the first one's
                const float* felt[4];
                for (int64_t e = 0; e < 4; ++e) felt[e] = feedback + (here + (c + e < count ? c + e : 0)) * rows;
                for (int64_t q = here + count; q < rows; ++q)
                    later[q] -= error[c] * felt[0][q] + error[c + 1] * felt[1][q] +
                                error[c + 2] * felt[2][q] + error[c + 3] * felt[3][q];
            }
        }
    }
}

// Squared error that each row of z (k, n) avoids, by itself, given the others.
inline std::vector<double> avoided(const Solver& solver, const float* target, const float* gram,
                                   const float* z, int64_t k, int64_t n, int threads) {
    const int64_t blocks = (n + kBlock - 1) / kBlock;
    std::vector<double> sums(blocks * k), all(k);
    in_threads(blocks, threads, [&](int64_t block, Scratch& scratch) {
        const int64_t start = block * kBlock, size = std::min(kBlock, n - start);
        solver.avoided(target + start, gram, z + start, n, k, size, sums.data() + block * k, scratch);
    });
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t r = 0; r < k; ++r) all[r] += sums[block * k + r];
    return all;
}

constexpr int64_t kPart = 1 << 16;  // columns whose sums are one job

// out (k, n) = a.T (k, m) b (m, n).
inline void product(const Solver& solver, const float* a, const float* b, float* out, int64_t m, int64_t k,
                    int64_t stride, int64_t n, int threads) {
    in_threads((n + kBlock - 1) / kBlock, threads, [&](int64_t block, Scratch&) {
        const int64_t start = block * kBlock;
        solver.product(a, b, out, m, k, stride, n, start, std::min(n, start + kBlock));
    });
}

// sums (k, d) = x (k, n) y (d, n).T
inline void inner(const Solver& solver, const float* x, const float* y, double* sums, int64_t k, int64_t d,
                  int64_t n, int threads) {
    const int64_t parts = (n + kPart - 1) / kPart;
    std::vector<double> each(parts * k * d);
    in_threads(parts, threads, [&](int64_t part, Scratch&) {
        solver.inner(x, y, each.data() + part * k * d, k, d, n, part * kPart, std::min(n, (part + 1) * kPart));
    });
    std::fill(sums, sums + k * d, 0.0);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < k * d; ++i) sums[i] += each[part * k * d + i];
}

// Squared error of w (d, n) - c.T (d, k) z (k, n).
inline double distortion(const Solver& solver, const float* w, const float* c, const float* z, int64_t d,
                         int64_t k, int64_t n, int threads) {
    const int64_t parts = (n + kPart - 1) / kPart;
    std::vector<double> each(parts);
    in_threads(parts, threads, [&](int64_t part, Scratch& scratch) {
        each[part] = solver.distortion(w, c, z, d, k, n, part * kPart, std::min(n, (part + 1) * kPart), scratch);
    });
    double total = 0;
    for (const double sum : each) total += sum;
    return total;
}

}  // namespace tersor
