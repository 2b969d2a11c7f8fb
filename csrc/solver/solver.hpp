// SPDX-License-Identifier: Apache-2.0
// The inner loops of the solver, compiled for each instruction set, with the same results on all: each
// sum has one order, whatever the number of lanes, and no multiplication is fused with an addition.
#pragma once

#include <cstdint>

namespace tersor {

constexpr int kGrades = 40;        // levels of the expected magnitude, as in the model
constexpr int kRates = 64;        // magnitudes in a table of costs
constexpr int64_t kBlock = 4096;   // columns after which the trellis starts anew
constexpr int kMostStates = 64;

// What a search has to know of one row of integers, at most kBlock of them.
struct Row {
    const float* wanted;      // real numbers to approximate
    const float* curvature;   // what the squared error of each counts for; null: `own`, for all
    float own;
    const uint8_t* places;    // level of the expected magnitude << 1 | grid
    int64_t count;
};

// Rates of an index in squared error, and what the trellis is.
struct Costs {
    float bits[kGrades][2][kRates];
    int32_t shift[kGrades];   // lowest bits of an index that are coded as they are
    int states;
};

// Memory of one thread.
struct Scratch {
    alignas(64) float costs[4][kBlock];
    alignas(64) float values[4][kBlock];
    alignas(64) uint32_t choices[kBlock][2];
    alignas(64) float wanted[kBlock], curvature[kBlock];
};

struct Solver {
    const char* name;
    // The integers of least error + lagrangian from a state on; returns the state that the path ends in.
    int (*cheapest)(const Costs&, const Row&, int state, float* z, Scratch&);
    // What row r of z (k, stride) should be, in real numbers, while the others stay as they are.
    void (*best_row)(const float* target, const float* gram, const float* z, int64_t stride, int64_t r,
                     int64_t k, int64_t n, float* wanted);
    // Squared error that each row of z avoids: z_r (2 target_r - 2 gram_r z + gram_rr z_r), added.
    void (*avoided)(const float* target, const float* gram, const float* z, int64_t stride, int64_t k,
                    int64_t n, double* sums, Scratch&);
    // out (k, n) = a.T (k, m) b (m, n), whose rows are `stride` numbers apart, for columns first to
    // last; each sum in the order of m.
    void (*product)(const float* a, const float* b, float* out, int64_t m, int64_t k, int64_t stride,
                    int64_t n, int64_t first, int64_t last);
    // sums (k, d) += x (k, n) y (d, n).T, for columns first to last, in pieces of 16 sums.
    void (*inner)(const float* x, const float* y, double* sums, int64_t k, int64_t d, int64_t n,
                  int64_t first, int64_t last);
    // Squared error of w (d, n) - c.T (d, k) z (k, n), for columns first to last.
    double (*distortion)(const float* w, const float* c, const float* z, int64_t d, int64_t k, int64_t n,
                         int64_t first, int64_t last, Scratch&);
};

extern const Solver kSolverBaseline, kSolverAvx2, kSolverAvx512;

}  // namespace tersor
