// SPDX-License-Identifier: Apache-2.0
// What a fuzzer calls for each input: the coder of the native module on streams and matrices of any
// content, and the searches for integers and binary latents on any numbers. Shapes are such that the module
// lets them through. Memory errors are for the sanitizers to find; a stream that was decoded and a
// matrix that was coded must come back.
#include <cstdlib>
#include <memory>

#include "binary.hpp"
#include "input.hpp"
#include "search.hpp"
#include "streams.hpp"

using namespace tersor;

namespace {

constexpr int kStates[] = {1, 4, 8, 16, 32, 64};

void demand(bool fulfilled) {
    if (!fulfilled) std::abort();
}

// A codebook and a latent, in memory of their exact size.
struct Matrices {
    Shape first, second;
    int first_start, second_start, states;
    std::vector<int16_t> codebook, latent;

    explicit Matrices(Input& input) {
        const int rows = input.number(0, 3), outer = input.number(1, 4);
        first = codebook_shape(rows, input.number(0, 4));
        second = shape_of(rows, outer * input.number(0, 4), outer);
        first_start = input.number(0, 255), second_start = input.number(0, 255);
        states = kStates[input.number(0, 5)];
        codebook.resize(rows * first.columns()), latent.resize(rows * second.columns());
    }
    template <class Coder>
    void run(Coder& coder) {
        both(coder, codebook.data(), first, first_start, latent.data(), second, states, second_start);
    }
};

std::vector<uint8_t> encoded(Matrices matrices) {
    Encoder coder;
    matrices.run(coder);
    return coder.finish();
}

Matrices decoded(Matrices matrices, const std::vector<uint8_t>& stream) {
    Decoder coder(stream.data(), stream.size());
    matrices.run(coder);
    return matrices;
}

void decode(Input& input) {
    Matrices matrices(input);
    const std::vector<uint8_t> stream(input.data, input.data + input.size);
    const Matrices found = decoded(matrices, stream), again = decoded(matrices, encoded(found));
    demand(found.codebook == again.codebook && found.latent == again.latent);
}

void encode(Input& input) {
    Matrices matrices(input);
    input.fill(matrices.codebook.data(), 2 * matrices.codebook.size());
    input.fill(matrices.latent.data(), 2 * matrices.latent.size());
    const bool exact = reachable(matrices.latent.data(), matrices.second, matrices.states);
    const Matrices found = decoded(matrices, encoded(matrices));
    demand(!exact || (found.codebook == matrices.codebook && found.latent == matrices.latent));
}

std::vector<float> floats(Input& input, size_t count) {
    std::vector<float> numbers(count);
    for (float& x : numbers) input.fill(&x, input.number(0, 1) ? 4 : 2);
    return numbers;
}

// The numbers of what was found are those of a file: integers that can be coded.
void demand_integers(const std::vector<float>& z) {
    for (const float x : z) demand(x == std::trunc(x) && std::fabs(x) <= kLargest);
}

void search(Input& input) {
    const int k = input.number(1, 3), outer = input.number(1, 4), n = outer * input.number(1, 4);
    const int states = kStates[input.number(0, 5)], start = input.number(0, 255);
    std::vector<float> z(k * n);
    for (float& x : z) x = static_cast<float>(input.number(0, 255) - 128);
    const int cut = input.number(0, outer - 1);
    const Analysis analysis = analyse(z.data(), k, n, cut ? std::vector<int64_t>{cut, outer - cut}
                                                          : std::vector<int64_t>{outer}, states, start);
    const std::vector<float> gram = floats(input, k * k), target = floats(input, k * n),
                             importance = floats(input, k * n);
    float lagrangian = 0;
    input.fill(&lagrangian, 4);
    for (size_t i = 0; i < z.size(); ++i) {
        const int level = analysis.places[i] >> 1, grid = analysis.places[i] & 1;
        slope(target[i], analysis.rates.bits[level][grid], coarseness(level), grid, states);
    }
    if (input.number(0, 1)) {
        search(kSolverBaseline, target.data(), gram.data(), z.data(), analysis.places.data(), analysis.rates, analysis.shape, 0,
               n, states, lagrangian, input.number(0, 1) ? importance.data() : nullptr, 1);
    } else {
        std::vector<int32_t> carried(k);
        for (int32_t& state : carried) state = input.number(0, states - 1);
        Prices prices(analysis.places.data(), analysis.rates, analysis.shape, states, lagrangian);
        const int sweeps = input.number(0, 2), first = input.number(0, 2), d = input.number(0, 2);
        if (d == 0) {
            search_run(kSolverBaseline, target.data(), gram.data(), z.data(), prices, 0, n, carried.data(), sweeps);
        } else {
            const int rows = first + n + input.number(0, 2);
            std::vector<float> wanted = floats(input, d * rows);
            const std::vector<float> codebook = floats(input, d * k), weights = floats(input, rows),
                                     feedback = floats(input, rows * rows);
            search_fed_run(kSolverBaseline, wanted.data(), codebook.data(), gram.data(), z.data(), prices, 0, n,
                           carried.data(), sweeps, weights.data(), feedback.data(), d, rows, first);
        }
    }
    demand_integers(z);
}

void binary(Input& input) {
    const int k = input.number(1, 17), n = input.number(1, 9), rounds = input.number(0, 2);
    std::vector<int32_t> orders(rounds * k);
    for (int round = 0; round < rounds; ++round)
        for (int i = 0; i < k; ++i) orders[round * k + i] = (i + round) % k;
    const std::vector<float> gram = floats(input, k * k), target = floats(input, k * n);
    std::vector<float> z(k * n, 1.0f);
    search_binary(target.data(), gram.data(), z.data(), k, n, orders.data(), rounds, 1);
    for (const float x : z) demand(std::fabs(x) == 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input{data, size};
    constexpr void (*kinds[])(Input&) = {decode, encode, search, binary};
    try {
        kinds[input.number(0, 3)](input);
    } catch (const std::invalid_argument&) {  // which Python gets as a ValueError
    }
    return 0;
}
