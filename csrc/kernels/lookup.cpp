// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set, with TERSOR_TARGET its name: nothing here may be an inline
// function of the standard library, which the linker would take from any of them. Products and sums are
// not contracted, so that all sets give the same bits.
#include "lookup.hpp"

#include "binary.hpp"

namespace TERSOR_TARGET {
using namespace tersor::lookup;

using Eight = Vector<float, 8>;
constexpr float TINY = 1e-35f;       // 127 or 32767 over less may be infinite; taken as zero
constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
constexpr int STEP = 585;           // entries of a table of `many`: 4095 at most, LARGEST steps

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t blocks_per_scale(int64_t most, int64_t pairs) { return most / pairs; }
static inline Eight larger(Eight a, Eight b) { return a > b ? a : b; }

template <class Words>
static inline void add_scaled(float* sums, const Words& words, float scale) {
    constexpr int count = sizeof(Words) / sizeof(int16_t);
    const auto sum = __builtin_convertvector(words, Vector<int32_t, count>);
    store(sums, load<Vector<float, count>>(sums) + __builtin_convertvector(sum, Vector<float, count>) * scale);
}

// ---- few inputs: shuffles of bytes ----

// u = C.T x of one block, ATOMS numbers from column `atom`; a block may end before its tile does.
static inline void transform(const Layer& layer, const float* x, int64_t count, int64_t atom, float* u) {
    Eight low{}, high{};
    for (int64_t i = 0; i < count; ++i) {
        const float* c = layer.codebook + i * layer.atoms() + atom;
        low += load<Eight>(c) * x[i];
        high += load<Eight>(c + 8) * x[i];
    }
    store(u, low);
    store(u + 8, high);
}

// The same for so many blocks.
static inline void transform_group(const Layer& layer, const float* x, int64_t first, int64_t count, float* u) {
    for (int64_t start = first * layer.tile; count > 0; --count, start += layer.tile)
        for (int64_t atom = 0; atom < layer.atoms(); atom += ATOMS, u += ATOMS)
            transform(layer, x + start, least(layer.tile, layer.inputs - start), atom, u);
}

template <class Integer>
static inline void round_all(const float* u, int64_t count, float inverse, Integer* integers) {
    for (int64_t i = 0; i < count; i += 8) {
        const auto rounded = (Vector<int32_t, 8>)(load<Eight>(u + i) * inverse + MAGIC);
        store(integers + i, __builtin_convertvector(rounded, Vector<Integer, 8>));
    }
}

// Numbers to integers with a common scale, which is returned; NaN if a number is not finite.
static inline float quantize(const float* u, int64_t count, int8_t* integers) {
    Eight largest{}, probe{};
    for (int64_t i = 0; i < count; i += 8) {
        const Eight value = load<Eight>(u + i);
        largest = larger(larger(value, -value), largest);
        probe += value * 0.f;
    }
    float most = 0, nothing = 0;
    for (int i = 0; i < 8; ++i) most = largest[i] > most ? largest[i] : most, nothing += probe[i];
    const float inverse = most > TINY ? 127 / most : 0;
    round_all(u, count, inverse, integers);
    return most / 127 + nothing;
}

// Tables of 16 numbers, the same for all pairs of a block.
static void tabulate_numbers(const Layer& layer, const float* x, int64_t items, int64_t item, int8_t* tables,
                             float* scales) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    alignas(64) float u[SHUFFLED * ATOMS];
    alignas(64) int8_t integers[SHUFFLED * ATOMS];
    for (int64_t first = 0; first < blocks; first += group) {
        const int64_t count = least(group, blocks - first);
        transform_group(layer, x, first, count, u);
        scales[first / group * items + item] = quantize(u, count * ATOMS, integers);
        for (int64_t b = 0; b < count; ++b)
            std::memcpy(tables + ((first + b) * items + item) * 16, integers + b * ATOMS, 16);
    }
}

constexpr int UNIT = 128;     // in which numbers are summed, for an entry of a table of sums
constexpr int OFFSET = 128;   // of such entries, which are not negative

