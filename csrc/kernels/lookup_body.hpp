// The kernels of lookup.hpp, compiled once for each instruction set: lookup.cpp includes this in a
// namespace that has the macro TARGET and
//
//   Bytes                         a vector of WIDTH bytes, and Words of as many bytes
//   load(p), repeat(p)            WIDTH bytes; 16 bytes, repeated
//   Decoded decode(codes)         what all batch items need of the codes
//   Words product(table, d)       per pair of codes: sum of table[index] * signed magnitude
//   add_scaled(y, words, scale)   y += scale * words, for the WIDTH / 2 words
//   Halves split(codes)           both halves of HALVES bytes
//   add_halves(sum, low, high, h) sum += low[h.low] + high[h.high] for as many rows; sum is a Signed,
//                                 for which there is an add_scaled too
//   Many scaled(words, number)    round(words * number / 2**15), 16 bits
//   add_scaled_lanes(y, words, s, t)  y += words times s for the first half of them, t for the other

constexpr int64_t VECTORS = 2 * PANEL / WIDTH;

// u = C.T x of one block, ATOMS numbers from column `atom`; a block may end before its tile does.
TARGET inline void transform(const Layer& layer, const float* x, int64_t stride, int64_t count, int64_t atom,
                             float* u) {
    Floats low = {}, high = {};
    for (int64_t i = 0; i < count; ++i) {
        const float* c = layer.codebook + i * layer.atoms() + atom;
        low += load_floats(c) * x[i * stride];
        high += load_floats(c + 8) * x[i * stride];
    }
    store(u, low);
    store(u + 8, high);
}

// The sums that four numbers can have, bit i of a place saying that number i is subtracted.
TARGET inline void sums_of_four(const float* u, float* sums) {
    const Floats first = {1, -1, 1, -1, 1, -1, 1, -1}, second = {1, 1, -1, -1, 1, 1, -1, -1};
    const Floats third = {1, 1, 1, 1, -1, -1, -1, -1};
    const Floats three = first * u[0] + second * u[1] + third * u[2];
    store(sums, three + u[3]);
    store(sums + 8, three - u[3]);
}

// Numbers to integers with a common scale, which is returned; NaN if a number is not finite.
TARGET inline float quantize(const float* u, int64_t count, int8_t* integers) {
    Floats largest = {}, probe = {};
    for (int64_t i = 0; i < count; i += 8) {
        const Floats value = load_floats(u + i), negative = -value;
        const Floats magnitude = value > negative ? value : negative;
        largest = magnitude > largest ? magnitude : largest;
        probe += value * 0.0f;
    }
    float most = 0, nothing = 0;
    for (int i = 0; i < 8; ++i) most = largest[i] > most ? largest[i] : most, nothing += probe[i];
    const float inverse = most > TINY ? 127 / most : 0;
    for (int64_t i = 0; i < count; i += 16) {
        int32_t bits[16];
        for (int64_t h = 0; h < 16; h += 8) {
            // Added to 1.5 * 2**23, a number is rounded, and the lowest bits are those of the integer.
            const Floats shifted = load_floats(u + i + h) * inverse + MAGIC;
            std::memcpy(bits + h, &shifted, sizeof shifted);
        }
        for (int64_t j = 0; j < 16; ++j) integers[i + j] = static_cast<int8_t>(bits[j]);
    }
    return most / 127 + nothing;
}

// Table entries of one block, 16 for each table, not yet quantized.
TARGET inline void entries(const Layer& layer, const float* x, int64_t stride, int64_t count, float* out) {
    if (!layer.signs) return transform(layer, x, stride, count, 0, out);
    for (int64_t pair = 0; pair < layer.pairs; ++pair) {
        alignas(32) float u[ATOMS];
        transform(layer, x, stride, count, pair * ATOMS, u);
        for (int64_t j = 0; j < ATOMS; j += 4) sums_of_four(u + j, out + (pair * 4 + j / 4) * 16);
    }
}

