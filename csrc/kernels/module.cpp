// SPDX-License-Identifier: Apache-2.0
// What Python sees of the kernels. Tensors come as addresses and sizes in bytes, which cost a tenth of what
// arrays do. Sizes are checked here, and places that tensors tell are never outside of others; that tensors
// are contiguous, on the CPU and of the right type is checked in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "convolve.hpp"
#include "dispatch.hpp"

namespace nb = nanobind;
using namespace tersor;

struct Target {
    const char* name;
    const IntegerKernels* integers;
    const lookup::Kernels* lookup;
    const ConvolutionKernels* convolutions;
    const DirectKernels* direct;
    const PanelKernels* panels;
};

static Target choose() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"))
        return {"AVX-512 VNNI", &integers_avx512, &lookup::avx512, &convolutions_avx512, &direct_avx512,
                &panels_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return {"AVX2", &integers_avx2, &lookup::avx2, &convolutions_avx2, &direct_avx2,
                &panels_avx2};
    return {"", nullptr, nullptr, nullptr, nullptr, nullptr};
#elif defined(__ARM_NEON)
    return {"NEON", &integers_baseline, &lookup::baseline, &convolutions_baseline, &direct_baseline,
                &panels_baseline};
#else
    return {"", nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
}

static const Target target = choose();

// More than any size of a layer: products of two do not overflow.
constexpr int64_t LONGEST = int64_t{1} << 31;

// Bytes of so many numbers; an error if there are none such.
template <class T>
static int64_t bytes_of(std::initializer_list<int64_t> sizes) {
    int64_t bytes = sizeof(T);
    for (const int64_t size : sizes)
        if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes))
            throw std::invalid_argument("there is no buffer of such a size");
    return bytes;
}

// Where the numbers of a buffer are, if it has as many bytes as they take.
template <class T>
static T* take(const char* name, uintptr_t address, int64_t bytes, std::initializer_list<int64_t> sizes) {
    const int64_t needed = bytes_of<std::remove_const_t<T>>(sizes);
    if (bytes != needed || (bytes && !address))
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(bytes) +
                                    " bytes, needed are " + std::to_string(needed));
    static std::remove_const_t<T> nothing{};  // an empty buffer has no address, and places are counted from one
    return bytes ? reinterpret_cast<T*>(address) : &nothing;
}

// Numbers for each row, or none.
static const float* take_bias(uintptr_t address, int64_t bytes, int64_t rows) {
    return address || bytes ? take<const float>("the bias", address, bytes, {rows}) : nullptr;
}

static void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

static Integers integers_of(int64_t rows, int64_t inputs, int64_t d, int64_t padded_rank, int64_t wide,
                            int64_t narrow, int64_t middle, int64_t top, uintptr_t codebook,
                            int64_t codebook_bytes, uintptr_t scale, int64_t scale_bytes, uintptr_t codes,
                            int64_t codes_bytes, uintptr_t reach, int64_t reach_bytes, uintptr_t starts,
                            int64_t starts_bytes, uintptr_t escapes, int64_t escapes_bytes) {
    const bool counts = rows > 0 && inputs > 0 && d > 0 && narrow >= 0 && top >= 0 && top <= middle &&
                        middle <= wide && wide <= padded_rank && padded_rank % 8 == 0;
    const bool fits = counts && std::max({rows, inputs, d, padded_rank}) < LONGEST;
    require(fits && narrow <= padded_rank - wide, "these are sizes of no packed matrix");
    const int64_t count = escapes_bytes / 2;
    const Integers sizes{rows, inputs, d, padded_rank, wide, narrow, middle, top, nullptr, nullptr,
                         nullptr, nullptr, nullptr, nullptr, count};
    return {rows, inputs, d, padded_rank, wide, narrow, middle, top,
            take<const int16_t>("the codebook", codebook, codebook_bytes, {d, padded_rank}),
            take<const float>("the scale", scale, scale_bytes, {1}),
            take<const uint8_t>("the codes", codes, codes_bytes, {sizes.padded_rows(), sizes.row_bytes()}),
            take<const float>("the reach", reach, reach_bytes, {middle ? 0 : sizes.blocks()}),
            take<const int32_t>("the starts", starts, starts_bytes, {rows + 1}),
            take<const int16_t>("the escapes", escapes, escapes_bytes, {count}), count};
}

static lookup::Layer layer_of(int64_t rows, int64_t inputs, int64_t tile, int64_t pairs, int64_t binary,
                              uintptr_t codebook, int64_t codebook_bytes, uintptr_t codes,
                              int64_t codes_bytes) {
    const bool fits = rows > 0 && inputs > 0 && tile > 0 && pairs > 0 && pairs <= lookup::SUMMED;
    require(fits && std::max({rows, inputs, tile}) < LONGEST, "these are sizes of no packed matrix");
    const lookup::Layer sizes{rows, inputs, tile, pairs, binary != 0, nullptr, nullptr};
    return {rows, inputs, tile, pairs, binary != 0,
            take<const float>("the codebook", codebook, codebook_bytes, {tile, sizes.atoms()}),
            take<const uint8_t>("the codes", codes, codes_bytes, {sizes.panels(), sizes.panel_bytes()})};
}

