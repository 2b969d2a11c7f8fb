// SPDX-License-Identifier: Apache-2.0
// Is `divide` the division for every step and divisor? Quotients change at multiples of a divisor
// only, so that the numbers next to all of these stand for all.
#include <cstdio>

#include "model.hpp"

int main() {
    using namespace tersor;
    constexpr int32_t most = (1 << 23) - 1;
    static_assert(kSteepest * kLearning <= most && -4097 * kLearning >= -most, "steps fit");
    for (int32_t d = kLeastDivisor; d < kDivisors; ++d)
        for (int32_t multiple = 0; multiple <= most - 1; multiple += d)
            for (int32_t value = multiple - 1; value <= multiple + 1; ++value)
                for (int32_t sign : {1, -1})
                    if (divide(sign * value, kTables.reciprocal[d]) != sign * value / d) {
                        std::printf("%d / %d\n", sign * value, d);
                        return 1;
                    }
    for (int32_t at = 0; at < 320; ++at)
        for (int32_t index = 0; index <= kLargest; ++index)
            if (std::abs(kTables.expected[at].step(index)) > most || kTables.expected[at].weight > 256) {
                std::printf("index %d, place %d\n", index, at);
                return 1;
            }
}
