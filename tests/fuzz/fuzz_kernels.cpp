// SPDX-License-Identifier: Apache-2.0
// What a fuzzer calls for each input: the kernels, as Python does, with sizes and numbers of any kind.
//
// Whatever Python passes, the module must refuse it or compute within the buffers that it was given. Each
// buffer is memory of its exact size, so that the sanitizers see what goes beyond. A buffer that the module
// refuses is given the size that the module wants, most of the time: without, nearly all would be refused.
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "input.hpp"
#include "kernels/module.cpp"

namespace {

constexpr int64_t kMost = 1 << 15;  // bytes of a buffer: larger ones find nothing more, and take long

// The input is of no more use.
struct Enough {};

// A size: small, or rarely one that breaks what is computed without care.
int64_t size_in(Input& input, int least, int most) {
    constexpr int64_t wild[] = {-1, int64_t{1} << 31, int64_t{1} << 62, std::numeric_limits<int64_t>::min()};
    const int choice = input.number(0, 255);
    return choice < 252 ? least + choice % (most - least + 1) : wild[choice - 252];
}

class Buffer {
public:
    Buffer(const char* name, Input& input) : name_(name), fits_(input.number(0, 31) != 0) {
        input.fill(pattern_, input.number(0, 1) ? sizeof pattern_ : 2);
    }

    uintptr_t address() const { return reinterpret_cast<uintptr_t>(memory_.get()); }
    int64_t bytes() const { return bytes_; }
    // Have these numbers.
    template <class T>
    void assign(const std::vector<T>& numbers) {
        resize(static_cast<int64_t>(numbers.size() * sizeof(T)));
        if (bytes_) std::memcpy(memory_.get(), numbers.data(), bytes_);
    }

    void resize(int64_t bytes) {
        bytes_ = bytes;
        memory_.reset(bytes ? static_cast<uint8_t*>(std::malloc(bytes)) : nullptr);
        for (int64_t i = 0; i < bytes; ++i) memory_.get()[i] = pattern_[i % sizeof pattern_];
    }

