// What Python sees of the native code; everything is checked here or by the caller in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "latents.hpp"

namespace nb = nanobind;
using namespace tersor;

using Integers = nb::ndarray<int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using States = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Matrix>
Shape shape_of(const Matrix& z, int64_t outer) {
    const int64_t columns = z.shape(1);
    if (outer < 1 || columns % outer) throw std::invalid_argument("runs do not fit the columns");
    return {static_cast<int64_t>(z.shape(0)), columns / outer, outer};
}
static Shape codebook_shape(const Integers& c) {
    return {static_cast<int64_t>(c.shape(0)), 1, static_cast<int64_t>(c.shape(1))};
}
constexpr auto ignore = [](const auto&...) {};

template <class Coder>
void both(Coder& coder, int16_t* codebook, const Shape& first, int codebook_start, int16_t* latent,
          const Shape& second, int states, int latent_start) {
    if (!first.rows) return;  // nor does the latent have any, whatever its columns
    Model of_codebook(first.outer, first.inner, codebook_start, 1);
    code(coder, of_codebook, codebook, first, 1, ignore);
    Model of_latent(second.outer, second.inner, latent_start, states);
    code(coder, of_latent, latent, second, states, ignore);
}

struct Analysis {
    Shape shape;
    Prices prices;
    std::vector<uint8_t> places;  // in the model: level of the expected magnitude << 1 | grid
    std::vector<double> bits;
};

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // objects that live until the interpreter ends are no leak
    m.def("release_memory", [] {
#ifdef __GLIBC__
        malloc_trim(0);
#endif
    });
    m.def("reachable", [](Integers z, int64_t outer, int states) {
        return reachable(z.data(), shape_of(z, outer), states);
    });
    m.def("encode", [](Integers codebook, int codebook_start, Integers latent, int64_t outer, int states,
                       int latent_start) {
        std::vector<uint8_t> out;
        {
            nb::gil_scoped_release release;
            Encoder coder;
            both(coder, codebook.data(), codebook_shape(codebook), codebook_start, latent.data(),
                 shape_of(latent, outer), states, latent_start);
            out = coder.finish();
        }
        return nb::bytes(reinterpret_cast<const char*>(out.data()), out.size());
    });
    m.def("decode", [](nb::bytes data, Integers codebook, int codebook_start, Integers latent,
                       int64_t outer, int states, int latent_start) {
        Decoder coder(reinterpret_cast<const uint8_t*>(data.c_str()), data.size());
        nb::gil_scoped_release release;
        both(coder, codebook.data(), codebook_shape(codebook), codebook_start, latent.data(),
             shape_of(latent, outer), states, latent_start);
        return coder.used();
    });
    nb::class_<Analysis>(m, "Analysis")
        .def_ro("bits", &Analysis::bits);
    m.def("analyse", [](Floats z, int64_t outer, int states, int start) {
        const Shape shape = shape_of(z, outer);
        nb::gil_scoped_release release;
        Model model(shape.outer, shape.inner, start, states);
        Counter coder;
        std::vector<uint8_t> places(z.size());
        std::vector<double> ends(shape.rows, 0.0);
        const int64_t n = shape.columns();
        code(coder, model, z.data(), shape, states,
             [&](const Counter& now, int64_t r, int64_t c, int at, int grid) {
            places[r * n + c] = static_cast<uint8_t>(Model::level(at) << 1 | grid);
            if (c == 0 && r) ends[r - 1] = now.bits;
        });
        if (shape.rows) ends.back() = coder.bits;
        for (int64_t r = shape.rows - 1; r > 0; --r) ends[r] -= ends[r - 1];
        return Analysis{shape, Prices(model), std::move(places), std::move(ends)};
    });
    m.def("slopes", [](Floats z, const Analysis& analysis, int states) {  // in the place of z
        nb::gil_scoped_release release;
        for (size_t i = 0; i < z.size(); ++i) {
            const int level = analysis.places[i] >> 1, grid = analysis.places[i] & 1;
            z.data()[i] = slope(z.data()[i], analysis.prices.bits[level][grid], coarseness(level), grid, states);
        }
    });
    m.def("search_run", [](Floats target, Floats gram, Floats z, const Analysis& analysis, int64_t offset,
                           States carried, int states, float price, int sweeps) {
        nb::gil_scoped_release release;
        search_run(target.data(), gram.data(), z.data(), analysis.places.data(), analysis.prices,
                   analysis.shape, offset, carried.data(), states, price, sweeps);
    });
    m.def("search", [](Floats target, Floats gram, Floats z, const Analysis& analysis, int64_t offset,
                       int states, float price, int threads) {
        nb::gil_scoped_release release;
        search(target.data(), gram.data(), z.data(), analysis.places.data(), analysis.prices,
               analysis.shape, offset, z.shape(1), states, price, threads);
    });
}
