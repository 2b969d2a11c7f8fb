// SPDX-License-Identifier: Apache-2.0
// The fuzzer of the C decoder that knows the format: inputs are files, changed field by field, whose
// checksums fit, and the decoder is the one that is shipped. What it gives must not depend on the order
// in which tensors are asked for.
#include <cstdlib>
#include <vector>

#include "tersor_whole.h"

namespace {

constexpr uint64_t LIMIT = 1 << 16;  // as in inputs.py
using Elements = std::vector<uint8_t>;

void keep(void* context, const tersor_tensor*, const uint8_t* elements, size_t size) {
    static_cast<std::vector<Elements>*>(context)->emplace_back(elements, elements + size);
}

template <class T>
T* room(std::vector<T>& memory, uint64_t count, size_t& size) {
    memory.resize(count);
    return size = memory.size(), memory.data();
}

// All tensors from the last to the first, with one space.
void check_backwards(const uint8_t* data, size_t size, const std::vector<Elements>& expected) {
    tersor_file file{};
    static std::vector<uint8_t> group(1 << 20);  // the largest
    std::vector<uint8_t> bytes;
    std::vector<tersor_tensor> tensors;
    std::vector<tersor_section> sections;
    tersor_status status;
    while ((status = tersor_open(&file, data, size, LIMIT)) == TERSOR_SPACE) {
        file.bytes = room(bytes, file.needs.bytes, file.bytes_size);
        file.tensors = room(tensors, file.needs.tensors, file.tensors_size);
        file.sections = room(sections, file.needs.sections, file.sections_size);
    }
    tersor_space space{};
    std::vector<int16_t> integers;
    std::vector<tersor_scale> scales;
    space.bytes = group.data(), space.bytes_size = group.size();
    for (size_t i = file.count; i-- > 0;) {
        const tersor_needs needs = tersor_tensor_needs(&file, i);
        space.integers = room(integers, needs.integers, space.integers_size);
        space.scales = room(scales, needs.scales, space.scales_size);
        Elements found(needs.output);
        status = tersor_decode(&file, i, found.data(), found.size(), &space);
        if (status != TERSOR_OK || found != expected[i]) std::abort();
    }
}

}  // namespace

extern "C" size_t tersor_mutate(uint8_t* data, size_t size, size_t room, unsigned seed);  // mutate.cpp
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t room, unsigned seed);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t room, unsigned seed) {
    return tersor_mutate(data, size, room, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::vector<Elements> found;
    const tersor_status status = tersor_decode_whole(data, size, LIMIT, keep, &found);
    if (status == TERSOR_OK) check_backwards(data, size, found);
    return 0;
}