// The sums that four numbers can have, bit i of a place saying that number i is subtracted. What is half
// an entry too much is rounded up or down: up in all tables would add up, in all rows.
static inline void sums_of_four(const int16_t* u, bool up, uint8_t* sums) {
    constexpr Sixteen SUBTRACTED[4] = {
        {0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1},
        {0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1},
        {0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1},
        {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1},
    };
    const int all = OFFSET * UNIT + UNIT / 2 - !up + u[0] + u[1] + u[2] + u[3];
    Sixteen sum = Sixteen{} + static_cast<int16_t>(all);
    for (int i = 0; i < 4; ++i) sum -= SUBTRACTED[i] & static_cast<int16_t>(2 * u[i]);
    store(sums, __builtin_convertvector((Vector<uint16_t, 16>)sum / UNIT, Vector<uint8_t, 16>));
}

// Numbers to integers of which four by four are summed; returns the scale of the sums' entries.
static inline float quantize_fours(const float* u, int64_t count, int16_t* integers) {
    Eight probe{};
    float most = 0;
    for (int64_t i = 0; i < count; i += 8) {
        const Eight value = load<Eight>(u + i), magnitude = larger(value, -value);
        probe += value * 0.f;
        for (int h = 0; h < 8; h += 4) {
            const float sum = (magnitude[h] + magnitude[h + 1]) + (magnitude[h + 2] + magnitude[h + 3]);
            most = sum > most ? sum : most;
        }
    }
    float nothing = 0;
    for (int i = 0; i < 8; ++i) nothing += probe[i];
    const float inverse = most > TINY ? 127 * UNIT / most : 0;
    round_all(u, count, inverse, integers);
    return most / 127 + nothing;
}

static void tabulate_sums(const Layer& layer, const float* x, int64_t items, int64_t item, uint8_t* tables,
                          float* scales) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    alignas(64) float u[SHUFFLED * ATOMS];
    alignas(64) int16_t integers[SHUFFLED * ATOMS];
    for (int64_t first = 0; first < blocks; first += group) {
        const int64_t count = least(group, blocks - first) * layer.atoms();
        transform_group(layer, x, first, count / layer.atoms(), u);
        scales[first / group * items + item] = quantize_fours(u, count, integers);
        for (int64_t j = 0; j < count; j += 4)
            sums_of_four(integers + j, j & 4, tables + ((first * layer.atoms() + j) / 4 * items + item) * 16);
    }
}

static void tabulate(const Layer& layer, const float* x, int64_t items, int8_t* tables, float* scales) {
    for (int64_t item = 0; item < items; ++item, x += layer.inputs)
        if (layer.binary)
            tabulate_sums(layer, x, items, item, reinterpret_cast<uint8_t*>(tables), scales);
        else
            tabulate_numbers(layer, x, items, item, tables, scales);
}

template <int ITEMS>
static void add_nonzeros(const Layer& layer, const uint8_t* codes, const int8_t* tables, const float* scales,
                         float* sums) {
    constexpr int VECTORS = 2 * PANEL / WIDTH;
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    for (int64_t first = 0; first < blocks; first += group, scales += ITEMS) {
        Words words[VECTORS][ITEMS] = {};
        for (int64_t b = least(group, blocks - first); b > 0; --b, tables += ITEMS * ATOMS)
            for (int64_t pair = 0; pair < layer.pairs; ++pair, codes += 2 * PANEL) {
                __builtin_prefetch(codes + AHEAD);
                for (int v = 0; v < VECTORS; ++v) {
                    const Decoded decoded = decode(load<Bytes>(codes + v * WIDTH));
                    for (int i = 0; i < ITEMS; ++i)
                        words[v][i] += products(repeat16(tables + i * ATOMS), decoded);
                }
            }
        for (int i = 0; i < ITEMS; ++i)
            for (int v = 0; v < VECTORS; ++v)
                add_scaled(sums + i * PANEL + v * WIDTH / 2, words[v][i], scales[i]);
    }
}

