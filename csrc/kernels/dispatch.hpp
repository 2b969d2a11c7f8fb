// SPDX-License-Identifier: Apache-2.0
// The product for any number of inputs: which kernel, on how many threads, in which memory.
#pragma once

#include <algorithm>

#include "integers.hpp"
#include "lookup.hpp"
#include "panels.hpp"
#include "threads.hpp"

namespace tersor {

// Number of threads that so much work is worth. Starting one takes about as long as 100,000 steps, waking one
// of OpenMP's a third of that at most.
inline int64_t worth(int64_t steps, int64_t threads) {
    const int64_t most = steps / (openmp().parallel ? 130000 : 400000) + 1;
    return threads < most ? threads : most;
}

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory for a job of either of the two products of many inputs.
inline int64_t many_bytes(const Integers& w, int64_t row_tiles, int64_t count) {
    const int64_t panels = w.d * w.padded_rank * 4;
    if (w.middle) return aligned((w.low_columns() * 16 + w.columns() * count) * 4 + panels);
    return aligned((16 * 260 + 64) * MANY * 2 + (w.columns() * 2 + row_tiles * 16) * MANY * 4 + panels);
}

inline void linear_few(const IntegerKernels& kernels, const Integers& w, const float* x, int64_t count,
                       const float* bias, float* y, int64_t threads, Workspace& workspace) {
    const int64_t bytes = aligned(w.columns() * 5 + w.columns() / 16 * 4 + 4);
    char* memory = workspace.of(count * bytes);
    Rounded u[FEW];
    for (int64_t n = 0; n < count; ++n, memory += bytes) {
        auto* real = reinterpret_cast<float*>(memory);
        float *scales = real + w.columns(), *offset = scales + w.columns() / 16;
        u[n] = {real, reinterpret_cast<int8_t*>(offset + 1), scales, offset};
        kernels.round(w, x + n * w.inputs, u[n]);
    }
    const int64_t tiles = w.padded_rows() / 16;
    const int64_t jobs = worth(w.rows * w.columns() * count / 8, threads);
    parallel(jobs, jobs, [&](int64_t job, int64_t) {
        kernels.few(w, u, count, bias, y, job * tiles / jobs, (job + 1) * tiles / jobs);
    });
}

inline void linear_many(const IntegerKernels& kernels, const Integers& w, const float* x, int64_t batch,
                        const float* bias, float* y, int64_t threads, Workspace& workspace) {
    const auto& kernel = w.middle ? kernels.unpacked : kernels.many;
    const int64_t tiles = w.padded_rows() / 16;
    threads = worth(w.rows * w.columns() * batch / 16, threads);
    // What is unpacked once serves a whole set.
    const int64_t each = w.middle ? std::clamp((batch + threads - 1) / threads, MANY, MOST) : MANY;
    const int64_t sets = (batch + each - 1) / each;
    // At most 4096 rows at once, whose sums stay in the cache; fewer if there are not enough jobs.
    int64_t parts = w.middle ? 1 : (tiles + 255) / 256;
    if (sets * parts < 2 * threads && parts < threads) parts = threads;
    const int64_t bytes = many_bytes(w, (tiles + parts - 1) / parts, each);
    char* memory = workspace.of(threads * bytes);
    parallel(sets * parts, threads, [&](int64_t job, int64_t slot) {
        const int64_t set = job / parts, part = job % parts, start = set * each;
        const int64_t count = batch - start < each ? batch - start : each;
        kernel(w, x + start * w.inputs, count, bias, y + start * w.rows, part * tiles / parts,
               (part + 1) * tiles / parts, memory + slot * bytes);
    });
}

// y (batch, rows) = x (batch, inputs) times the matrix, plus bias. From `many` inputs on by tables; from
// SOME on unpacked, if there are middle digits.
inline void linear(const IntegerKernels& kernels, const Integers& w, const float* x, int64_t batch,
                   const float* bias, float* y, int64_t threads, int64_t many, Workspace& workspace) {
    if (batch >= (w.middle ? SOME : many))
        return linear_many(kernels, w, x, batch, bias, y, threads, workspace);
    for (int64_t n = 0; n < batch; n += FEW)
        linear_few(kernels, w, x + n * w.inputs, batch - n < FEW ? batch - n : FEW, bias, y + n * w.rows,
                   threads, workspace);
}

// Some rows of the matrix, to y (count, inputs); the indices are in range.
inline void pick(const IntegerKernels& kernels, const Integers& w, const int64_t* index, int64_t count,
                 float* y, int64_t threads, Workspace& workspace) {
    threads = worth(count * w.inputs * w.padded_rank / 8, threads);
    const int64_t least = (count + MOST - 1) / MOST, jobs = least < threads ? threads : least;
    const int64_t bytes = aligned((3 * w.padded_rank + (w.low_columns() + w.padded_rank) * MOST) * 4);
    char* memory = workspace.of(threads * bytes);
    parallel(jobs, threads, [&](int64_t job, int64_t slot) {
        const int64_t first = job * count / jobs, last = (job + 1) * count / jobs;
        kernels.pick(w, index + first, last - first, y + first * w.inputs, memory + slot * bytes);
    });
}

namespace lookup {

// y (batch, rows) = x (batch, inputs) times the matrix, plus bias. From `many` inputs on by `many`.
inline void linear(const Kernels& kernels, const Layer& w, const float* x, int64_t batch, const float* bias,
                   float* y, int64_t threads, int64_t many, Workspace& workspace) {
    const bool at_once = batch >= many;
    const int64_t panels = w.panels(), jobs = worth(panels * w.panel_bytes() * (at_once ? batch : 1), threads);
    const int64_t parts = jobs < panels ? jobs : panels, step = at_once ? LANES : FEW;
    const int64_t bytes = aligned(w.blocks() * w.tables() * FEW * 16);
    char* memory = workspace.of(at_once ? panels * PANEL * LANES * 4 : bytes + w.blocks() * FEW * 4);
    auto* tables = reinterpret_cast<int8_t*>(memory);
    auto* reals = reinterpret_cast<float*>(at_once ? memory : memory + bytes);
    for (int64_t n = 0; n < batch; n += step, x += step * w.inputs, y += step * w.rows) {
        const int64_t count = batch - n < step ? batch - n : step;
        if (!at_once) kernels.tabulate(w, x, count, tables, reals);
        parallel(parts, parts, [&](int64_t job, int64_t) {
            const int64_t first = job * panels / parts, last = (job + 1) * panels / parts;
            if (at_once) return kernels.many(w, x, count, bias, reals, y, first, last);
            kernels.few(w, tables, reals, count, bias, y, first, last);
        });
    }
}

}  // namespace lookup

// Parts of a matrix, where there are too few sets of vectors: several for each thread, since one may be late.
inline int64_t parts_of(int64_t sets, int64_t panels, int64_t threads) {
    return threads == 1 || sets >= 4 * threads ? 1 : std::min(4 * threads, panels);
}

// y (batch, rows) = x (batch, inputs) times the matrix, plus bias; up to `many` inputs at once.
inline void linear(const PanelKernels& kernels, const Panels& w, const float* x, int64_t batch,
                   const float* bias, float* y, int64_t threads, int64_t many, Workspace&) {
    threads = worth(w.rows * w.inputs * batch / 8, threads);
    const int64_t sets = (batch + many - 1) / many, panels = w.count();
    const int64_t parts = parts_of(sets, panels, threads);
    parallel(sets * parts, threads, [&](int64_t job, int64_t) {
        const int64_t first = job / parts * batch / sets, last = (job / parts + 1) * batch / sets;
        kernels.multiply(w, x + first * w.inputs, last - first, bias, y + first * w.rows,
                         job % parts * panels / parts, (job % parts + 1) * panels / parts);
    });
}

}  // namespace tersor
