// What Python sees of the look-up kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

#include "lookup.hpp"

namespace nb = nanobind;
using namespace tersor::lookup;

using Latent = nb::ndarray<const int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<uint8_t, nb::ndim<5>, nb::c_contig, nb::device::cpu>;

// Kept from call to call: what a thread needs for its largest layer.
static void* working_memory(int64_t bytes) {
    thread_local std::unique_ptr<float[]> memory;
    thread_local int64_t size = 0;
    const int64_t numbers = (bytes + 3) / 4;
    if (numbers > size) memory.reset(new float[numbers]), size = numbers;
    return memory.get();
}

NB_MODULE(_lookup, m) {
    nb::set_leak_warnings(false);  // objects that live until the interpreter ends are no leak
    m.def("in_use", &in_use);
    m.def("use", &use);
    m.def("pack", [](Latent latent, Codes codes, int64_t rows, int64_t inputs, int64_t tile, bool signs,
                     int threads) {
        const Layer layer{nullptr, nullptr, rows, inputs, tile, static_cast<int64_t>(codes.shape(2)), signs};
        if (static_cast<int64_t>(codes.size()) != layer.panels() * layer.panel_bytes() ||
            static_cast<int64_t>(latent.shape(1)) != rows * layer.blocks())
            throw std::invalid_argument("latent or codes do not fit the weight");
        nb::gil_scoped_release release;
        return pack(latent.data(), static_cast<int64_t>(latent.shape(0)), layer, codes.data(), threads);
    });
    // Addresses instead of arrays, whose conversion would take longer than a small product; the caller
    // in Python checks them. Strides are in elements: of a batch item, and of an element of it.
    m.def("linear", [](uintptr_t x, int64_t x_item, int64_t x_element, uintptr_t codes, uintptr_t codebook,
                       int64_t rows, int64_t inputs, int64_t tile, int64_t pairs, bool signs,
                       uintptr_t y, int64_t batch, bool precise, int threads) {
        const Layer layer{reinterpret_cast<const uint8_t*>(codes), reinterpret_cast<const float*>(codebook),
                          rows, inputs, tile, pairs, signs};
        const Matrix<const float> from{reinterpret_cast<const float*>(x), x_item, x_element};
        const Matrix<float> to{reinterpret_cast<float*>(y), rows, 1};
        nb::gil_scoped_release release;
        void* working = working_memory(working_bytes(layer, precise));
        (precise ? batched : look_up)(layer, from, to, batch, working, threads);
    });
}
