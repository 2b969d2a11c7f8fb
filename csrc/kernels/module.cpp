// What Python sees of the kernels. Tensors come as addresses, which cost a tenth of what arrays do; their
// sizes and types are checked in Python, and places that they tell, once a layer is packed or loaded.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

template <class T>
static T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// A matrix whose tensors stay where they are, and from how many inputs on it takes them all at once.
template <class Matrix>
struct Product {
    int64_t many;
    Matrix w;

    template <class Kernels>
    void operator()(const Kernels& kernels, uintptr_t x, uintptr_t bias, uintptr_t y, int64_t batch,
                    int64_t threads) const {
        static thread_local Workspace workspace;
        nb::gil_scoped_release release;
        linear(kernels, w, at<const float>(x), batch, at<const float>(bias), at<float>(y), threads, many,
               workspace);
    }
};

// Fourteen numbers, in the order of the struct.
static Window window_of(const std::vector<int64_t>& n) {
    return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13]};
}

NB_MODULE(_kernels, m) {
    m.attr("target") = target.name;
    nb::class_<Product<Integers>>(m, "Integers")
        .def("__init__",
             [](Product<Integers>* self, int64_t many, int64_t rows, int64_t inputs, int64_t d,
                int64_t padded_rank, int64_t wide, int64_t narrow, int64_t middle, int64_t top,
                uintptr_t codebook, uintptr_t scale, uintptr_t codes, uintptr_t reach, uintptr_t starts,
                uintptr_t escapes) {
                 new (self) Product<Integers>{
                     many,
                     {rows, inputs, d, padded_rank, wide, narrow, middle, top, at<const int16_t>(codebook),
                      at<const float>(scale), at<const uint8_t>(codes), at<const float>(reach),
                      at<const int32_t>(starts), at<const int16_t>(escapes)}};
             })
        .def("__call__",
             [](const Product<Integers>& matrix, uintptr_t x, uintptr_t bias, uintptr_t y, int64_t batch,
                int64_t threads) { matrix(*target.integers, x, bias, y, batch, threads); })
        .def("rows", [](const Product<Integers>& matrix, uintptr_t index, uintptr_t y, int64_t count,
                        int64_t threads) {
            const auto* asked = at<const int64_t>(index);
            for (int64_t i = 0; i < count; ++i)
                if (asked[i] < 0 || asked[i] >= matrix.w.rows)
                    throw nb::index_error("index out of range in self");
            static thread_local Workspace workspace;
            nb::gil_scoped_release release;
            pick(*target.integers, matrix.w, asked, count, at<float>(y), threads, workspace);
        });
    nb::class_<Product<lookup::Layer>>(m, "Lookup")
        .def("__init__",
             [](Product<lookup::Layer>* self, int64_t many, int64_t rows, int64_t inputs, int64_t tile,
                int64_t pairs, int64_t signs, uintptr_t codebook, uintptr_t codes) {
                 new (self) Product<lookup::Layer>{
                     many,
                     {rows, inputs, tile, pairs, signs != 0, at<const float>(codebook), at<const uint8_t>(codes)}};
             })
        .def("__call__", [](const Product<lookup::Layer>& matrix, uintptr_t x, uintptr_t bias, uintptr_t y,
                            int64_t batch, int64_t threads) {
            matrix(*target.lookup, x, bias, y, batch, threads);
        });
    nb::class_<Product<Panels>>(m, "Panels")
        .def("__init__",
             [](Product<Panels>* self, int64_t many, int64_t rows, int64_t inputs, uintptr_t numbers) {
                 new (self) Product<Panels>{many, {rows, inputs, at<const float>(numbers)}};
             })
        .def("__call__", [](const Product<Panels>& matrix, uintptr_t x, uintptr_t bias, uintptr_t y,
                            int64_t batch, int64_t threads) {
            matrix(*target.panels, x, bias, y, batch, threads);
        });
    m.def("convolve_listed", [](uintptr_t x, uintptr_t bias, uintptr_t y, int64_t threads,
                                const std::vector<int64_t>& window, int64_t rows, int64_t inputs, int64_t d,
                                int64_t rank, int64_t blocks, int64_t parts, uintptr_t codebook, uintptr_t block,
                                uintptr_t needs, uintptr_t entries, uintptr_t runs, uintptr_t order,
                                uintptr_t codes) {
        const Listed w{rows, inputs, d, rank, blocks, parts, at<const float>(codebook), at<const int32_t>(block),
                       at<const float>(needs), at<const int16_t>(entries), at<const int32_t>(runs),
                       at<const uint16_t>(order), at<const uint8_t>(codes)};
        static thread_local Workspace around, workspace;
        nb::gil_scoped_release release;
        convolve(*target.convolutions, w, window_of(window), at<const float>(x), at<const float>(bias),
                 at<float>(y), threads, around, workspace);
    });
    // Dense weights: panels for tiles of this size, or depthwise if it is 0. Of images channels last: panels
    // if it is 1, or depthwise if it is -1.
    m.def("convolve_direct", [](uintptr_t x, uintptr_t bias, uintptr_t y, int64_t threads,
                                const std::vector<int64_t>& window, int64_t rows, int64_t size,
                                uintptr_t weight) {
        static thread_local Workspace around, workspace;
        const Window s = window_of(window);
        const DirectKernels& kernels = *target.direct;
        const auto *in = at<const float>(x), *w = at<const float>(weight), *b = at<const float>(bias);
        auto* out = at<float>(y);
        nb::gil_scoped_release release;
        if (size == 1) return convolve_panels(*target.panels, s, rows, in, w, b, out, threads, workspace);
        if (size == -1) return convolve_depthwise_last(kernels, s, in, w, b, out, threads, workspace);
        if (size) return convolve_winograd(kernels, s, size, rows, in, w, b, out, threads, around, workspace);
        convolve_depthwise(kernels, s, in, w, b, out, threads, around);
    });
}
