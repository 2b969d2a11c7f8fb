// Compiled once for each instruction set, like integers.cpp, and with the same rule: nothing inline of the
// standard library.
#include "convolution.hpp"

#include <cmath>

#include "lanes.hpp"

namespace TERSOR_TARGET {

using Wholes = Vector<int32_t, 8>;
using Sixteen = Vector<int16_t, 16>;
constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
constexpr float TINY = 1e-30f;       // keeps a norm of zero from dividing
constexpr int REALS = LANES / 8;     // registers of as many real numbers as there are lanes
constexpr int WORDS = LANES / 16;

struct Reals {
    Eight of[REALS];
};
struct Numbers {
    Sixteen of[WORDS];
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

static inline void widened_sum(Sixteen a, Sixteen b, Wholes& low, Wholes& high) {
#if defined(__AVX2__)
    const __m256i x = (__m256i)a, y = (__m256i)b, ones = _mm256_set1_epi16(1);
    low = (Wholes)_mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), ones);
    high = (Wholes)_mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), ones);
#else
    Vector<int16_t, 8> halves[4];
    std::memcpy(halves, &a, sizeof a);
    std::memcpy(halves + 2, &b, sizeof b);
    low = __builtin_convertvector(halves[0], Wholes) + __builtin_convertvector(halves[2], Wholes);
    high = __builtin_convertvector(halves[1], Wholes) + __builtin_convertvector(halves[3], Wholes);
#endif
}

static inline Eight magnitude(Eight v) { return (Eight)((Vector<uint32_t, 8>)v & 0x7fffffffu); }