static Panels panels_of(int64_t rows, int64_t inputs, uintptr_t numbers, int64_t bytes) {
    require(rows > 0 && inputs > 0 && std::max(rows, inputs) < LONGEST, "these are sizes of no matrix");
    const Panels sizes{rows, inputs, nullptr};
    return {rows, inputs, take<const float>("the matrix", numbers, bytes, {sizes.count(), 16, inputs})};
}

// A matrix whose tensors stay where they are, and from how many inputs on it takes them all at once.
template <class Matrix>
struct Product {
    int64_t many;
    Matrix w;

    template <class Kernels>
    void operator()(const Kernels& kernels, uintptr_t x, int64_t x_bytes, uintptr_t bias, int64_t bias_bytes,
                    uintptr_t y, int64_t y_bytes, int64_t batch, int64_t threads) const {
        static thread_local Workspace workspace;
        const auto* in = take<const float>("the input", x, x_bytes, {batch, w.inputs});
        const auto* added = take_bias(bias, bias_bytes, w.rows);
        auto* out = take<float>("the output", y, y_bytes, {batch, w.rows});
        nb::gil_scoped_release release;
        linear(kernels, w, in, batch, added, out, std::max<int64_t>(threads, 1), many, workspace);
    }
};

template <class Matrix, class Kernels>
static auto product_with(const Kernels* kernels) {
    return [kernels](const Product<Matrix>& matrix, uintptr_t x, int64_t x_bytes, uintptr_t bias,
                     int64_t bias_bytes, uintptr_t y, int64_t y_bytes, int64_t batch, int64_t threads) {
        matrix(*kernels, x, x_bytes, bias, bias_bytes, y, y_bytes, batch, threads);
    };
}

static void pick_rows(const Product<Integers>& matrix, uintptr_t index, int64_t index_bytes, uintptr_t y,
                      int64_t y_bytes, int64_t count, int64_t threads) {
    const auto* asked = take<const int64_t>("the index", index, index_bytes, {count});
    auto* out = take<float>("the output", y, y_bytes, {count, matrix.w.inputs});
    for (int64_t i = 0; i < count; ++i)
        if (asked[i] < 0 || asked[i] >= matrix.w.rows) throw nb::index_error("index out of range in self");
    static thread_local Workspace workspace;
    nb::gil_scoped_release release;
    pick(*target.integers, matrix.w, asked, count, out, std::max<int64_t>(threads, 1), workspace);
}

// Fourteen numbers, in the order of the struct.
static Window window_of(const std::vector<int64_t>& n) {
    require(n.size() == 14, "a window has 14 sizes");
    const Window s{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13]};
    bool fits = std::min({s.n, s.h, s.w, s.top, s.left}) >= 0;
    fits &= std::min({s.c, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w}) > 0;
    fits &= std::min({s.dilation_h, s.dilation_w, s.oh, s.ow}) > 0;
    require(fits && *std::max_element(n.begin(), n.end()) < LONGEST, "these are sizes of no convolution");
    bytes_of<float>({s.n, s.c, s.padded_h() + 8, s.padded_w() + 8});
    return s;
}

// The tensors of one convolution, of which the kernels know the sizes.
struct Images {
    const float *x, *bias;
    float* y;

    Images(const Window& s, int64_t rows, uintptr_t x, int64_t x_bytes, uintptr_t bias, int64_t bias_bytes,
           uintptr_t y, int64_t y_bytes)
        : x(take<const float>("the input", x, x_bytes, {s.n, s.c, s.h, s.w})),
          bias(take_bias(bias, bias_bytes, rows)),
          y(take<float>("the output", y, y_bytes, {s.n, rows, s.oh, s.ow})) {}
};

