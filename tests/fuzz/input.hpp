// SPDX-License-Identifier: Apache-2.0
// What harnesses read a fuzzer's input with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct Input {
    const uint8_t* data;
    size_t size;

    // A number from least to most.
    int number(int least, int most) {
        const int byte = size ? (--size, *data++) : 0;
        return least + byte % (most - least + 1);
    }
    // The next bytes, then zeros.
    void fill(void* out, size_t bytes) {
        const size_t some = bytes < size ? bytes : size;
        if (bytes) std::memset(out, 0, bytes);
        if (some) std::memcpy(out, data, some);
        data += some, size -= some;
    }
};
