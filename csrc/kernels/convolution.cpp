// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set, like integers.cpp, and with the same rule: nothing inline of the
// standard library.
#include "convolution.hpp"

#include <cmath>

#include "lanes.hpp"

namespace TERSOR_TARGET {

using Wholes = Vector<int32_t, 8>;
using Sixteen = Vector<int16_t, 16>;
using Counts = Vector<uint16_t, 16>;
constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
constexpr float TINY = 1e-30f;       // keeps a norm of zero from dividing

// Numbers of 16 N pixels.
template <int N>
struct Reals {
    Eight of[2 * N];
};
template <int N>
struct Numbers {
    Sixteen of[N];
};

static inline Eight splat(float a) { return a - Eight{}; }

// Two registers of 32 bits as one of 16, and back; the order in between is whatever is fastest.
static inline Sixteen narrowed(Wholes a, Wholes b) {
#if defined(__AVX2__)
    return (Sixteen)_mm256_packs_epi32((__m256i)a, (__m256i)b);
#else
    Sixteen both;
    const auto low = __builtin_convertvector(a, Vector<int16_t, 8>);
    const auto high = __builtin_convertvector(b, Vector<int16_t, 8>);
    std::memcpy(&both, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
    return both;
#endif
}

// Half the sum, rounded up.
static inline Counts mean(Counts a, Counts b) {
#if defined(__AVX2__)
    return (Counts)_mm256_avg_epu16((__m256i)a, (__m256i)b);
#else
    return (a | b) - ((a ^ b) >> 1);
#endif
}

// Real numbers, less the half of the range that keeps counts from being negative.
static inline Reals<1> widened(Counts counts) {
#if defined(__AVX2__)
    const __m256i v = (__m256i)counts, exponent = _mm256_set1_epi16(0x4b00);  // 2^23 + count
    const Eight low = (Eight)_mm256_unpacklo_epi16(v, exponent);
    const Eight high = (Eight)_mm256_unpackhi_epi16(v, exponent);
    return {{low - 8421376.f, high - 8421376.f}};
#else
    Vector<uint16_t, 8> halves[2];
    std::memcpy(halves, &counts, sizeof counts);
    return {{__builtin_convertvector(halves[0], Eight) - 32768.f,
             __builtin_convertvector(halves[1], Eight) - 32768.f}};
#endif
}

static inline Eight magnitude(Eight v) { return (Eight)((Vector<uint32_t, 8>)v & 0x7fffffffu); }

static float largest(const float* x, int64_t size) {
    const Eight limit = splat(INFINITY);
    Eight most{};
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const Eight v = magnitude(load<Eight>(x + i));
        most = ((v > most) & (v < limit)) ? v : most;
    }
    float found = 0;
    for (int lane = 0; lane < 8; ++lane) found = most[lane] > found ? most[lane] : found;
    for (; i < size; ++i) {
        const float v = std::fabs(x[i]);
        found = v > found && v < INFINITY ? v : found;
    }
    return found;
}

// ---- inputs of the latent ----

template <int N>
static void gather_tile(const Listed& w, const Window& s, const Lanes<16 * N>& lanes, const float* x,
                        int64_t tile, Reals<N>* to) {
    const int64_t first = tile * w.d, last = first + w.d < w.inputs ? first + w.d : w.inputs;
    Input input(s, first);
    for (int64_t i = 0; i < last - first; ++i, input.next(s))
        gather(lanes, x + input.at(s), reinterpret_cast<float*>(to + i));
    for (int64_t i = last; i < first + w.d; ++i) to[i - first] = {};
}

template <int COUNT, int N>
static inline void transform(const Listed& w, const Reals<N>* tile, int64_t p, Reals<N>* u) {
    Reals<N> sums[COUNT] = {};
    for (int64_t i = 0; i < w.d; ++i)
        for (int c = 0; c < COUNT; ++c)
            for (int r = 0; r < 2 * N; ++r) sums[c].of[r] += tile[i].of[r] * w.codebook[i * w.rank + p + c];
    for (int c = 0; c < COUNT; ++c) u[c] = sums[c];
}

// Columns first to last of the transformed input.
template <int N>
static void columns(const Listed& w, const Window& s, const Lanes<16 * N>& lanes, const float* x,
                    int64_t first, int64_t last, Reals<N>* tile, Reals<N>* u) {
    constexpr int COUNT = 4 / N;  // that fit into the registers
    for (int64_t column = first; column < last;) {
        const int64_t t = column / w.rank, end = (t + 1) * w.rank < last ? (t + 1) * w.rank : last;
        gather_tile(w, s, lanes, x, t, tile);
        for (; column + COUNT <= end; column += COUNT, u += COUNT)
            transform<COUNT>(w, tile, column - t * w.rank, u);
        for (; column < end; ++column, ++u) transform<1>(w, tile, column - t * w.rank, u);
    }
}

// ---- a block: its tables, and the sums of all rows ----

// The largest of what there is and what this part needs, squared.
template <int N>
static void add_squares(const Reals<N>* u, int64_t count, float need, const Reals<N>& powers, Reals<N>& most) {
    Reals<N> squares{};
    for (int64_t i = 0; i < count; ++i)
        for (int r = 0; r < 2 * N; ++r) {
            const Eight v = u[i].of[r] * powers.of[r];
            squares.of[r] += v * v;
        }
    for (int r = 0; r < 2 * N; ++r) {
        const Eight v = squares.of[r] * (need * need);
        most.of[r] = ((v > most.of[r]) | (v != v)) ? v : most.of[r];  // NaN stays
    }
}

// What inputs are divided by before they are rounded, so that no sum overflows, and the inverse.
template <int N>
static Reals<N> scale_of(const Reals<N>& squares, const Reals<N>& powers, Reals<N>& inverse) {
    float scale[16 * N], power[16 * N], one[16 * N];
    std::memcpy(scale, &squares, sizeof scale);
    std::memcpy(power, &powers, sizeof power);
    for (int i = 0; i < 16 * N; ++i) {
        const float root = std::sqrt(scale[i]) + TINY;
        scale[i] = root / power[i];
        one[i] = power[i] / root;
    }
    std::memcpy(&inverse, one, sizeof one);
    return load<Reals<N>>(scale);
}

template <int N>
static inline Numbers<N> rounded(const Reals<N>& u, const Reals<N>& inverse) {
    Numbers<N> found;
    for (int i = 0; i < N; ++i) {
        Wholes whole[2];
        for (int j = 0; j < 2; ++j)
            whole[j] = (Wholes)(u.of[2 * i + j] * inverse.of[2 * i + j] + MAGIC) - 0x4b400000;
        found.of[i] = narrowed(whole[0], whole[1]);
    }
    return found;
}

template <int N>
static void build_table(const int16_t* entries, int64_t count, const Reals<N>* u, const Reals<N>& inverse,
                        Numbers<N>* table) {
    table[0] = {};
    int64_t column = -1;
    Numbers<N> of_column{};
    for (int64_t e = 1; e < count; ++e) {
        if (entries[2 * e] != column) {
            column = entries[2 * e];
            of_column = rounded(u[column], inverse);
        }
        for (int i = 0; i < N; ++i) table[e].of[i] = of_column.of[i] * entries[2 * e + 1];
    }
}

template <int N>
static inline void add(const Numbers<N>* table, uint64_t entry, Numbers<N>& sum) {
    for (int i = 0; i < N; ++i) sum.of[i] += table[entry].of[i];
}

// The means of the sums of all parts, plus 2^15, that a list of quads stands for.
template <int PARTS, int N>
static inline void add_list(const uint8_t* codes, int64_t quads, const Numbers<N>* table, Counts* means) {
    const Sixteen none = {}, middle = none + int16_t{INT16_MIN};
    Numbers<N> sums[4];
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < N; ++j) sums[i].of[j] = PARTS == 4 || i % 2 == 0 ? middle : none;
    for (int64_t i = 0; i < quads; ++i, codes += 4) {
        uint32_t four;
        std::memcpy(&four, codes, 4);
        add(table, four & 255, sums[0]);
        add(table, four >> 8 & 255, sums[1]);
        add(table + TABLE, four >> 16 & 255, sums[2]);
        add(table + TABLE, four >> 24, sums[3]);
    }
    for (int j = 0; j < N; ++j) {
        const auto a = (Counts)sums[0].of[j], b = (Counts)sums[1].of[j];
        const auto c = (Counts)sums[2].of[j], d = (Counts)sums[3].of[j];
        means[j] = PARTS == 2 ? mean(a + b, c + d) : mean(mean(a, b), mean(c, d));
    }
}