static void convolve_listed(uintptr_t x, int64_t x_bytes, uintptr_t bias, int64_t bias_bytes, uintptr_t y,
                            int64_t y_bytes, int64_t threads, const std::vector<int64_t>& window, int64_t rows,
                            int64_t d, int64_t rank, int64_t blocks, int64_t parts, uintptr_t codebook,
                            int64_t codebook_bytes, uintptr_t block, int64_t block_bytes, uintptr_t needs,
                            int64_t needs_bytes, uintptr_t entries, int64_t entries_bytes, uintptr_t runs,
                            int64_t runs_bytes, uintptr_t order, int64_t order_bytes, uintptr_t codes,
                            int64_t codes_bytes) {
    const Window s = window_of(window);
    const bool fits = rows > 0 && d > 0 && rank > 0 && blocks >= 0 && (parts == 2 || parts == 4);
    require(fits && std::max({rows, d, rank, blocks}) < LONGEST, "these are sizes of no lists");
    const Listed w{rows, s.c * s.kernel_h * s.kernel_w, d, rank, blocks, parts,
                   take<const float>("the codebook", codebook, codebook_bytes, {d, rank}),
                   take<const int32_t>("the block", block, block_bytes, {blocks + 1, FIELDS}),
                   take<const float>("the needs", needs, needs_bytes, {blocks, 4}),
                   take<const int16_t>("the entries", entries, entries_bytes, {entries_bytes / 4, 2}),
                   take<const int32_t>("the runs", runs, runs_bytes, {runs_bytes / 8, 2}),
                   take<const uint16_t>("the order", order, order_bytes, {blocks, rows}),
                   take<const uint8_t>("the codes", codes, codes_bytes, {codes_bytes})};
    const Images of(s, rows, x, x_bytes, bias, bias_bytes, y, y_bytes);
    require(leads_inside(w, entries_bytes / 4, runs_bytes / 8, codes_bytes), "the lists are damaged");
    static thread_local Workspace around, workspace;
    nb::gil_scoped_release release;
    convolve(*target.convolutions, w, s, of.x, of.bias, of.y, std::max<int64_t>(threads, 1), around, workspace);
}

// Dense weights: panels for tiles of this size, or depthwise if it is 0. Of images channels last: panels
// if it is 1, or depthwise if it is -1.
static void convolve_direct(uintptr_t x, int64_t x_bytes, uintptr_t bias, int64_t bias_bytes, uintptr_t y,
                            int64_t y_bytes, int64_t threads, const std::vector<int64_t>& window, int64_t rows,
                            int64_t size, uintptr_t weight, int64_t weight_bytes) {
    const Window s = window_of(window);
    const bool tiled = size == 2 || size == 4, plain = s.stride_h * s.stride_w * s.dilation_h * s.dilation_w == 1;
    require(rows > 0 && rows < LONGEST && (tiled || (size >= -1 && size <= 1)), "there is no such kernel");
    require(!tiled || (plain && s.kernel_h == 3 && s.kernel_w == 3), "tiles are for windows of 3 x 3, stride 1");
    require(tiled || size == 1 || rows == s.c, "this convolution is not depthwise");
    const int64_t numbers = (size + 2) * (size + 2), together = size == 1 ? 16 : PANEL;
    const int64_t padded = (rows + together - 1) / together * together;
    const float* w = tiled ? take<const float>("the weight", weight, weight_bytes, {numbers, padded, s.c})
                           : take<const float>("the weight", weight, weight_bytes,
                                               {size == 1 ? padded : 1, s.c, s.kernel_h, s.kernel_w});
    const Images of(s, rows, x, x_bytes, bias, bias_bytes, y, y_bytes);
    static thread_local Workspace around, workspace;
    const DirectKernels& kernels = *target.direct;
    threads = std::max<int64_t>(threads, 1);
    nb::gil_scoped_release release;
    if (size == 1) return convolve_panels(*target.panels, s, rows, of.x, w, of.bias, of.y, threads, workspace);
    if (size == -1) return convolve_depthwise_last(kernels, s, of.x, w, of.bias, of.y, threads, workspace);
    if (size) return convolve_winograd(kernels, s, size, rows, of.x, w, of.bias, of.y, threads, around, workspace);
    convolve_depthwise(kernels, s, of.x, w, of.bias, of.y, threads, around);
}

// The constructor of a matrix from its sizes and buffers.
template <class Matrix, class... Numbers>
static auto made_by(Matrix (*of)(Numbers...)) {
    return [of](Product<Matrix>* self, int64_t many, Numbers... numbers) {
        new (self) Product<Matrix>{many, of(numbers...)};
    };
}

NB_MODULE(_kernels, m) {
    m.attr("target") = target.name;
    // What Python packs by; it has these numbers itself, since it also packs where there are no kernels.
    nb::dict packing;
    packing["lookup columns"] = lookup::ATOMS;
    packing["lookup largest"] = lookup::LARGEST;
    packing["lookup pairs"] = lookup::SUMMED;
    packing["lookup panel"] = lookup::PANEL;
    packing["listed table"] = TABLE;
    packing["direct panel"] = PANEL;
    m.attr("packing") = packing;
    nb::class_<Product<Integers>>(m, "Integers")
        .def("__init__", made_by(&integers_of))
        .def("__call__", product_with<Integers>(target.integers))
        .def("rows", &pick_rows);
    nb::class_<Product<lookup::Layer>>(m, "Lookup")
        .def("__init__", made_by(&layer_of))
        .def("__call__", product_with<lookup::Layer>(target.lookup));
    nb::class_<Product<Panels>>(m, "Panels")
        .def("__init__", made_by(&panels_of))
        .def("__call__", product_with<Panels>(target.panels));
    m.def("convolve_listed", &convolve_listed);
    m.def("convolve_direct", &convolve_direct);
}