// Tables (blocks, tables of a block, items, 16) and scales (groups, items) of a few inputs.
TARGET void make_tables(const Layer& layer, Matrix<const float> x, int64_t items, int8_t* tables,
                        float* scales) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    const int64_t own = layer.tables();
    alignas(64) float values[SHUFFLED * 4 * 16];
    alignas(64) int8_t integers[SHUFFLED * 4 * 16];
    for (int64_t item = 0; item < items; ++item)
        for (int64_t first = 0; first < blocks; first += group) {
            const int64_t count = std::min(group, blocks - first);
            for (int64_t b = 0; b < count; ++b) {
                const int64_t start = (first + b) * layer.tile;
                entries(layer, &x.at(item, start), x.element, std::min(layer.tile, layer.inputs - start),
                        values + b * own * 16);
            }
            scales[first / group * items + item] = quantize(values, count * own * 16, integers);
            for (int64_t t = 0; t < count * own; ++t)
                std::memcpy(tables + ((first * own + t) * items + item) * 16, integers + t * 16, 16);
        }
}

template <int ITEMS>
TARGET void look_up_panel(const Layer& layer, const uint8_t* codes, const int8_t* tables,
                          const float* scales, float* sums) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    for (int64_t first = 0; first < blocks; first += group, scales += ITEMS) {
        Words words[VECTORS][ITEMS] = {};
        for (int64_t b = std::min(group, blocks - first); b > 0; --b, tables += ITEMS * ATOMS)
            for (int64_t pair = 0; pair < layer.pairs; ++pair, codes += 2 * PANEL) {
                __builtin_prefetch(codes + AHEAD);
                for (int v = 0; v < VECTORS; ++v) {
                    const Decoded decoded = decode(load(codes + v * WIDTH));
                    for (int i = 0; i < ITEMS; ++i)
                        words[v][i] += product(repeat(tables + i * ATOMS), decoded);
                }
            }
        for (int i = 0; i < ITEMS; ++i)
            for (int v = 0; v < VECTORS; ++v)
                add_scaled(sums + i * PANEL + v * WIDTH / 2, words[v][i], scales[i]);
    }
}

template <int ITEMS>
TARGET void look_up_signs(const Layer& layer, const uint8_t* codes, const int8_t* tables,
                          const float* scales, float* sums) {
    constexpr int PARTS = PANEL / HALVES;  // vectors of rows
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    for (int64_t first = 0; first < blocks; first += group, scales += ITEMS) {
        Signed words[PARTS][ITEMS] = {};
        const int64_t bytes = 2 * layer.pairs * std::min(group, blocks - first);
        for (int64_t byte = 0; byte < bytes; ++byte, codes += PANEL, tables += 2 * ITEMS * 16) {
            __builtin_prefetch(codes + AHEAD);
            for (int v = 0; v < PARTS; ++v) {
                const Halves halves = split(codes + v * HALVES);
                for (int i = 0; i < ITEMS; ++i)
                    add_halves(words[v][i], tables + i * 16, tables + (ITEMS + i) * 16, halves);
            }
        }
        for (int i = 0; i < ITEMS; ++i)
            for (int v = 0; v < PARTS; ++v)
                add_scaled(sums + i * PANEL + v * HALVES, words[v][i], scales[i]);
    }
}

template <int ITEMS>
TARGET void one_panel(const Layer& layer, const uint8_t* codes, const int8_t* tables, const float* scales,
                      float* sums) {
    (layer.signs ? look_up_signs<ITEMS> : look_up_panel<ITEMS>)(layer, codes, tables, scales, sums);
}

TARGET void look_up_panels(const Layer& layer, const int8_t* tables, const float* scales, int64_t items,
                           Matrix<float> y, int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
        alignas(64) float sums[FEW * PANEL] = {};
        const uint8_t* codes = layer.codes + p * layer.panel_bytes();
        if (items == 1) one_panel<1>(layer, codes, tables, scales, sums);
        if (items == 2) one_panel<2>(layer, codes, tables, scales, sums);
        if (items == 3) one_panel<3>(layer, codes, tables, scales, sums);
        if (items == 4) one_panel<4>(layer, codes, tables, scales, sums);
        const int64_t start = p * PANEL, rows = std::min(PANEL, layer.rows - start);
        for (int64_t i = 0; i < items; ++i)
            for (int64_t r = 0; r < rows; ++r) y.at(i, start + r) = sums[i * PANEL + r];
    }
}

