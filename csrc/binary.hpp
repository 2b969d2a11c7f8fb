// SPDX-License-Identifier: Apache-2.0
// Search for a binary latent, a few rows at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/threads.hpp"

namespace tersor {

constexpr int kEight = 8;        // rows whose signs are tried together
constexpr int64_t kLanes = 4;    // columns that are worked on side by side, on any machine
constexpr int64_t kJob = 4096;   // columns of a job
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t Places __attribute__((vector_size(16)));

// Up to eight rows, and what each choice of their signs has of z.T G z by itself.
struct Eight {
    const int32_t* rows;
    int count;
    float energy[1 << kEight];
};

inline Eight eight_of(const float* gram, int64_t k, const int32_t* rows, int count) {
    Eight eight{rows, count, {}};
    for (int s = 0; s < 1 << count; ++s)
        for (int i = 0; i < count; ++i)
            for (int j = 0; j < count; ++j) {
                const float g = gram[rows[i] * k + rows[j]];
                eight.energy[s] += (s >> i & 1) == (s >> j & 1) ? g : -g;
            }
    return eight;
}

// The sums that up to four numbers can have, bit i of a place saying that number i is added.
inline void sums_of(const Lanes* numbers, int count, Lanes* sums) {
    sums[0] = Lanes{};
    for (int i = 0; i < count; ++i) sums[0] -= numbers[i];
    for (int s = 1; s < 1 << count; ++s)
        for (int i = 0; i < count; ++i)
            if (s >> i & 1) {
                sums[s] = sums[s & (s - 1)] + 2 * numbers[i];
                break;
            }
}

inline void best_binary(const Lanes* target, const float* gram, Lanes* z, int64_t k, const Eight& eight) {
    Lanes left[kEight] = {}, low[16], high[16];
    for (int i = 0; i < eight.count; ++i) z[eight.rows[i]] = Lanes{};
    for (int i = 0; i < eight.count; ++i) {
        const float* g = gram + eight.rows[i] * k;
        left[i] = target[eight.rows[i]];
        for (int64_t j = 0; j < k; ++j) left[i] -= g[j] * z[j];
    }
    const int few = eight.count < 4 ? eight.count : 4, more = eight.count - few;
    sums_of(left, few, low);
    sums_of(left + few, more, high);
    Lanes least{};
    Places best{};
    for (int h = 0; h < 1 << more; ++h)
        for (int l = 0; l < 1 << few; ++l) {
            const int32_t s = h << few | l;
            const Lanes cost = eight.energy[s] - 2 * (low[l] + high[h]);
            const Places better = s ? cost < least : Places{} - 1;
            least = better ? cost : least;
            best = better ? s - Places{} : best;
        }
    for (int i = 0; i < eight.count; ++i) {
        const Places sign = (best >> i & 1) * 2 - 1;
        z[eight.rows[i]] = __builtin_convertvector(sign, Lanes);
    }
}

// In each column of z (k, n), signs that lower z.T G z - 2 target.T z: those of eight rows at a time, the
// best of all while the others stay, in `rounds` orders of the rows. It never rises.
inline void search_binary(const float* target, const float* gram, float* z, int64_t k, int64_t n,
                         const int32_t* orders, int64_t rounds, int64_t threads) {
    std::vector<Eight> eights;
    for (int64_t round = 0; round < rounds; ++round)
        for (int64_t first = 0; first < k; first += kEight)
            eights.push_back(eight_of(gram, k, orders + round * k + first,
                                      static_cast<int>(k - first < kEight ? k - first : kEight)));
    parallel((n + kJob - 1) / kJob, threads, [&](int64_t job, int64_t) {
        std::vector<Lanes> aligned(2 * k);
        Lanes *b = aligned.data(), *x = b + k;
        const int64_t end = n < (job + 1) * kJob ? n : (job + 1) * kJob;
        for (int64_t c = job * kJob; c < end; c += kLanes) {
            const size_t bytes = (end - c < kLanes ? end - c : kLanes) * sizeof(float);
            for (int64_t j = 0; j < k; ++j) {
                b[j] = x[j] = Lanes{};
                std::memcpy(b + j, target + j * n + c, bytes);
                std::memcpy(x + j, z + j * n + c, bytes);
            }
            for (const Eight& eight : eights) best_binary(b, gram, x, k, eight);
            for (int64_t j = 0; j < k; ++j) std::memcpy(z + j * n + c, x + j, bytes);
        }
    });
}

}  // namespace tersor
