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
            if (importance) {
                for (int64_t c = 0; c < size; ++c)
                    scratch.curvature[c] = row.own * importance[r * n + start + c];
                row.curvature = scratch.curvature;
            }
            solver.cheapest(*costs, row, 0, z + r * n + start, scratch);
        }
    });
}

// The same for one run of `size` columns, which begins at column `offset` of the whole; the paths
// begin in the given states, which become those in which they end.
inline void search_run(const Solver& solver, const float* target, const float* gram, float* z,
                       const uint8_t* places, const Rates& rates, const Shape& shape, int64_t offset,
                       int64_t size, int32_t* carried, int states, float lagrangian, int sweeps) {
    const int64_t n = shape.columns(), k = shape.rows;
    const auto costs = costs_of(rates, lagrangian, states);
    const auto scratch = std::make_unique<Scratch>();
    std::vector<float> wanted(size);
    std::vector<int32_t> ends(k);
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (int64_t r = 0; r < k; ++r) {
            solver.best_row(target, gram, z, size, r, k, size, wanted.data());
            int state = carried[r];
            for (int64_t c = 0; c < size;) {
                const int64_t left = kBlock - (offset + c) % kBlock, length = std::min(left, size - c);
                if (left == kBlock) state = 0;
                const Row row{wanted.data() + c, nullptr, std::max(gram[r * k + r], 1e-30f),
                              places + r * n + offset + c, length};
                state = solver.cheapest(*costs, row, state, z + r * size + c, *scratch);
                c += length;
            }
            ends[r] = state;
        }
    std::copy(ends.begin(), ends.end(), carried);
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