// u = C.T x of one block for LANES inputs at once: (atoms, LANES).
TARGET inline void transform_lanes(const Layer& layer, Matrix<const float> x, int64_t items, int64_t start,
                                   float* u) {
    constexpr int64_t TOGETHER = 8;  // inputs that are added without storing the sums
    const int64_t end = std::min(start + layer.tile, layer.inputs);
    alignas(32) float lanes[TOGETHER * LANES];
    if (items < LANES) std::memset(lanes, 0, sizeof lanes);
    for (int64_t first = start; first < end; first += TOGETHER) {
        const int64_t count = std::min(TOGETHER, end - first);
        for (int64_t l = 0; l < items; ++l)
            for (int64_t i = 0; i < count; ++i) lanes[i * LANES + l] = x.at(l, first + i);
        for (int64_t j = 0; j < layer.atoms(); ++j) {
            Floats low = {}, high = {};
            if (first > start) low = load_floats(u + j * LANES), high = load_floats(u + j * LANES + 8);
            for (int64_t i = 0; i < count; ++i) {
                const float c = layer.codebook[(first - start + i) * layer.atoms() + j];
                low += load_floats(lanes + i * LANES) * c;
                high += load_floats(lanes + i * LANES + 8) * c;
            }
            store(u + j * LANES, low);
            store(u + j * LANES + 8, high);
        }
    }
}

// Integers of 16 bits (count, LANES) with a scale per lane: the largest sum of the magnitudes of
// `together` numbers becomes 32767.
TARGET inline void quantize_lanes(const float* u, int64_t count, int64_t together, int16_t* integers,
                                  float* scales) {
    for (int64_t h = 0; h < LANES; h += 8) {
        Floats largest = {}, probe = {};
        for (int64_t j = 0; j < count; j += together) {
            Floats magnitude = {};
            for (int64_t i = 0; i < together; ++i) {
                const Floats value = load_floats(u + (j + i) * LANES + h), negative = -value;
                magnitude += value > negative ? value : negative;
                probe += value * 0.0f;
            }
            largest = magnitude > largest ? magnitude : largest;
        }
        const float most = 32767 - 0.5f * static_cast<float>(together);  // each is rounded
        const Floats inverse = largest > TINY ? most / largest : Floats{};
        store(scales + h, largest / most + probe);
        for (int64_t j = 0; j < count; ++j) {
            const Floats shifted = load_floats(u + j * LANES + h) * inverse + MAGIC;
            int32_t bits[8];
            std::memcpy(bits, &shifted, sizeof shifted);
            for (int i = 0; i < 8; ++i) integers[j * LANES + h + i] = static_cast<int16_t>(bits[i]);
        }
    }
}

// What each byte stands for, (256, LANES), at most 4095: for nonzeros.
TARGET inline void tabulate_nonzeros(const int16_t* integers, int16_t* table) {
    for (int64_t j = 0; j < ATOMS; ++j) {
        const Many u = load_many(integers + j * LANES);
        store(table + j * LANES, Many{});
        store(table + (8 * ATOMS + j) * LANES, Many{});
        for (int64_t m = 1; m <= LARGEST; ++m) {
            const Many product = scaled(u, static_cast<int16_t>(m * STEP));
            store(table + (m * ATOMS + j) * LANES, product);
            store(table + ((m + 8) * ATOMS + j) * LANES, -product);
        }
    }
}

// The same for the signs of eight.
TARGET inline void tabulate_signs(const int16_t* integers, int16_t* table) {
    Many low[16];
    for (int half = 1; half >= 0; --half) {
        const int16_t* u = integers + half * 4 * LANES;
        Many four[16];
        for (int s = 0; s < 16; ++s) {
            four[s] = Many{};
            for (int i = 0; i < 4; ++i)
                four[s] += s >> i & 1 ? -load_many(u + i * LANES) : load_many(u + i * LANES);
        }
        if (half) std::copy(four, four + 16, low);
        else
            for (int s = 0; s < 256; ++s) store(table + s * LANES, scaled(four[s & 15] + low[s >> 4], MOST));
    }
}