template <int ITEMS>
static void add_binary(const Layer& layer, const uint8_t* codes, const int8_t* tables, const float* scales,
                      float* sums) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    const auto* table = reinterpret_cast<const uint8_t*>(tables);
    RowSums rows[ITEMS];
    for (int64_t first = 0; first < blocks; first += group, scales += ITEMS) {
        const int64_t steps = 2 * layer.pairs * least(group, blocks - first);
        Looked words[ITEMS];
        if (steps == STEPS)
            look_up_all<ITEMS>(codes, table, words);
        else
            look_up_some<ITEMS>(codes, table, steps, words);
        const int offset = static_cast<int>(2 * steps * OFFSET);
        for (int i = 0; i < ITEMS; ++i) rows[i].add(words[i], offset, scales[i]);
        codes += steps * PANEL, table += steps * 2 * ITEMS * 16;
    }
    for (int i = 0; i < ITEMS; ++i) rows[i].store_to(sums + i * PANEL);
}

template <int ITEMS>
static void few_of(const Layer& layer, const int8_t* tables, const float* scales, const float* bias, float* y,
                   int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
        alignas(64) float sums[ITEMS * PANEL] = {};
        const uint8_t* codes = layer.codes + p * layer.panel_bytes();
        (layer.binary ? add_binary<ITEMS> : add_nonzeros<ITEMS>)(layer, codes, tables, scales, sums);
        for (int64_t i = 0; i < ITEMS; ++i)
            for (int64_t row = p * PANEL; row < least(p * PANEL + PANEL, layer.rows); ++row)
                y[i * layer.rows + row] = sums[i * PANEL + row - p * PANEL] + (bias ? bias[row] : 0);
    }
}

static void few(const Layer& layer, const int8_t* tables, const float* scales, int64_t items, const float* bias,
                float* y, int64_t first, int64_t last) {
    switch (items) {
        case 1: return few_of<1>(layer, tables, scales, bias, y, first, last);
        case 2: return few_of<2>(layer, tables, scales, bias, y, first, last);
        case 3: return few_of<3>(layer, tables, scales, bias, y, first, last);
        default: return few_of<4>(layer, tables, scales, bias, y, first, last);
    }
}

// ---- many inputs: tables of sums ----

// u = C.T x of one block for LANES inputs at once: (atoms, LANES).
static inline void transform_lanes(const Layer& layer, const float* x, int64_t items, int64_t start, float* u) {
    constexpr int64_t TOGETHER = 8;  // inputs that are added without storing the sums
    const int64_t end = least(start + layer.tile, layer.inputs);
    alignas(32) float lanes[TOGETHER * LANES] = {};
    for (int64_t first = start; first < end; first += TOGETHER) {
        const int64_t count = least(TOGETHER, end - first);
        for (int64_t l = 0; l < items; ++l)
            for (int64_t i = 0; i < count; ++i) lanes[i * LANES + l] = x[l * layer.inputs + first + i];
        for (int64_t j = 0; j < layer.atoms(); ++j) {
            Eight low{}, high{};
            if (first > start) low = load<Eight>(u + j * LANES), high = load<Eight>(u + j * LANES + 8);
            for (int64_t i = 0; i < count; ++i) {
                const float c = layer.codebook[(first - start + i) * layer.atoms() + j];
                low += load<Eight>(lanes + i * LANES) * c;
                high += load<Eight>(lanes + i * LANES + 8) * c;
            }
            store(u + j * LANES, low);
            store(u + j * LANES + 8, high);
        }
    }
}

// Integers of 16 bits (count, LANES) with a scale per lane: the largest sum of the magnitudes of
// `together` numbers becomes 32767.
static inline void quantize_lanes(const float* u, int64_t count, int64_t together, int16_t* integers,
                                  float* scales) {
    for (int64_t h = 0; h < LANES; h += 8) {
        Eight largest{}, probe{};
        for (int64_t j = 0; j < count; j += together) {
            Eight magnitude{};
            for (int64_t i = 0; i < together; ++i) {
                const Eight value = load<Eight>(u + (j + i) * LANES + h);
                magnitude += larger(value, -value);
                probe += value * 0.f;
            }
            largest = larger(magnitude, largest);
        }
        const float most = 32767 - 0.5f * static_cast<float>(together);  // each is rounded
        const Eight inverse = largest > TINY ? most / largest : Eight{};
        store(scales + h, largest / most + probe);
        for (int64_t j = 0; j < count; ++j) {
            const auto rounded = (Vector<int32_t, 8>)(load<Eight>(u + j * LANES + h) * inverse + MAGIC);
            store(integers + j * LANES + h, __builtin_convertvector(rounded, Vector<int16_t, 8>));
        }
    }
}

