// SPDX-License-Identifier: Apache-2.0
// The adaptive model of integers, and the binary arithmetic coder that it drives.
// docs/format.md, "Entropy model" and "Coder", is the specification of both.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace tersor {

// ---------------------------------------------------------------------------------------------
// Trellis: which of two grids an integer comes from, by the parities of the ones before it.

// Parity-check polynomials of Ungerboeck (IEEE Trans. Inf. Theory 28(1), 1982, Table I), without
// their first and last terms.
struct Trellis {
    int states = 1, top = 30;  // bits of a state below the highest; 30: there is none
    uint8_t after[2 * 64] = {};  // the next state, by state << 1 | parity

    explicit constexpr Trellis(int states_) : states(states_) {
        constexpr int masks[7][2] = {{0, 0}, {0, 0}, {0, 1}, {1, 2}, {1, 2}, {2, 4}, {1, 10}};
        if (states == 1) return;
        top = 0;
        while ((2 << top) < states) ++top;
        for (int state = 0; state < states; ++state)
            for (int odd = 0; odd < 2; ++odd) {
                const int low = state & ((states >> 1) - 1), highest = state >> top;
                const int mixed = low ^ (highest ? masks[top + 1][0] : 0) ^ (odd ? masks[top + 1][1] : 0);
                after[state << 1 | odd] = static_cast<uint8_t>(mixed << 1 | highest);
            }
    }
    // 0: even numbers; 1: zero and odd numbers.
    int grid(int state) const { return state >> top; }
    int next(int state, int index) const { return after[state << 1 | (index & 1)]; }
};

// ---------------------------------------------------------------------------------------------
// Binary decisions with probabilities that adapt.

constexpr int kLevels = 40;  // contexts by expected magnitude, two per octave
constexpr int kBins = 16;    // decisions "is it larger than 0, 1, ..." with a context of their own
constexpr int kEscape = 20;  // from here on Exp-Golomb codes
constexpr int kLargest = 4095;  // magnitude
constexpr int kConfidence = 8, kLimit = 255;

// First probabilities by level, in 1/256, as measured on networks: that an index is not 0, on the
// even and on the odd grid; that it is more than 1 if it is not 0; more than 2 if more than 1, and
// so on; the first and the others without a trellis.
constexpr uint8_t kPriors[6][24] = {
    {1, 1, 2, 3, 4, 5, 9, 13, 15, 19, 24, 32, 41, 59, 90, 110, 141, 174, 192, 202, 207, 210, 212, 215},
    {1, 1, 2, 3, 4, 5, 9, 13, 22, 38, 64, 97, 131, 159, 182, 197, 209, 221, 228, 233, 234, 236, 236, 236},
    {3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 5, 6, 7, 12, 28, 40, 61, 95, 123, 148, 169, 184, 200, 205},
    {15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 20, 20, 23, 36, 54, 72, 92, 123, 159, 184, 200, 205},
    {1, 2, 2, 3, 5, 7, 9, 13, 18, 24, 33, 44, 59, 76, 95, 117, 139, 160, 180, 197, 212, 223, 227, 229},
    {1, 2, 2, 3, 4, 6, 8, 11, 14, 18, 24, 30, 40, 53, 69, 88, 109, 131, 153, 173, 192, 207, 213, 216},
};

// What a scale is worth before it has seen anything, and at most; 8 bits of fraction.
constexpr int32_t kStrength = 32 << 8, kMost = 255 << 8;
constexpr int32_t kFarthest = 1 << 16;  // from 0, of a scale's logarithm: 16 octaves
constexpr int32_t kLearning = 370;      // 2^8 * log2(e) / 16, times 16
constexpr int32_t kSteepest = 3 << 12;  // gradient, 12 bits of fraction
// What a scale divides by is (seen + kStrength) >> 4; the last weight may take seen beyond kMost.
constexpr int kLeastDivisor = kStrength >> 4, kDivisors = ((kMost + 255 + kStrength) >> 4) + 1;
constexpr int kSteps = 4;  // indices below this are nearly all: their steps are tabulated

// The probability of a one in one context.
struct Bin {
    int32_t p;   // 22 bits
    uint32_t n;  // decisions so far and kConfidence, at most kLimit

    uint32_t probability() const {  // 15 bits
        const uint32_t whole = static_cast<uint32_t>(p) >> 7;
        return whole < 8 ? 8 : whole > 32760 ? 32760 : whole;
    }
    void adapt(int bit);
};

// What is looked up by an index's expected magnitude.
struct Expected {
    int32_t mean;           // the magnitude, 8 bits of fraction
    int32_t inverse;        // 2^20 / (1 + mean)
    int32_t weight;         // mean / (1 + mean), 8 bits of fraction
    int32_t small[kSteps];  // `step` of the smallest indices

