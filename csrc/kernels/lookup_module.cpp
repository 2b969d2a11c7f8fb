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
using Codebook = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Inputs = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Outputs = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

static Layer layer_of(const Codes& codes, const float* codebook, int64_t rows, int64_t inputs, int64_t tile) {
    const Layer layer{codes.data(), codebook, rows, inputs, tile, static_cast<int64_t>(codes.shape(2))};
    if (static_cast<int64_t>(codes.shape(0)) != layer.panels() ||
        static_cast<int64_t>(codes.shape(1)) != layer.blocks() || codes.shape(3) != PANEL || codes.shape(4) != 2)
        throw std::invalid_argument("codes do not fit the weight");
    return layer;
}

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
    m.def("pack", [](Latent latent, Codes codes, int64_t rows, int64_t inputs, int64_t tile, int threads) {
        const Layer layer = layer_of(codes, nullptr, rows, inputs, tile);
        if (static_cast<int64_t>(latent.shape(1)) != rows * layer.blocks())
            throw std::invalid_argument("latent does not fit the weight");
        nb::gil_scoped_release release;
        return pack(latent.data(), static_cast<int64_t>(latent.shape(0)), layer, codes.data(), threads);
    });
    m.def("linear", [](Inputs x, Codes codes, Codebook codebook, Outputs y, int64_t rows, int threads,
                       bool precise) {
        const Layer layer = layer_of(codes, codebook.data(), rows, static_cast<int64_t>(x.shape(1)),
                                     static_cast<int64_t>(codebook.shape(0)));
        const int64_t batch = static_cast<int64_t>(x.shape(0));
        if (codebook.shape(1) != ATOMS || y.shape(0) != x.shape(0) || static_cast<int64_t>(y.shape(1)) != rows)
            throw std::invalid_argument("codebook or output do not fit");
        const Matrix<const float> from{x.data(), x.stride(0), x.stride(1)};
        const Matrix<float> to{y.data(), y.stride(0), y.stride(1)};
        nb::gil_scoped_release release;
        void* working = working_memory(working_bytes(layer, precise));
        (precise ? batched : look_up)(layer, from, to, batch, working, threads);
    });
}