// Tables of the blocks of a group, and where those of the first byte and of the second of each pair are.
TARGET inline void tabulate(const Layer& layer, const float* u, int64_t count, int16_t* products,
                            const int16_t** places, float* scales) {
    alignas(64) int16_t integers[SUMMED * ATOMS * LANES];
    const int64_t atoms = count * layer.atoms();
    quantize_lanes(u, atoms, layer.signs ? 8 : 1, integers, scales);
    for (int64_t l = 0; l < LANES; ++l) scales[l] *= 32768.0f / (layer.signs ? MOST : STEP);
    if (layer.signs)
        for (int64_t byte = 0; byte < 2 * count * layer.pairs; ++byte)
            tabulate_signs(integers + byte * 8 * LANES, products + byte * 256 * LANES);
    else
        for (int64_t b = 0; b < count; ++b)
            tabulate_nonzeros(integers + b * ATOMS * LANES, products + b * 256 * LANES);
    for (int64_t byte = 0; byte < 2 * count * layer.pairs; ++byte)
        places[byte] = products + (layer.signs ? byte : byte / 2 / layer.pairs) * 256 * LANES;
}

// sums (PANEL, LANES) of a panel, for so many pairs of bytes of each row, whose tables are at `places`.
// Bytes of a pair are `apart`, those of rows side by side `step`.
template <int64_t PAIRS, int64_t APART, int64_t STEP_OF_ROWS>
TARGET inline void add_products(const uint8_t* codes, const int16_t* const* places, const float* scales,
                                float* sums) {
    const Floats low = load_floats(scales), high = load_floats(scales + 8);
    for (int64_t r = 0; r < PANEL; ++r) {
        Many sum = {};
        for (int64_t pair = 0; pair < PAIRS; ++pair) {
            const uint8_t* code = codes + 2 * pair * PANEL + r * STEP_OF_ROWS;
            sum += load_many(places[2 * pair] + code[0] * LANES);
            sum += load_many(places[2 * pair + 1] + code[APART] * LANES);
        }
        add_scaled_lanes(sums + r * LANES, sum, low, high);
    }
}

template <int64_t PAIRS>
TARGET inline void add_panels(const Layer& layer, const uint8_t* codes, int64_t count,
                              const int16_t* const* places, const float* scales, float* sums) {
    for (int64_t p = 0; p < count; ++p, codes += layer.panel_bytes(), sums += PANEL * LANES)
        if (layer.signs)
            add_products<PAIRS, PANEL, 1>(codes, places, scales, sums);
        else
            add_products<PAIRS, 1, 2>(codes, places, scales, sums);
}

TARGET void batched_panels(const Layer& layer, Matrix<const float> x, int64_t items, float* all,
                           Matrix<float> y, int64_t begin, int64_t end) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SUMMED, layer.pairs);
    alignas(64) float u[SUMMED * ATOMS * LANES], scales[LANES];
    alignas(64) int16_t products[2 * SUMMED * 256 * LANES];
    const int16_t* places[2 * SUMMED];
    float* sums = all + begin * PANEL * LANES;
    std::fill(sums, all + end * PANEL * LANES, 0.0f);
    for (int64_t first = 0; first < blocks; first += group) {
        const int64_t count = std::min(group, blocks - first), pairs = count * layer.pairs;
        for (int64_t b = 0; b < count; ++b)
            transform_lanes(layer, x, items, (first + b) * layer.tile, u + b * layer.atoms() * LANES);
        tabulate(layer, u, count, products, places, scales);
        const uint8_t* codes = layer.codes + begin * layer.panel_bytes() + first * layer.pairs * 2 * PANEL;
        const auto add = pairs == 4 ? add_panels<4> : pairs == 3 ? add_panels<3> : pairs == 2 ? add_panels<2>
                                                                                             : add_panels<1>;
        add(layer, codes, end - begin, places, scales, sums);
    }
    for (int64_t r = begin * PANEL; r < std::min(end * PANEL, layer.rows); ++r)
        for (int64_t l = 0; l < items; ++l) y.at(l, r) = all[r * LANES + l];
}

constexpr Kernels kernels = {make_tables, look_up_panels, batched_panels};