    // By how much an index moves the scales, before their information divides it.
    int32_t step(int index) const { return index < kSteps ? small[index] : computed_step(index); }
    int32_t computed_step(int index) const {
        const int64_t gap = (index << 8) - mean;
        return std::min(static_cast<int32_t>((gap * inverse) >> 16), kSteepest) * kLearning;
    }
};

struct Tables {
    std::array<Expected, 320> expected;  // by 1/16 octave
    std::array<int32_t, kLimit + 1> rate;  // 2^16 / (count + 1.5)
    std::array<uint32_t, kDivisors> reciprocal;  // by which `divide` multiplies
    std::array<float, 4097> cost;      // -log2 of a probability of 12 bits
    Bin prior[2][kLevels][2][kBins];   // with and without a trellis

    Tables() {
        for (int i = 0; i < 320; ++i) {
            const double m = std::exp2((i - 128) / 16.0);
            Expected& e = expected[i];
            e.mean = static_cast<int32_t>(std::lround(256 * m));
            e.inverse = static_cast<int32_t>(std::lround(1048576 / (1 + m)));
            e.weight = static_cast<int32_t>(std::lround(256 * m / (1 + m)));
            for (int index = 0; index < kSteps; ++index) e.small[index] = e.computed_step(index);
        }
        for (int d = kLeastDivisor; d < kDivisors; ++d)
            reciprocal[d] = static_cast<uint32_t>((INT64_C(1) << 36) / d + 1);
        for (int n = 0; n <= kLimit; ++n) rate[n] = static_cast<int32_t>(65536 / (n + 1.5));
        for (int p = 0; p <= 4096; ++p) cost[p] = static_cast<float>(-std::log2((p + 0.5) / 4097));
        for (int trellis = 0; trellis < 2; ++trellis)
            for (int level = 0; level < kLevels; ++level)
                for (int grid = 0; grid < 2; ++grid)
                    for (int bin = 0; bin < kBins; ++bin) {
                        const int row = bin == 0 ? (trellis ? grid : 4) : trellis ? std::min(bin, 2) + 1 : 5;
                        const uint32_t p = kPriors[row][std::min(level, 23)];
                        prior[trellis][level][grid][bin] = {static_cast<int32_t>(p << 14), kConfidence};
                    }
    }
};

inline const Tables kTables;  // not within a function, which would ask at each use whether they are there

inline void Bin::adapt(int bit) {
    const int64_t gap = (bit ? 4194303 : 0) - p;
    p += static_cast<int32_t>((gap * kTables.rate[n]) >> 16);
    n += n < kLimit;
}

// ---------------------------------------------------------------------------------------------
// Coders: three classes with the same two calls, `bit` under a probability and `flat` without.

class Encoder {
public:
    int bit(uint32_t p, int value) {
        const uint32_t bound = (range_ >> 15) * p;
        if (value) range_ = bound;
        else { low_ += bound; range_ -= bound; }
        normalize();
        return value;
    }
    int flat(int value) {
        range_ >>= 1;
        low_ += range_ & (static_cast<uint32_t>(value) - 1);
        normalize();
        return value;
    }
    std::vector<uint8_t> finish() {
        uint64_t mask = 0xFFFFFFFF;  // the number of the interval with most zeros at its end
        while (((low_ + mask) & ~mask) - low_ >= range_) mask >>= 1;
        low_ = (low_ + mask) & ~mask;
        for (int i = 0; i < 5; ++i) shift_low();
        out_.erase(out_.begin());  // the first byte is always 0
        while (!out_.empty() && out_.back() == 0) out_.pop_back();  // a reader reads zeros there
        return std::move(out_);
    }

private:
    void normalize() {
        while (range_ < (1u << 24)) { range_ <<= 8; shift_low(); }
    }
    void shift_low() {
        if (static_cast<uint32_t>(low_) < 0xFF000000u || (low_ >> 32)) {
            const uint8_t carry = static_cast<uint8_t>(low_ >> 32);
            do { out_.push_back(static_cast<uint8_t>(pending_ + carry)); pending_ = 0xFF; } while (--count_);
            pending_ = static_cast<uint8_t>(low_ >> 24);
        }
        ++count_;
        low_ = (low_ & 0x00FFFFFFu) << 8;
    }
    uint64_t low_ = 0;
    uint32_t range_ = 0xFFFFFFFFu;
    uint8_t pending_ = 0;
    uint64_t count_ = 1;
    std::vector<uint8_t> out_;
};

class Decoder {
public:
    Decoder(const uint8_t* data, size_t size) : data_(data), size_(size) {
        for (int i = 0; i < 4; ++i) code_ = (code_ << 8) | next();
    }
    int bit(uint32_t p, int) {
        const uint32_t bound = (range_ >> 15) * p;
        const int value = code_ < bound;
        if (value) range_ = bound;
        else { code_ -= bound; range_ -= bound; }
        normalize();
        return value;
    }
    int flat(int) {
        range_ >>= 1;
        const uint32_t value = code_ < range_;
        code_ -= range_ & (value - 1);  // no branch: nobody could predict it
        normalize();
        return value;
    }
    size_t used() const { return used_; }

private:
    void normalize() {
        while (range_ < (1u << 24)) { range_ <<= 8; code_ = (code_ << 8) | next(); }
    }
    uint32_t next() {
        const uint32_t byte = used_ < size_ ? data_[used_] : 0;
        ++used_;
        return byte;
    }
    const uint8_t* data_;
    size_t size_, used_ = 0;
    uint32_t range_ = 0xFFFFFFFFu, code_ = 0;
};