// What each byte stands for, (256, LANES), at most 4095: for nonzeros.
static inline void tabulate_nonzeros(const int16_t* integers, int16_t* table) {
    for (int64_t j = 0; j < ATOMS; ++j) {
        const auto u = load<Sixteen>(integers + j * LANES);
        store(table + j * LANES, Sixteen{});
        store(table + (8 * ATOMS + j) * LANES, Sixteen{});
        for (int64_t m = 1; m <= LARGEST; ++m) {
            const Sixteen product = scaled(u, static_cast<int16_t>(m * STEP));
            store(table + (m * ATOMS + j) * LANES, product);
            store(table + ((m + 8) * ATOMS + j) * LANES, -product);
        }
    }
}

// Tables of whole bytes of signs save additions, but take time to make and leave the first cache.
static inline bool by_halves(const Layer& layer) { return layer.binary && layer.rows < 1500; }

// The same for the signs of eight, or only for each half of the byte, (2, 16, LANES).
static inline void tabulate_binary(const int16_t* integers, bool halves, int16_t* table) {
    Sixteen sums[2][16];
    for (int half = 0; half < 2; ++half) {
        Sixteen u[4], all{};
        for (int i = 0; i < 4; ++i) all += u[i] = load<Sixteen>(integers + (half * 4 + i) * LANES);
        sums[half][0] = all;
        for (int s = 1; s < 16; ++s) {
            const int last = s & 8 ? 3 : s & 4 ? 2 : s & 2 ? 1 : 0;
            sums[half][s] = sums[half][s - (1 << last)] - (u[last] + u[last]);
        }
    }
    if (halves) return std::memcpy(table, sums, sizeof sums), void();
    for (int s = 0; s < 256; ++s) store(table + s * LANES, sums[0][s & 15] + sums[1][s >> 4]);
}

// Tables of the blocks of a group, and where those of the first byte and of the second of each pair are.
static inline void tabulate_lanes(const Layer& layer, const float* u, int64_t count, int16_t* products,
                                  const int16_t** places, float* scales) {
    alignas(64) int16_t integers[SUMMED * ATOMS * LANES];
    const int64_t bytes = 2 * count * layer.pairs;
    const int64_t atoms = count * layer.atoms();
    quantize_lanes(u, atoms, layer.binary ? atoms : 1, integers, scales);
    if (layer.binary) {
        for (int64_t byte = 0; byte < bytes; ++byte, products += (by_halves(layer) ? 32 : 256) * LANES) {
            places[byte] = products;
            tabulate_binary(integers + byte * 8 * LANES, by_halves(layer), products);
        }
        return;
    }
    for (int64_t l = 0; l < LANES; ++l) scales[l] *= 32768.f / STEP;
    for (int64_t b = 0; b < count; ++b)
        tabulate_nonzeros(integers + b * ATOMS * LANES, products + b * 256 * LANES);
    for (int64_t byte = 0; byte < bytes; ++byte) places[byte] = products + byte / 2 / layer.pairs * 256 * LANES;
}

static inline Eight real(const int16_t* words) {
    return __builtin_convertvector(__builtin_convertvector(load<Vector<int16_t, 8>>(words), Vector<int32_t, 8>),
                                   Eight);
}

// Adds to numbers (LANES).
static inline void add_real(float* sums, const Sixteen& words, const float* scales) {
    int16_t parts[LANES];
    store(parts, words);
    store(sums, load<Eight>(sums) + real(parts) * load<Eight>(scales));
    store(sums + 8, load<Eight>(sums + 8) + real(parts + 8) * load<Eight>(scales + 8));
}

