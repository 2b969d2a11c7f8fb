// SPDX-License-Identifier: Apache-2.0
// Sums of what is looked up in tables of 16 bytes, for each row of a panel. Included for each instruction
// set; all give the same sums.
//
// Each step has a byte of every row, whose halves are indices into two tables. Tables: for each step, half
// and input, 16 entries of 0 to 255.
#pragma once

#include "lookup.hpp"
#include "simd.hpp"

namespace TERSOR_TARGET {
using namespace tersor::lookup;

constexpr int64_t AHEAD = 4096;     // bytes that codes are fetched ahead, cold in DRAM 1.4x faster
constexpr int STEPS = 2 * SHUFFLED;  // the most that are added: 32 bytes

#if TERSOR_WIDTH >= 32
using Rows = __m256i;  // a byte for each row

struct Looked {
    Rows first, second;  // words of rows 0-7 and 16-23, of the others
};

// Entries are added twice, modulo 256 and, pair by pair, as rounded means. From the mean of all the sum is
// known to less than 256, and from both exactly. That takes two instructions for an entry; widening it to
// a word and adding it takes three.
template <int COUNT, int STRIDE, int INPUTS>
static inline __attribute__((always_inline)) void look_up(const uint8_t* codes, const uint8_t* tables,
                                                          Rows* sums, Rows* means) {
    // Compilers would look up all first, and have no registers for it.
    const auto now = [](Rows& v) __attribute__((always_inline)) { asm volatile("" : "+x"(v)); };
    if constexpr (COUNT > 1) {
        constexpr int HALF = COUNT / 2;
        Rows others[INPUTS];
        look_up<HALF, STRIDE, INPUTS>(codes, tables, sums, means);
        look_up<HALF, STRIDE, INPUTS>(codes + HALF * PANEL, tables + HALF * 2 * STRIDE, sums, others);
        for (int i = 0; i < INPUTS; ++i) means[i] = _mm256_avg_epu8(means[i], others[i]), now(means[i]);
    } else {
        __builtin_prefetch(codes + AHEAD);
        Rows first, second;
        halves(codes, first, second);
        for (int i = 0; i < INPUTS; ++i) {
            const auto entries = [&](const uint8_t* table, Rows index) __attribute__((always_inline)) {
                return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load<__m128i>(table)), index);
            };
            const Rows a = entries(tables + i * 16, first), b = entries(tables + STRIDE + i * 16, second);
            sums[i] = _mm256_add_epi8(_mm256_add_epi8(sums[i], a), b);
            means[i] = _mm256_avg_epu8(a, b);
            now(sums[i]), now(means[i]);
        }
    }
}

// Inputs from `INPUT` on, two by two, for which there are just enough registers.
template <int INPUTS, int INPUT = 0>
static inline void look_up_all(const uint8_t* codes, const uint8_t* tables, Looked* found) {
    static_assert(STEPS == 16, "means of 32 bytes");
    constexpr int SOME = INPUTS - INPUT < 2 ? INPUTS - INPUT : 2;
    Rows sums[SOME] = {}, means[SOME];
    look_up<STEPS, INPUTS * 16, SOME>(codes, tables + INPUT * 16, sums, means);
    for (int i = 0; i < SOME; ++i) {
        // Each of five times, means of up to 16 pairs are too large by 1/2 or 0: by 80 in all.
        const Rows times32 = _mm256_and_si256(_mm256_slli_epi16(means[i], 5), _mm256_set1_epi8(-32));
        const Rows more = _mm256_sub_epi8(times32, sums[i]), weights = _mm256_set1_epi16(32 - 256);
        found[INPUT + i].first = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(means[i], more), weights);
        found[INPUT + i].second = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(means[i], more), weights);
    }
    if constexpr (INPUT + SOME < INPUTS) look_up_all<INPUTS, INPUT + SOME>(codes, tables, found);
}

