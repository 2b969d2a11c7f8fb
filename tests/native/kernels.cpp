// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set against sums of products, for random codes. Prints what differs.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/dispatch.hpp"

using namespace tersor;
#define JOIN(a, b) a##b
#define NAMED(target) JOIN(integers_, target)

static std::mt19937 engine(0);
static int draw(int least, int most) { return std::uniform_int_distribution<>(least, most)(engine); }
static int near(float spread, int least, int most) {  // to zero, as latents are
    const int z = std::lround(std::normal_distribution<float>(0, spread)(engine));
    return z < least ? least : z > most ? most : z;
}

struct Layer {
    std::vector<int16_t> codebook, escapes;
    std::vector<float> reach, dense;
    std::vector<uint8_t> codes;
    std::vector<int32_t> starts;
    float scale = 1 / 16.f;
};

// Codes of one row at the places that the layout gives them, and the dense row that they stand for.
static void fill(const Integers& w, int64_t row, Layer& layer) {
    std::vector<int> z(w.columns());
    for (int64_t c = 0; c < w.columns(); ++c) {
        const bool wide = c < w.wide;
        const int64_t used = wide ? w.wide_rank * w.tiles : w.wide + w.narrow_rank * w.tiles;
        z[c] = c < used ? (wide ? near(2, -8, 7) : near(0.5f, -1, 2)) : 0;
        const int64_t at = wide ? c : c - w.wide, group = wide ? 8 : 16;
        const int64_t quad = at / group + (wide ? 0 : w.wide / 8), bits = wide ? 4 : 2;
        const int code = z[c] + (wide ? 8 : 1);
        layer.codes[(row / 16 * w.row_bytes() / 4 + quad) * 64 + row % 16 * 4 + at % 4] |=
            code << at % group / 4 * bits;
    }
    for (int64_t b = 0, start = 0; b < w.blocks(); ++b) {
        float sum = 0;
        const int64_t size = b < w.wide / 32 ? 32 : 64;
        for (int64_t c = start; c < start + size; ++c) sum += z[c] * z[c];
        start += size;
        layer.reach[b] = std::max(layer.reach[b], std::sqrt(sum));
    }
    const int64_t columns = w.rank() * w.tiles, first = draw(0, columns < 256 ? columns - 1 : 255);
    int64_t column = 0;
    for (const int64_t gap : {first, int64_t(first + 1 < columns && draw(0, 1))}) {
        const int more = draw(-128, 127);
        column += gap;
        layer.escapes.push_back(gap + more * 256);
        z[w.place_of(column)] += more;
    }
    layer.starts.push_back(layer.escapes.size());
    for (int64_t i = 0; i < w.inputs; ++i)
        for (int64_t p = 0; p < w.wide_rank + w.narrow_rank; ++p)
            layer.dense[row * w.inputs + i] +=
                layer.scale * layer.codebook[i % w.d * w.padded_rank + p] * z[w.place(p) + i / w.d];
}

static int check(int64_t rows, int64_t inputs, int64_t d, int64_t wide, int64_t narrow, int64_t batch) {
    const int64_t padded = (wide + narrow + 7) / 8 * 8;
    Integers w{rows, inputs, d, padded, wide, narrow, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    Layer layer;
    layer.codebook.assign(d * padded, 0);
    for (int64_t i = 0; i < d; ++i)
        for (int64_t p = 0; p < wide + narrow; ++p) layer.codebook[i * padded + p] = draw(-9, 9);
    layer.reach.assign(w.blocks(), 0);
    layer.codes.assign(w.padded_rows() * w.row_bytes(), 0);
    layer.dense.assign(rows * inputs, 0);
    layer.starts = {0};
    w.codebook = layer.codebook.data(), w.scale = &layer.scale;
    for (int64_t row = 0; row < rows; ++row) fill(w, row, layer);
    w.codes = layer.codes.data(), w.reach = layer.reach.data();
    w.starts = layer.starts.data(), w.escapes = layer.escapes.data();
    w.escape_count = layer.escapes.size();
    std::vector<float> x(batch * inputs), bias(rows), y(batch * rows);
    for (float& v : x) v = std::normal_distribution<float>()(engine);
    for (float& v : bias) v = draw(-3, 3);
    Workspace workspace;
    linear(NAMED(TERSOR_TARGET), w, x.data(), batch, bias.data(), y.data(), 2, 8, workspace);
    double error = 0, size = 0;
    for (int64_t n = 0; n < batch; ++n)
        for (int64_t row = 0; row < rows; ++row) {
            double sum = bias[row];
            for (int64_t i = 0; i < inputs; ++i) sum += layer.dense[row * inputs + i] * x[n * inputs + i];
            error += std::pow(sum - y[n * rows + row], 2), size += sum * sum;
        }
    const bool wrong = !(std::sqrt(error / size) < (batch < 8 ? 0.01 : 0.001));
    if (wrong) std::printf("%ld x %ld, batch %ld: %g\n", (long)rows, (long)inputs, (long)batch, std::sqrt(error / size));
    return wrong;
}

int main() {
    int wrong = 0;
    for (int64_t batch : {1, 2, 3, 4, 7, 8, 16, 19}) {
        wrong += check(40, 128, 8, 8, 0, batch) + check(33, 70, 16, 5, 12, batch);
        wrong += check(1, 1, 1, 1, 0, batch) + check(600, 300, 3, 1, 2, batch);
    }
    return wrong != 0;
}