// Sums (PANEL, LANES) of a panel, for so many pairs of bytes of each row, whose tables are at `places`.
// Bytes of a pair are APART, those of rows side by side NEXT.
template <int64_t PAIRS, int64_t APART, int64_t NEXT>
static inline void add_products(const uint8_t* codes, const int16_t* const* places, const float* scales,
                                float* sums) {
    for (int64_t r = 0; r < PANEL; ++r, sums += LANES) {
        Sixteen sum{};
        for (int64_t pair = 0; pair < PAIRS; ++pair) {
            const uint8_t* code = codes + 2 * pair * PANEL + r * NEXT;
            sum += load<Sixteen>(places[2 * pair] + code[0] * LANES);
            sum += load<Sixteen>(places[2 * pair + 1] + code[APART] * LANES);
        }
        add_real(sums, sum, scales);
    }
}

// The same for signs by halves of bytes.
template <int64_t PAIRS>
static inline void add_halves(const uint8_t* codes, const int16_t* tables, const float* scales, float* sums) {
    constexpr uint32_t ENTRY = sizeof(Sixteen), HALF = 16 * ENTRY, ALL = 15 * ENTRY;
    static_assert(ENTRY == 32, "shifts below");
    for (int64_t r = 0; r < PANEL; ++r, sums += LANES) {
        Sixteen first{}, second{};
        for (int64_t byte = 0; byte < 2 * PAIRS; ++byte) {
            const uint32_t code = codes[byte * PANEL + r];
            const auto* table = (const char*)tables + byte * 2 * HALF;
            first += load<Sixteen>(table + (code << 5 & ALL));
            second += load<Sixteen>(table + HALF + (code << 1 & ALL));
        }
        add_real(sums, first + second, scales);
    }
}

template <int64_t PAIRS>
static void add_panels(const Layer& layer, const uint8_t* codes, int64_t count, const int16_t* const* places,
                       const float* scales, float* sums) {
    for (int64_t p = 0; p < count; ++p, codes += layer.panel_bytes(), sums += PANEL * LANES)
        if (by_halves(layer))
            add_halves<PAIRS>(codes, places[0], scales, sums);
        else if (layer.binary)
            add_products<PAIRS, PANEL, 1>(codes, places, scales, sums);
        else
            add_products<PAIRS, 1, 2>(codes, places, scales, sums);
}

static void many(const Layer& layer, const float* x, int64_t items, const float* bias, float* all, float* y,
                 int64_t begin, int64_t end) {
    constexpr decltype(&add_panels<1>) add[] = {add_panels<1>, add_panels<2>, add_panels<3>, add_panels<4>};
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SUMMED, layer.pairs);
    alignas(64) float u[SUMMED * ATOMS * LANES], scales[LANES];
    alignas(64) int16_t products[2 * SUMMED * 256 * LANES];
    const int16_t* places[2 * SUMMED];
    float* sums = all + begin * PANEL * LANES;
    std::memset(sums, 0, (end - begin) * PANEL * LANES * sizeof(float));
    for (int64_t first = 0; first < blocks; first += group) {
        const int64_t count = least(group, blocks - first);
        for (int64_t b = 0; b < count; ++b)
            transform_lanes(layer, x, items, (first + b) * layer.tile, u + b * layer.atoms() * LANES);
        tabulate_lanes(layer, u, count, products, places, scales);
        const uint8_t* codes = layer.codes + begin * layer.panel_bytes() + first * layer.pairs * 2 * PANEL;
        add[count * layer.pairs - 1](layer, codes, end - begin, places, scales, sums);
    }
    for (int64_t row = begin * PANEL; row < least(end * PANEL, layer.rows); ++row)
        for (int64_t l = 0; l < items; ++l)
            y[l * layer.rows + row] = all[row * LANES + l] + (bias ? bias[row] : 0);
}

}  // namespace TERSOR_TARGET

const tersor::lookup::Kernels tersor::lookup::TERSOR_TARGET = {
    ::TERSOR_TARGET::tabulate, ::TERSOR_TARGET::few, ::TERSOR_TARGET::many};