// Any number of steps, not so fast.
template <int INPUTS>
static inline void look_up_some(const uint8_t* codes, const uint8_t* tables, int64_t steps, Looked* found) {
    constexpr int STRIDE = INPUTS * 16;
    const Rows low = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1);
    for (int i = 0; i < INPUTS; ++i) found[i] = Looked{};
    for (int64_t step = 0; step < steps; ++step, codes += PANEL, tables += 2 * STRIDE) {
        __builtin_prefetch(codes + AHEAD);
        const Rows both = load<Rows>(codes);
        for (int i = 0; i < INPUTS; ++i) {
            const auto entries = [&](const uint8_t* table, Rows index) __attribute__((always_inline)) {
                const Rows repeated = _mm256_broadcastsi128_si256(load<__m128i>(table));
                return _mm256_shuffle_epi8(repeated, _mm256_and_si256(index, low));
            };
            const Rows a = entries(tables + i * 16, both);
            const Rows b = entries(tables + STRIDE + i * 16, _mm256_srli_epi16(both, 4));
            const auto add = [&](Rows& sum, Rows pairs) __attribute__((always_inline)) {
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(pairs, ones));
            };
            add(found[i].first, _mm256_unpacklo_epi8(a, b));
            add(found[i].second, _mm256_unpackhi_epi8(a, b));
        }
    }
}

// Real numbers of the rows, in the order in which words are unpacked.
class RowSums {
public:
    void add(const Looked& words, int offset, float scale) {
        const Rows high = _mm256_set1_epi16(0x4b00);  // with a word below it: 2**23 plus the word
        add(0, _mm256_unpacklo_epi16(words.first, high), offset, scale);
        add(1, _mm256_unpackhi_epi16(words.first, high), offset, scale);
        add(2, _mm256_unpacklo_epi16(words.second, high), offset, scale);
        add(3, _mm256_unpackhi_epi16(words.second, high), offset, scale);
    }
    void store_to(float* rows) const {
        for (int i = 0; i < 2; ++i) {
            const auto a = (__m256)of_[2 * i], b = (__m256)of_[2 * i + 1];
            store(rows + i * 8, _mm256_permute2f128_ps(a, b, 0x20));
            store(rows + 16 + i * 8, _mm256_permute2f128_ps(a, b, 0x31));
        }
    }

private:
    using Eight = Vector<float, 8>;
    void add(int i, Rows reals, int offset, float scale) {
        of_[i] += ((Eight)reals - static_cast<float>((1 << 23) + offset)) * scale;
    }
    Eight of_[4] = {};
};
#else
struct Looked {
    uint16_t rows[PANEL];
};

template <int INPUTS>
static inline void look_up_some(const uint8_t* codes, const uint8_t* tables, int64_t steps, Looked* found) {
    for (int part = 0; part < PANEL; part += WIDTH) {
        Words sums[INPUTS][2] = {};
        for (int64_t step = 0; step < steps; ++step) {
            const auto both = load<Bytes>(codes + step * PANEL + part);
            for (int i = 0; i < INPUTS; ++i) {
                const uint8_t* table = tables + (step * 2 * INPUTS + i) * 16;
                add_bytes(sums[i][0], sums[i][1], picked(load<Bytes>(table), both & 15));
                add_bytes(sums[i][0], sums[i][1], picked(load<Bytes>(table + INPUTS * 16), both >> 4));
            }
        }
        for (int i = 0; i < INPUTS; ++i) std::memcpy(found[i].rows + part, sums[i], sizeof sums[i]);
    }
}

template <int INPUTS>
static inline void look_up_all(const uint8_t* codes, const uint8_t* tables, Looked* found) {
    look_up_some<INPUTS>(codes, tables, STEPS, found);
}

class RowSums {
public:
    void add(const Looked& words, int offset, float scale) {
        for (int r = 0; r < PANEL; ++r) of_[r] += static_cast<float>(words.rows[r] - offset) * scale;
    }
    void store_to(float* rows) const { std::memcpy(rows, of_, sizeof of_); }

private:
    float of_[PANEL] = {};
};
#endif

}  // namespace TERSOR_TARGET
