// What Python sees of the native code; everything is checked here or by the caller in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "latents.hpp"
#include "signs.hpp"

namespace nb = nanobind;
using namespace tersor;

using Integers = nb::ndarray<int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Orders = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using States = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Matrix>
Shape shape_of(const Matrix& z, int64_t outer) {
    const int64_t columns = z.shape(1);
    if (outer < 1 || columns % outer) throw std::invalid_argument("runs do not fit the columns");
    return {static_cast<int64_t>(z.shape(0)), columns / outer, outer, columns};
}
static Shape codebook_shape(const Integers& c) {
    const int64_t columns = c.shape(1);
    return {static_cast<int64_t>(c.shape(0)), 1, columns, columns};
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

// Analyses slices of a matrix that lie side by side, of runs of these lengths.
Analysis analyse(const Floats& z, const std::vector<int64_t>& outers, int states, int start) {
    int64_t outer = 0;
    for (const int64_t length : outers) {
        if (length < 1) throw std::invalid_argument("a slice has no rows");
        outer += length;
    }
    const Shape whole = shape_of(z, outer);
    const int64_t n = whole.columns();
    Analysis found{whole, Prices(), std::vector<uint8_t>(z.size()), std::vector<double>(whole.rows, 0.0)};
    MeanPrices prices;
    int64_t first = 0;
    for (const int64_t length : outers) {
        const Shape shape{whole.rows, whole.inner, length, n};
        Model model(shape.outer, shape.inner, start, states);
        Counter coder;
        std::vector<double> ends(shape.rows, 0.0);
        code(coder, model, z.data() + first, shape, states,
             [&](const Counter& now, int64_t r, int64_t c, int at, int grid) {
            found.places[r * n + first + c] = static_cast<uint8_t>(Model::level(at) << 1 | grid);
            if (c == 0 && r) ends[r - 1] = now.bits;
        });
        if (shape.rows) ends.back() = coder.bits;
        for (int64_t r = 0; r < shape.rows; ++r) found.bits[r] += r ? ends[r] - ends[r - 1] : ends[r];
        prices.add(Prices(model), static_cast<double>(std::max<int64_t>(shape.columns(), 1)));
        first += shape.columns();
    }
    found.prices = prices.mean();
    return found;
}

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
    m.def("analyse", [](Floats z, const std::vector<int64_t>& outers, int states, int start) {
        nb::gil_scoped_release release;
        return analyse(z, outers, states, start);
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
                   analysis.shape, offset, z.shape(1), carried.data(), states, price, sweeps);
    });
    m.def("search", [](Floats target, Floats gram, Floats z, const Analysis& analysis, int64_t offset,
                       int states, float price, std::optional<Floats> importance, int threads) {
        nb::gil_scoped_release release;
        search(target.data(), gram.data(), z.data(), analysis.places.data(), analysis.prices,
               analysis.shape, offset, z.shape(1), states, price,
               importance ? importance->data() : nullptr, threads);
    });
    m.def("search_signs", [](Floats target, Floats gram, Floats z, Orders orders, int threads) {
        const int64_t k = z.shape(0), n = z.shape(1);
        nb::gil_scoped_release release;
        search_signs(target.data(), gram.data(), z.data(), k, n, orders.data(), orders.shape(0), threads);
    });
}
