// The kernels of lookup.hpp, compiled once for each instruction set: lookup.cpp includes this in a
// namespace that has the macro TARGET and
//
//   Bytes                         a vector of WIDTH bytes, and Words of as many bytes
//   load(p), repeat(p)            WIDTH bytes; 16 bytes, repeated
//   Decoded decode(codes)         what all batch items need of the codes
//   Words product(table, d)       per pair of codes: sum of table[index] * signed magnitude
//   add_scaled(y, words, scale)   y += scale * words, for the WIDTH / 2 words
//   Many scaled(words, number)    round(words * number / 2**15), 16 bits

constexpr int64_t VECTORS = 2 * PANEL / WIDTH;

// u = C.T x of one block, ATOMS numbers; a block may end before its tile does.
TARGET inline void transform(const Layer& layer, const float* x, int64_t stride, int64_t count, float* u) {
    Floats low = {}, high = {};
    for (int64_t i = 0; i < count; ++i) {
        const float* c = layer.codebook + i * ATOMS;
        low += load_floats(c) * x[i * stride];
        high += load_floats(c + 8) * x[i * stride];
    }
    store(u, low);
    store(u + 8, high);
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

// Tables (blocks, items, ATOMS) and scales (groups, items) of a few inputs.
TARGET void make_tables(const Layer& layer, Matrix<const float> x, int64_t items, int8_t* tables,
                        float* scales) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    alignas(64) float u[SHUFFLED * ATOMS];
    alignas(64) int8_t integers[SHUFFLED * ATOMS];
    for (int64_t item = 0; item < items; ++item)
        for (int64_t first = 0; first < blocks; first += group) {
            const int64_t count = std::min(group, blocks - first);
            for (int64_t b = 0; b < count; ++b) {
                const int64_t start = (first + b) * layer.tile;
                transform(layer, &x.at(item, start), x.element, std::min(layer.tile, layer.inputs - start),
                          u + b * ATOMS);
            }
            scales[first / group * items + item] = quantize(u, count * ATOMS, integers);
            for (int64_t b = 0; b < count; ++b)
                std::memcpy(tables + ((first + b) * items + item) * ATOMS, integers + b * ATOMS, ATOMS);
        }
}

template <int ITEMS>
TARGET void look_up_panel(const Layer& layer, const uint8_t* codes, const int8_t* tables,
                          const float* scales, float* sums) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SHUFFLED, layer.pairs);
    for (int64_t first = 0; first < blocks; first += group, scales += ITEMS) {
        Words words[VECTORS][ITEMS] = {};
        for (int64_t b = std::min(group, blocks - first); b > 0; --b, tables += ITEMS * ATOMS)
            for (int64_t pair = 0; pair < layer.pairs; ++pair, codes += 2 * PANEL)
                for (int v = 0; v < VECTORS; ++v) {
                    const Decoded decoded = decode(load(codes + v * WIDTH));
                    for (int i = 0; i < ITEMS; ++i)
                        words[v][i] += product(repeat(tables + i * ATOMS), decoded);
                }
        for (int i = 0; i < ITEMS; ++i)
            for (int v = 0; v < VECTORS; ++v)
                add_scaled(sums + i * PANEL + v * WIDTH / 2, words[v][i], scales[i]);
    }
}

TARGET void look_up_panels(const Layer& layer, const int8_t* tables, const float* scales, int64_t items,
                           Matrix<float> y, int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
        alignas(64) float sums[FEW * PANEL] = {};
        const uint8_t* codes = layer.codes + p * layer.panel_bytes();
        if (items == 1) look_up_panel<1>(layer, codes, tables, scales, sums);
        if (items == 2) look_up_panel<2>(layer, codes, tables, scales, sums);
        if (items == 3) look_up_panel<3>(layer, codes, tables, scales, sums);
        if (items == 4) look_up_panel<4>(layer, codes, tables, scales, sums);
        const int64_t start = p * PANEL, rows = std::min(PANEL, layer.rows - start);
        for (int64_t i = 0; i < items; ++i)
            for (int64_t r = 0; r < rows; ++r) y.at(i, start + r) = sums[i * PANEL + r];
    }
}

