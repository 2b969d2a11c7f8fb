// SPDX-License-Identifier: Apache-2.0
// Products with a dense matrix, compiled once for each instruction set, like integers.cpp, and with the
// same rule: nothing inline of the standard library.
#include "panels.hpp"

#include "simd.hpp"

namespace TERSOR_TARGET {
using namespace tersor;

constexpr int LANES = WIDTH / 4, PARTS = 16 / LANES;  // rows of a register, registers of a panel
constexpr int TOGETHER = PARTS == 1 ? 12 : 6;         // vectors: as many sums as there are registers for

// Of N vectors, with all rows of a panel, to the first `here` of them.
template <int N>
static void multiply(const float* panel, int64_t inputs, const float* x, const float* bias, float* y,
                     int64_t rows, int64_t here) {
    constexpr int64_t AHEAD = 16 * 16;  // numbers that memory takes some time to bring
    Floats sums[N][PARTS] = {};
    for (int64_t i = 0; i < inputs; ++i, panel += 16) {
        __builtin_prefetch(panel + AHEAD);
        Floats some[PARTS];
        for (int v = 0; v < PARTS; ++v) some[v] = load<Floats>(panel + v * LANES);
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < PARTS; ++v) sums[n][v] += x[n * inputs + i] * some[v];
    }
    for (int n = 0; n < N; ++n) {
        if (here == 16) {
            for (int v = 0; v < PARTS; ++v)
                store(y + n * rows + v * LANES, bias ? sums[n][v] + load<Floats>(bias + v * LANES) : sums[n][v]);
            continue;
        }
        float out[16];
        std::memcpy(out, sums[n], sizeof out);
        for (int64_t r = 0; r < here; ++r) y[n * rows + r] = out[r] + (bias ? bias[r] : 0);
    }
}

template <int N>
constexpr auto of = &multiply<(N < TOGETHER ? N : TOGETHER)>;

static void multiply_all(const Panels& w, const float* x, int64_t count, const float* bias, float* y,
                         int64_t first, int64_t last) {
    constexpr decltype(of<1>) products[] = {of<1>, of<2>, of<3>, of<4>,  of<5>,  of<6>,
                                            of<7>, of<8>, of<9>, of<10>, of<11>, of<12>};
    const int64_t sets = (count + TOGETHER - 1) / TOGETHER;
    for (int64_t panel = first; panel < last; ++panel) {
        const int64_t row = panel * 16, here = w.rows - row < 16 ? w.rows - row : 16;
        for (int64_t set = 0; set < sets; ++set) {
            const int64_t n = set * count / sets, next = (set + 1) * count / sets;
            products[next - n - 1](w.numbers + row * w.inputs, w.inputs, x + n * w.inputs,
                                   bias ? bias + row : nullptr, y + n * w.rows + row, w.rows, here);
        }
    }
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(panels_, target)
const tersor::PanelKernels tersor::NAMED(TERSOR_TARGET) = {TERSOR_TARGET::multiply_all};
