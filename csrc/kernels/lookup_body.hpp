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
    constexpr int64_t TOGETHER = 8;  // inputs that are added without storing the sums
    const int64_t end = std::min(start + layer.tile, layer.inputs);
    alignas(32) float lanes[TOGETHER * LANES];
    if (items < LANES) std::memset(lanes, 0, sizeof lanes);
    for (int64_t first = start; first < end; first += TOGETHER) {
        const int64_t count = std::min(TOGETHER, end - first);
        for (int64_t l = 0; l < items; ++l)
            for (int64_t i = 0; i < count; ++i) lanes[i * LANES + l] = x.at(l, first + i);
        for (int64_t j = 0; j < ATOMS; ++j) {
            Floats low = {}, high = {};
            if (first > start) low = load_floats(u + j * LANES), high = load_floats(u + j * LANES + 8);
            for (int64_t i = 0; i < count; ++i) {
                const float c = layer.codebook[(first - start + i) * ATOMS + j];
                low += load_floats(lanes + i * LANES) * c;
                high += load_floats(lanes + i * LANES + 8) * c;
            }
            store(u + j * LANES, low);
            store(u + j * LANES + 8, high);
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

// sums (PANEL, LANES) of a panel, for `count` pairs of nonzeros of each row, whose products are tabulated
// at the tables' places.
template <int64_t PAIRS>
TARGET inline void add_products(const uint8_t* codes, const int16_t* const* tables, const float* scales,
                                float* sums) {
    const Floats low = load_floats(scales), high = load_floats(scales + 8);
    for (int64_t r = 0; r < PANEL; ++r) {
        Many sum = {};
        for (int64_t pair = 0; pair < PAIRS; ++pair) {
            uint16_t both;
            std::memcpy(&both, codes + 2 * (pair * PANEL + r), 2);
            sum += load_many(tables[pair] + (both & 255) * LANES);
            sum += load_many(tables[pair] + (both >> 8) * LANES);
        }
        add_scaled_lanes(sums + r * LANES, sum, low, high);
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
        const int16_t* tables[SUMMED];
        for (int64_t pair = 0; pair < count * layer.pairs; ++pair)
            tables[pair] = products + pair / layer.pairs * 256 * LANES;
        for (int64_t p = begin; p < end; ++p) {
            const uint8_t* codes = layer.codes + p * layer.panel_bytes() + first * layer.pairs * 2 * PANEL;
            float* panel = sums + p * PANEL * LANES;
            if (count * layer.pairs == 4) add_products<4>(codes, tables, scales, panel);
            if (count * layer.pairs == 3) add_products<3>(codes, tables, scales, panel);
            if (count * layer.pairs == 2) add_products<2>(codes, tables, scales, panel);
            if (count * layer.pairs == 1) add_products<1>(codes, tables, scales, panel);
        }
    }
    for (int64_t r = begin * PANEL; r < std::min(end * PANEL, layer.rows); ++r)
        for (int64_t l = 0; l < items; ++l) y.at(l, r) = sums[r * LANES + l];
}

constexpr Kernels kernels = {make_tables, look_up_panels, batched_panels};