    // Take the size that an error of the module names, if it is about this buffer.
    bool mend(const std::string& error) {
        if (error.rfind(std::string(name_) + " has ", 0)) return false;
        const int64_t needed = std::stoll(error.substr(error.rfind(' ')));
        if (needed > kMost) throw Enough();
        resize(fits_ ? needed : needed + 1);
        return fits_;
    }

private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    const char* name_;
    bool fits_;
    uint8_t pattern_[24] = {};
    int64_t bytes_ = 0;
    std::unique_ptr<uint8_t, Free> memory_;
};

// Call `make` until its buffers have the sizes that it wants.
template <class Make>
auto fitted(std::vector<Buffer*> buffers, const Make& make) {
    for (size_t attempt = 0; attempt <= buffers.size(); ++attempt) {
        try {
            return make();
        } catch (const std::invalid_argument& error) {
            bool mended = false;
            for (Buffer* buffer : buffers) mended = mended || buffer->mend(error.what());
            if (!mended) throw;
        }
    }
    throw Enough();
}

template <class Matrix, class Kernels>
void multiply(Input& input, const Product<Matrix>& matrix, const Kernels& kernels) {
    Buffer x("the input", input), bias("the bias", input), y("the output", input);
    const int64_t batch = size_in(input, 0, 40), threads = input.number(1, 2);
    if (input.number(0, 1)) bias.resize(4 * matrix.w.rows);
    fitted({&x, &bias, &y}, [&] {
        matrix(kernels, x.address(), x.bytes(), bias.address(), bias.bytes(), y.address(), y.bytes(), batch, threads);
    });
}

void integers(Input& input) {
    const int64_t rows = size_in(input, 1, 40), inputs = size_in(input, 1, 40), d = size_in(input, 1, 20);
    const int64_t rank = input.number(0, 31) ? 8 * input.number(1, 3) : size_in(input, 0, 9);
    const int64_t wide = size_in(input, 0, 12), narrow = size_in(input, 0, 12), middle = size_in(input, 0, 6), top = size_in(input, 0, 4);
    const int64_t many = input.number(1, 40);
    Buffer codebook("the codebook", input), scale("the scale", input), codes("the codes", input);
    Buffer reach("the reach", input), starts("the starts", input), escapes("the escapes", input);
    escapes.resize(2 * input.number(0, 20));
    const auto matrix = fitted({&codebook, &scale, &codes, &reach, &starts, &escapes}, [&] {
        return Product<Integers>{
            many, integers_of(rows, inputs, d, rank, wide, narrow, middle, top, codebook.address(), codebook.bytes(),
                              scale.address(), scale.bytes(), codes.address(), codes.bytes(), reach.address(),
                              reach.bytes(), starts.address(), starts.bytes(), escapes.address(), escapes.bytes())};
    });
    if (input.number(0, 2)) return multiply(input, matrix, *target.integers);
    Buffer index("the index", input), y("the output", input);
    const int64_t count = size_in(input, 0, 100), threads = input.number(1, 2);
    fitted({&index, &y}, [&] {
        pick_rows(matrix, index.address(), index.bytes(), y.address(), y.bytes(), count, threads);
    });
}

void look_up(Input& input) {
    const int64_t rows = size_in(input, 1, 70), inputs = size_in(input, 1, 40), tile = size_in(input, 1, 16);
    const int64_t pairs = size_in(input, 1, 5), binary = input.number(0, 1), many = input.number(1, 40);
    Buffer codebook("the codebook", input), codes("the codes", input);
    const auto matrix = fitted({&codebook, &codes}, [&] {
        return Product<lookup::Layer>{many, layer_of(rows, inputs, tile, pairs, binary, codebook.address(),
                                                     codebook.bytes(), codes.address(), codes.bytes())};
    });
    multiply(input, matrix, *target.lookup);
}

void panels(Input& input) {
    const int64_t rows = size_in(input, 1, 40), inputs = size_in(input, 1, 40), many = input.number(1, 40);
    Buffer numbers("the matrix", input);
    const auto matrix = fitted({&numbers}, [&] {
        return Product<Panels>{many, panels_of(rows, inputs, numbers.address(), numbers.bytes())};
    });
    multiply(input, matrix, *target.panels);
}

std::vector<int64_t> window_in(Input& input) {
    const bool plain = input.number(0, 1), three = input.number(0, 1);
    const auto one_of = [&](int most) { return size_in(input, 1, most); };
    std::vector<int64_t> sizes{size_in(input, 0, 3), one_of(10), size_in(input, 0, 12), size_in(input, 0, 12)};
    for (int i = 0; i < 2; ++i) sizes.push_back(three ? 3 : one_of(4));
    for (int i = 0; i < 2; ++i) sizes.push_back(plain ? 1 : one_of(3));
    for (int i = 0; i < 2; ++i) sizes.push_back(size_in(input, 0, 3));
    for (int i = 0; i < 2; ++i) sizes.push_back(plain ? 1 : one_of(3));
    for (int i = 0; i < 2; ++i) sizes.push_back(one_of(12));
    return sizes;
}

// Lists that are as they should be, which changes of bytes hardly ever make.
struct Lists {
    std::vector<int32_t> block, runs;
    std::vector<int16_t> entries;
    std::vector<uint16_t> order;
    std::vector<uint8_t> codes;