template <int PARTS, int N>
static void add_rows(const Listed& w, int64_t b, const Numbers<N>* table, const Reals<N>& scale,
                     Reals<N>* sums) {
    const int32_t* block = w.block + b * FIELDS;
    const uint8_t* codes = w.codes + block[CODE];
    const uint16_t* row = w.order + b * w.rows;
    for (int64_t r = block[RUN]; r < block[FIELDS + RUN]; ++r) {
        const int64_t quads = w.runs[2 * r], rows = w.runs[2 * r + 1];
        for (int64_t i = 0; i < rows; ++i, ++row, codes += 4 * quads) {
            Counts means[N];
            add_list<PARTS>(codes, quads, table, means);
            Reals<N>& sum = sums[*row];
            for (int j = 0; j < N; ++j) {
                const Reals<1> found = widened(means[j]);
                sum.of[2 * j] += found.of[0] * scale.of[2 * j];
                sum.of[2 * j + 1] += found.of[1] * scale.of[2 * j + 1];
            }
        }
    }
}

template <int N>
static void listed_of(const Listed& w, const Window& s, const float* x, const float* powers, int64_t first,
                      const float* bias, float* y, char* workspace) {
    Lanes<16 * N> lanes;
    find(s, s.c * s.padded_h() * s.padded_w(), s.padded_w(), w.rows, first, lanes);
    float power[16 * N];
    for (int lane = 0; lane < 16 * N; ++lane) power[lane] = powers[lanes.image[lane]];
    const auto powered = load<Reals<N>>(power);
    auto* table = reinterpret_cast<Numbers<N>*>(workspace);
    auto* sums = reinterpret_cast<Reals<N>*>(table + 2 * TABLE);
    Reals<N> *tile = sums + w.rows, *u = tile + w.d, rounding{};
    std::memset(sums, 0, w.rows * sizeof *sums);
    for (int64_t b = 0; b < w.blocks; ++b) {
        const int32_t *block = w.block + b * FIELDS, *end = block + FIELDS;
        const int64_t start = block[COLUMN], bounds[5] = {start, block[SECOND_PART], block[THIRD_PART],
                                                          block[FOURTH_PART], end[COLUMN]};
        columns(w, s, lanes, x, start, end[COLUMN], tile, u);
        Reals<N> squares{}, inverse;
        for (int part = 0; part < 4; ++part)
            add_squares(u + bounds[part] - start, bounds[part + 1] - bounds[part], w.needs[4 * b + part],
                        powered, squares);
        Reals<N> scale = scale_of(squares, powered, inverse);
        build_table(w.entries + 2 * block[ENTRY], block[SECOND_ENTRY] - block[ENTRY], u, inverse, table);
        build_table(w.entries + 2 * block[SECOND_ENTRY], end[ENTRY] - block[SECOND_ENTRY], u, inverse,
                    table + TABLE);
        for (int r = 0; r < 2 * N; ++r) {
            scale.of[r] *= static_cast<float>(w.parts);  // of a mean of so many
            rounding.of[r] += scale.of[r] * (w.parts == 4 ? 0.5f : 0.25f);  // what means are too large
        }
        w.parts == 4 ? add_rows<4>(w, b, table, scale, sums) : add_rows<2>(w, b, table, scale, sums);
    }
    for (int64_t row = 0; row < w.rows; ++row) {
        const float more = bias ? bias[row] : 0;
        float sum[16 * N];
        for (int r = 0; r < 2 * N; ++r) store(sum + 8 * r, sums[row].of[r] - rounding.of[r] + more);
        for (int i = 0; i < lanes.outs; ++i) {
            const Stretch& out = lanes.out[i];
            copy(sum + out.lane, out.count, y + out.from + row * s.oh * s.ow);
        }
    }
}

static void listed(const Listed& w, const Window& s, const float* x, const float* powers, int64_t first,
                   const float* bias, float* y, char* workspace) {
    const auto of = s.pixels() - first <= LANES / 2 ? listed_of<1> : listed_of<2>;
    of(w, s, x, powers, first, bias, y, workspace);
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(convolutions_, target)
const tersor::ConvolutionKernels tersor::NAMED(TERSOR_TARGET) = {
    TERSOR_TARGET::listed, TERSOR_TARGET::largest};