class Counter {
public:
    double bits = 0;
    int bit(uint32_t p, int value) {
        bits += kTables.cost[(value ? p : 32768 - p) >> 3];
        return value;
    }
    int flat(int value) { bits += 1; return value; }
};

// ---------------------------------------------------------------------------------------------
// The model: an integer's expected magnitude is the product of what its row, its weight row and
// its position have shown so far; the decisions that spell it out adapt per level of that.

// Lowest bits of an index that are coded as they are: means of 8 and more count in powers of 2.
inline int coarseness(int level) { return level < 22 ? 0 : (level - 20) >> 1; }

// value / divisor, rounded towards 0, for |value| < 2^23: a reciprocal that is above 2^36 / divisor,
// by at most 1, gives the same as the division for positive values, and 1 less for negative ones.
inline int32_t divide(int32_t value, uint32_t reciprocal) {
    return static_cast<int32_t>((value * static_cast<int64_t>(reciprocal)) >> 36) - (value >> 31);
}

struct Scale {       // a factor of the expected magnitude, in 1/4096 octave
    int32_t log = 0;
    int32_t seen = 0;  // information so far, 8 bits of fraction
    void learn(int32_t step, int32_t weight) {
        log += divide(step, kTables.reciprocal[(seen >> 4) + (kStrength >> 4)]);
        if (__builtin_expect(static_cast<uint32_t>(log + kFarthest) > 2 * kFarthest, 0))
            log = log < 0 ? -kFarthest : kFarthest;
        if (seen < kMost) seen += weight;
    }
};

class Model {
public:
    Model(int64_t outer, int64_t inner, int start, int states)
        : outers_(outer), inners_(inner) {
        row_.log = (start - 128) * 256;
        const Bin* prior = &kTables.prior[states > 1][0][0][0];
        std::copy(prior, prior + kLevels * 2 * kBins, &bins_[0][0][0]);
    }
    void new_row() { row_.seen = 0; }

    // Position of the expected magnitude in the tables, for column (i, j).
    int expect(int64_t i, int64_t j) const {
        const int32_t sum = row_.log + outers_[i].log + inners_[j].log;
        const int32_t at = (sum >> 8) + 128;
        if (__builtin_expect(static_cast<uint32_t>(at) > 319, 0)) return at < 0 ? 0 : 319;
        return at;
    }
    static int level(int at) { return at >> 3; }

    template <class Coder>
    int magnitude(Coder& coder, int at, int grid, int value) {
        Bin* bin = bins_[level(at)][grid];
        const int shift = coarseness(level(at));
        const int coarse = value >> shift;
        int m = 0;
        while (m < kEscape) {
            const int more = coder.bit(bin->probability(), coarse > m);
            bin->adapt(more);
            if (!more) break;
            bin += ++m < kBins;
        }
        if (__builtin_expect(shift == 0 && m < kEscape, 1)) return m;
        return rest(coder, shift, m, value, coarse);
    }
    void learn(int64_t i, int64_t j, int at, int value) {
        const Expected& expected = kTables.expected[at];
        const int32_t step = expected.step(value), weight = expected.weight;
        row_.learn(step, weight);
        outers_[i].learn(step, weight);
        inners_[j].learn(step, weight);
    }
    const Bin* bins(int level, int grid) const { return bins_[level][grid]; }

private:
    template <class Coder>
    int rest(Coder& coder, int shift, int m, int value, int coarse) {  // what few magnitudes need
        if (m == kEscape) m += golomb(coder, coarse - kEscape);
        int low = 0;
        for (int b = shift - 1; b >= 0; --b) low |= coder.flat((value >> b) & 1) << b;
        const int64_t out = (static_cast<int64_t>(m) << shift) | low;
        if (out > kLargest) throw std::invalid_argument("an integer is too large");
        return static_cast<int>(out);
    }
    template <class Coder>
    int golomb(Coder& coder, int value) {  // Exp-Golomb of order 2
        int bits = 2;
        int rest = value;
        while (bits < 16 && coder.flat(rest >= (1 << bits))) { rest -= 1 << bits; ++bits; }
        int out = 0;
        for (int b = 2; b < bits; ++b) out += 1 << b;
        for (int b = bits - 1; b >= 0; --b) out += coder.flat((rest >> b) & 1) << b;
        return out;
    }
    std::vector<Scale> outers_, inners_;
    Scale row_;
    Bin bins_[kLevels][2][kBins];
};

}  // namespace tersor