// u = C.T x of one block for LANES inputs at once: (ATOMS, LANES).
TARGET inline void transform_lanes(const Layer& layer, Matrix<const float> x, int64_t items, int64_t start,
                                   float* u) {
    const int64_t count = std::min(layer.tile, layer.inputs - start);
    for (int64_t j = 0; j < ATOMS * LANES; j += 8) store(u + j, Floats{});
    for (int64_t i = 0; i < count; ++i) {
        alignas(32) float lanes[LANES] = {};
        for (int64_t l = 0; l < items; ++l) lanes[l] = x.at(l, start + i);
        const Floats low = load_floats(lanes), high = load_floats(lanes + 8);
        const float* c = layer.codebook + i * ATOMS;
        for (int64_t j = 0; j < ATOMS; ++j) {
            store(u + j * LANES, load_floats(u + j * LANES) + low * c[j]);
            store(u + j * LANES + 8, load_floats(u + j * LANES + 8) + high * c[j]);
        }
    }
}

// Integers of 16 bits (count, LANES) with a scale per lane, for sums of products with magnitudes of
// which the largest becomes 4095.
TARGET inline void quantize_lanes(const float* u, int64_t count, int16_t* integers, float* scales) {
    for (int64_t h = 0; h < LANES; h += 8) {
        Floats largest = {}, probe = {};
        for (int64_t j = 0; j < count; ++j) {
            const Floats value = load_floats(u + j * LANES + h), negative = -value;
            const Floats magnitude = value > negative ? value : negative;
            largest = magnitude > largest ? magnitude : largest;
            probe += value * 0.0f;
        }
        const Floats inverse = largest > TINY ? 32767.0f / largest : Floats{};
        store(scales + h, largest / 32767.0f * (32768.0f / STEP) + probe);
        for (int64_t j = 0; j < count; ++j) {
            const Floats shifted = load_floats(u + j * LANES + h) * inverse + MAGIC;
            int32_t bits[8];
            std::memcpy(bits, &shifted, sizeof shifted);
            for (int i = 0; i < 8; ++i) integers[j * LANES + h + i] = static_cast<int16_t>(bits[i]);
        }
    }
}

// All products of one block: (256, LANES), the place of a code its byte.
TARGET inline void tabulate(const int16_t* integers, int16_t* products) {
    for (int64_t j = 0; j < ATOMS; ++j) {
        const Many u = load_many(integers + j * LANES);
        store(products + j * LANES, Many{});
        for (int64_t m = 1; m <= LARGEST; ++m) {
            const Many product = scaled(u, static_cast<int16_t>(m * STEP));
            store(products + (m * ATOMS + j) * LANES, product);
            store(products + ((m + 8) * ATOMS + j) * LANES, -product);
        }
    }
}

// sums (PANEL, LANES) of a panel, for a group of blocks whose products are tabulated.
TARGET inline void add_products(const uint8_t* codes, int64_t count, int64_t pairs, const int16_t* products,
                                const float* scales, float* sums) {
    for (int64_t r = 0; r < PANEL; ++r) {
        Many sum = {};
        const uint8_t* code = codes + 2 * r;
        const int16_t* table = products;
        for (int64_t b = 0; b < count; ++b, table += 256 * LANES)
            for (int64_t pair = 0; pair < pairs; ++pair, code += 2 * PANEL) {
                sum += load_many(table + code[0] * LANES);
                sum += load_many(table + code[1] * LANES);
            }
        add_scaled_lanes(sums + r * LANES, sum, scales);
    }
}

TARGET void batched_panels(const Layer& layer, Matrix<const float> x, int64_t items, float* sums,
                           Matrix<float> y, int64_t begin, int64_t end) {
    const int64_t blocks = layer.blocks(), group = blocks_per_scale(SUMMED, layer.pairs);
    alignas(64) float u[SUMMED * ATOMS * LANES], scales[LANES];
    alignas(64) int16_t integers[SUMMED * ATOMS * LANES], products[SUMMED * 256 * LANES];
    std::fill(sums + begin * PANEL * LANES, sums + end * PANEL * LANES, 0.0f);
    for (int64_t first = 0; first < blocks; first += group) {
        const int64_t count = std::min(group, blocks - first);
        for (int64_t b = 0; b < count; ++b)
            transform_lanes(layer, x, items, (first + b) * layer.tile, u + b * ATOMS * LANES);
        quantize_lanes(u, count * ATOMS, integers, scales);
        for (int64_t b = 0; b < count; ++b)
            tabulate(integers + b * ATOMS * LANES, products + b * 256 * LANES);
        for (int64_t p = begin; p < end; ++p)
            add_products(layer.codes + p * layer.panel_bytes() + first * layer.pairs * 2 * PANEL, count,
                         layer.pairs, products, scales, sums + p * PANEL * LANES);
    }
    for (int64_t r = begin * PANEL; r < std::min(end * PANEL, layer.rows); ++r)
        for (int64_t l = 0; l < items; ++l) y.at(l, r) = sums[r * LANES + l];
}

constexpr Kernels kernels = {make_tables, look_up_panels, batched_panels};