    Lists(Input& input, int64_t rows, int64_t columns, int64_t blocks) {
        for (int64_t b = 0; b <= blocks; ++b) {
            const int64_t first = b * columns / blocks, wide = (b + 1) * columns / blocks - first;
            const int tables[] = {input.number(0, 6), input.number(0, 6)};
            const auto entry = static_cast<int32_t>(entries.size() / 2), run = static_cast<int32_t>(runs.size() / 2);
            for (const int64_t part : {0, 1, 2, 3}) block.push_back(first + (b < blocks ? part * wide / 4 : 0));
            for (const int32_t place : {entry, entry + tables[0], run, static_cast<int32_t>(codes.size())})
                block.push_back(place);
            if (b == blocks) return;
            for (int e = 0; e < tables[0] + tables[1]; ++e) {
                entries.push_back(input.number(0, 255) % std::max<int64_t>(wide, 1));
                entries.push_back(257 * (input.number(0, 255) - 128));
            }
            const int64_t cut = input.number(0, static_cast<int>(rows));
            for (const int64_t some : {cut, rows - cut}) {
                const int quads = input.number(0, 3);
                runs.insert(runs.end(), {quads, static_cast<int32_t>(some)});
                for (int64_t i = 0; i < 4 * quads * some; ++i) codes.push_back(input.number(0, TABLE - 1));
            }
            for (int64_t i = 0; i < rows; ++i) order.push_back(input.number(0, static_cast<int>(rows) - 1));
        }
    }
};

void listed(Input& input) {
    const std::vector<int64_t> window = window_in(input);
    const int64_t rows = size_in(input, 1, 20), d = size_in(input, 1, 20), rank = size_in(input, 1, 12);
    const int64_t blocks = size_in(input, 0, 3), parts = input.number(1, 4), threads = input.number(1, 2);
    Buffer x("the input", input), bias("the bias", input), y("the output", input), codebook("the codebook", input),
        block("the block", input), needs("the needs", input), entries("the entries", input),
        runs("the runs", input), order("the order", input), codes("the codes", input);
    entries.resize(4 * input.number(0, 60)), runs.resize(8 * input.number(0, 6)), codes.resize(input.number(0, 200));
    const bool small = std::max({window[1], window[4], window[5], d, rank, rows, blocks}) < 256;
    if (small && std::min({window[1], window[4], window[5], d, rank, rows, blocks}) > 0 && input.number(0, 7)) {
        const int64_t columns = (window[1] * window[4] * window[5] + d - 1) / d * rank;
        const Lists lists(input, rows, columns, blocks);
        block.assign(lists.block), entries.assign(lists.entries), runs.assign(lists.runs);
        order.assign(lists.order), codes.assign(lists.codes);
    }
    fitted({&x, &bias, &y, &codebook, &block, &needs, &entries, &runs, &order, &codes}, [&] {
        convolve_listed(x.address(), x.bytes(), bias.address(), bias.bytes(), y.address(), y.bytes(), threads, window,
                        rows, d, rank, blocks, parts, codebook.address(), codebook.bytes(), block.address(),
                        block.bytes(), needs.address(), needs.bytes(), entries.address(), entries.bytes(),
                        runs.address(), runs.bytes(), order.address(), order.bytes(), codes.address(), codes.bytes());
    });
}

void direct(Input& input) {
    const std::vector<int64_t> window = window_in(input);
    const int64_t rows = input.number(0, 1) ? window[1] : size_in(input, 1, 20);
    const int64_t size = input.number(0, 5) - 1, threads = input.number(1, 2);
    Buffer x("the input", input), bias("the bias", input), y("the output", input), weight("the weight", input);
    fitted({&x, &bias, &y, &weight}, [&] {
        convolve_direct(x.address(), x.bytes(), bias.address(), bias.bytes(), y.address(), y.bytes(), threads, window,
                        rows, size, weight.address(), weight.bytes());
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (!target.integers) return 0;  // this processor has no kernels
    Input input{data, size};
    constexpr void (*kinds[])(Input&) = {integers, look_up, panels, listed, direct};
    try {
        kinds[input.number(0, 4)](input);
    } catch (const std::invalid_argument&) {  // which Python gets as a ValueError
    } catch (const nb::index_error&) {
    } catch (const std::bad_alloc&) {
    } catch (const Enough&) {
    }
    return 0;
}
