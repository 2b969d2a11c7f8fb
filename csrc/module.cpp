// SPDX-License-Identifier: Apache-2.0
// What Python sees of the native code; everything is checked here or by the caller in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "binary.hpp"
#include "search.hpp"
#include "streams.hpp"

namespace nb = nanobind;
using namespace tersor;

using Integers = nb::ndarray<int16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Orders = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using States = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static Shape shape_of(const Integers& z, int64_t outer) { return tersor::shape_of(z.shape(0), z.shape(1), outer); }
static Shape shape_of(const Integers& codebook) { return codebook_shape(codebook.shape(0), codebook.shape(1)); }

using Given = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;  // rows with gaps between them
using Doubles = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Those that this machine can run, the fastest first.
static std::vector<const Solver*> solvers() {
    std::vector<const Solver*> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        all.push_back(&kSolverAvx512);
    if (__builtin_cpu_supports("avx2")) all.push_back(&kSolverAvx2);
#endif
    all.push_back(&kSolverBaseline);
    return all;
}

static const Solver* solver = solvers().front();

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // objects that live until the interpreter ends are no leak
    m.attr("LARGEST") = kLargest;
    m.attr("BLOCK") = kBlock;
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
            both(coder, codebook.data(), shape_of(codebook), codebook_start, latent.data(),
                 shape_of(latent, outer), states, latent_start);
            out = coder.finish();
        }
        return nb::bytes(reinterpret_cast<const char*>(out.data()), out.size());
    });
    m.def("decode", [](nb::bytes data, Integers codebook, int codebook_start, Integers latent,
                       int64_t outer, int states, int latent_start) {
        Decoder coder(reinterpret_cast<const uint8_t*>(data.c_str()), data.size());
        nb::gil_scoped_release release;
        both(coder, codebook.data(), shape_of(codebook), codebook_start, latent.data(),
             shape_of(latent, outer), states, latent_start);
        return coder.used();
    });
    nb::class_<Analysis>(m, "Analysis")
        .def_ro("bits", &Analysis::bits);
    m.def("analyse", [](Floats z, const std::vector<int64_t>& outers, int states, int start, int expected) {
        nb::gil_scoped_release release;
        return analyse(z.data(), z.shape(0), z.shape(1), outers, states, start, expected);
    });
    m.def("slopes", [](Floats z, const Analysis& analysis, int states) {  // in the place of z
        nb::gil_scoped_release release;
        for (size_t i = 0; i < z.size(); ++i) {
            const int level = analysis.places[i] >> 1, grid = analysis.places[i] & 1;
            z.data()[i] = slope(z.data()[i], analysis.rates.bits[level][grid], coarseness(level), grid, states);
        }
    });
    m.attr("CHUNK") = kChunk;
    m.def("search_run", [](Floats target, Floats gram, Floats z, const Analysis& analysis, int64_t offset,
                           States carried, int states, float lagrangian, int sweeps) {
        nb::gil_scoped_release release;
        Prices prices(analysis.places.data(), analysis.rates, analysis.shape, states, lagrangian);
        search_run(*solver, target.data(), gram.data(), z.data(), prices, offset, z.shape(1), carried.data(),
                   sweeps);
    });
    m.def("search_fed_run", [](Floats wanted, Floats codebook, Floats gram, Floats z,
                               const Analysis& analysis, int64_t offset, States carried, int states,
                               float lagrangian, int sweeps, Floats importance, Floats feedback,
                               int64_t first) {
        nb::gil_scoped_release release;
        Prices prices(analysis.places.data(), analysis.rates, analysis.shape, states, lagrangian);
        search_fed_run(*solver, wanted.data(), codebook.data(), gram.data(), z.data(), prices, offset,
                       z.shape(1), carried.data(), sweeps, importance.data(), feedback.data(),
                       wanted.shape(0), wanted.shape(1), first);
    });
    m.def("search", [](Floats target, Floats gram, Floats z, const Analysis& analysis, int64_t offset,
                       int states, float lagrangian, std::optional<Floats> importance, int threads) {
        nb::gil_scoped_release release;
        search(*solver, target.data(), gram.data(), z.data(), analysis.places.data(), analysis.rates,
               analysis.shape, offset, z.shape(1), states, lagrangian,
               importance ? importance->data() : nullptr, threads);
    });
    m.def("instructions", [] {
        std::vector<std::string> names;
        for (const Solver* each : solvers()) names.emplace_back(each->name);
        return names;
    });
    m.def("use_instructions", [](const std::string& name) {  // for tests: all give the same results
        for (const Solver* each : solvers())
            if (name == each->name) {
                solver = each;
                return;
            }
        throw std::invalid_argument("this machine has no such instructions");
    });
    m.def("avoided", [](Floats target, Floats gram, Floats z, int threads) {
        nb::gil_scoped_release release;
        return avoided(*solver, target.data(), gram.data(), z.data(), z.shape(0), z.shape(1), threads);
    });
    m.def("product", [](Floats a, Given b, Floats out, int threads) {
        nb::gil_scoped_release release;
        product(*solver, a.data(), b.data(), out.data(), a.shape(0), a.shape(1), b.stride(0), b.shape(1), threads);
    });
    m.def("inner", [](Floats x, Floats y, Doubles sums, int threads) {
        nb::gil_scoped_release release;
        inner(*solver, x.data(), y.data(), sums.data(), x.shape(0), y.shape(0), x.shape(1), threads);
    });
    m.def("distortion", [](Floats w, Floats c, Floats z, int threads) {
        nb::gil_scoped_release release;
        return distortion(*solver, w.data(), c.data(), z.data(), w.shape(0), z.shape(0), w.shape(1), threads);
    });
    m.def("search_binary", [](Floats target, Floats gram, Floats z, Orders orders, int threads) {
        const int64_t k = z.shape(0), n = z.shape(1);
        nb::gil_scoped_release release;
        search_binary(target.data(), gram.data(), z.data(), k, n, orders.data(), orders.shape(0), threads);
    });
}
