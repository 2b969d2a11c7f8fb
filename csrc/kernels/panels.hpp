// SPDX-License-Identifier: Apache-2.0
// Product with a dense matrix whose rows lie in the order in which they are multiplied.
#pragma once

#include <cstdint>

namespace tersor {

// A matrix (rows, inputs): 16 rows side by side, [panel][input][16], the last ones padded with zeros.
struct Panels {
    int64_t rows, inputs;
    const float* numbers;
    int64_t count() const { return (rows + 15) / 16; }
};

struct PanelKernels {
    // y[n][row] for `count` vectors x (count, inputs) and the rows of panels first to last.
    void (*multiply)(const Panels&, const float* x, int64_t count, const float* bias, float* y, int64_t first,
                     int64_t last);
};

extern const PanelKernels panels_baseline, panels_avx2, panels_avx512;

}  // namespace tersor