static float largest(const float* x, int64_t size) {
    const Eight limit = splat(INFINITY);
    Eight most{};
    int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
        const Eight v = magnitude(load<Eight>(x + i));
        most = (v > most) & (v < limit) ? v : most;
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

// The inputs of a tile, scaled.
static void gather_tile(const Listed& w, const Window& s, const Lanes<LANES>& lanes, const Reals& powers,
                        const float* x, int64_t tile, Reals* to) {
    const int64_t first = tile * w.d, last = first + w.d < w.inputs ? first + w.d : w.inputs;
    Input input(s, first);
    for (int64_t i = 0; i < last - first; ++i, input.next(s)) {
        float found[LANES];
        gather(lanes, x + input.at(s), found);
        for (int r = 0; r < REALS; ++r) to[i].of[r] = load<Eight>(found + 8 * r) * powers.of[r];
    }
    for (int64_t i = last; i < first + w.d; ++i) to[i - first] = {};
}

template <int N>
static void transform(const Listed& w, const Reals* tile, int64_t p, Reals* u) {
    Reals sums[N] = {};
    for (int64_t i = 0; i < w.d; ++i)
        for (int n = 0; n < N; ++n)
            for (int r = 0; r < REALS; ++r) sums[n].of[r] += tile[i].of[r] * w.codebook[i * w.rank + p + n];
    for (int n = 0; n < N; ++n) u[n] = sums[n];
}

// Columns first to last of the transformed input.
static void columns(const Listed& w, const Window& s, const Lanes<LANES>& lanes, const Reals& powers,
                    const float* x, int64_t first, int64_t last, Reals* tile, Reals* u) {
    for (int64_t column = first; column < last;) {
        const int64_t t = column / w.rank, end = (t + 1) * w.rank < last ? (t + 1) * w.rank : last;
        gather_tile(w, s, lanes, powers, x, t, tile);
        for (; column + 2 <= end; column += 2, u += 2) transform<2>(w, tile, column - t * w.rank, u);
        if (column < end) transform<1>(w, tile, column++ - t * w.rank, u++);
    }
}

// ---- a block: its table, and the sums of all rows ----

static void add_squares(const Reals* u, int64_t count, float need, Reals& most) {
    Reals squares{};
    for (int64_t i = 0; i < count; ++i)
        for (int r = 0; r < REALS; ++r) squares.of[r] += u[i].of[r] * u[i].of[r];
    for (int r = 0; r < REALS; ++r) {
        const Eight v = squares.of[r] * (need * need);
        most.of[r] = v <= most.of[r] ? most.of[r] : v;  // NaN stays
    }
}

// Rounds inputs so that no sum overflows; returns their scales.
static Reals scale_of(const Reals& squares, Reals& inverse) {
    Reals scale;
    for (int r = 0; r < REALS; ++r)
        for (int i = 0; i < 8; ++i) {
            const float root = std::sqrt(squares.of[r][i]) + TINY;
            scale.of[r][i] = root;
            inverse.of[r][i] = 1 / root;
        }
    return scale;
}

static inline Numbers rounded(const Reals& u, const Reals& inverse) {
    Wholes whole[REALS];
    for (int r = 0; r < REALS; ++r) whole[r] = (Wholes)(u.of[r] * inverse.of[r] + MAGIC) - 0x4b400000;
    Numbers found;
    for (int i = 0; i < WORDS; ++i) found.of[i] = narrowed(whole[2 * i], whole[2 * i + 1]);
    return found;
}

static void build_table(const int16_t* entries, int64_t count, const Reals* u, const Reals& inverse,
                        Numbers* table) {
    table[0] = {};
    int64_t column = -1;
    Numbers of_column{};
    for (int64_t e = 1; e < count; ++e) {
        if (entries[2 * e] != column) {
            column = entries[2 * e];
            of_column = rounded(u[column], inverse);
        }
        for (int i = 0; i < WORDS; ++i) table[e].of[i] = of_column.of[i] * entries[2 * e + 1];
    }
}

static inline void add(const char* table, uint64_t offset, Numbers& sum) {
    for (int i = 0; i < WORDS; ++i)
        sum.of[i] += *reinterpret_cast<const Sixteen*>(table + offset + i * sizeof(Sixteen));
}

// Adds what a list of an even number of indices stands for.
static inline const uint8_t* add_list(const uint8_t* codes, int64_t count, const char* table, Numbers& sum) {
    static_assert(sizeof(Numbers) == 64, "shifts below");
    for (; count >= 4; count -= 4, codes += 4) {
        uint32_t bits;
        std::memcpy(&bits, codes, 4);
        const uint64_t four = bits;
        add(table, four << 6 & 0x3fc0, sum);
        add(table, four >> 2 & 0x3fc0, sum);
        add(table, four >> 10 & 0x3fc0, sum);
        add(table, four >> 18 & 0x3fc0, sum);
    }
    if (count) {
        add(table, uint64_t{codes[0]} << 6, sum);
        add(table, uint64_t{codes[1]} << 6, sum);
        codes += 2;
    }
    return codes;
}

static void add_rows(const Listed& w, int64_t b, const Numbers* table, const Reals& scale, Reals* sums) {
    const int32_t* block = w.block + b * FIELDS;
    const uint8_t* codes = w.codes + block[5];
    const uint16_t* row = w.order + b * w.rows;
    for (int64_t r = block[4]; r < block[FIELDS + 4]; ++r) {
        const int32_t *run = w.runs + 3 * r, first = run[0], second = run[1];
        for (int32_t i = 0; i < run[2]; ++i, ++row) {
            Numbers even{}, odd{};
            codes = add_list(codes, first, (const char*)table, even);
            codes = add_list(codes, second, (const char*)table, odd);
            Reals& sum = sums[*row];
            for (int j = 0; j < WORDS; ++j) {
                Wholes low, high;
                widened_sum(even.of[j], odd.of[j], low, high);
                sum.of[2 * j] += __builtin_convertvector(low, Eight) * scale.of[2 * j];
                sum.of[2 * j + 1] += __builtin_convertvector(high, Eight) * scale.of[2 * j + 1];
            }
        }
    }
}

static void listed(const Listed& w, const Window& s, const float* x, const float* powers, int64_t first,
                   const float* bias, float* y, char* workspace) {
    Lanes<LANES> lanes;
    find(s, s.c * s.padded_h() * s.padded_w(), s.padded_w(), w.rows, first, lanes);
    float up[LANES], down[LANES];
    for (int lane = 0; lane < LANES; ++lane) up[lane] = powers[lanes.image[lane]], down[lane] = 1 / up[lane];
    const Reals scaled = load<Reals>(up), back = load<Reals>(down);
    auto* table = reinterpret_cast<Numbers*>(workspace);
    auto* sums = reinterpret_cast<Reals*>(table + MOST_ENTRIES);
    Reals *tile = sums + w.rows, *u = tile + w.d;
    std::memset(sums, 0, w.rows * sizeof *sums);
    for (int64_t b = 0; b < w.blocks; ++b) {
        const int32_t* block = w.block + b * FIELDS;
        columns(w, s, lanes, scaled, x, block[0], block[2], tile, u);
        Reals squares{}, inverse;
        add_squares(u, block[1] - block[0], w.needs[2 * b], squares);
        add_squares(u + block[1] - block[0], block[2] - block[1], w.needs[2 * b + 1], squares);
        const Reals scale = scale_of(squares, inverse);
        build_table(w.entries + 2 * block[3], block[FIELDS + 3] - block[3], u, inverse, table);
        add_rows(w, b, table, scale, sums);
    }
    for (int64_t row = 0; row < w.rows; ++row) {
        const Eight more = splat(bias ? bias[row] : 0);
        for (int r = 0; r < REALS; ++r) sums[row].of[r] = sums[row].of[r] * back.of[r] + more;
        const auto* sum = reinterpret_cast<const float*>(sums + row);
        for (int i = 0; i < lanes.outs; ++i)
            std::memcpy(y + lanes.out[i].from + row * s.oh * s.ow, sum + lanes.out[i].lane,
                        lanes.out[i].count * sizeof(float));
    }
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(convolutions_, target)
const tersor::ConvolutionKernels tersor::NAMED(TERSOR_TARGET) = {
    TERSOR_TARGET::listed, TERSOR_TARGET::largest};
