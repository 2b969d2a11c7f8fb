// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set, with TERSOR_TARGET its name: nothing here may be an inline
// function of the standard library, which the linker would take from any of them.
#include "integers.hpp"

#include <cmath>

#include "simd.hpp"

namespace TERSOR_TARGET {
using namespace tersor;

using Eight = Vector<float, 8>;
constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits

// ---- the input ----

constexpr int TOGETHER = 6;  // tiles, or vectors, that share what is loaded

static inline Eight eight(const int16_t* from) {
    return __builtin_convertvector(load<Vector<int16_t, 8>>(from), Eight);
}
static inline Eight eight(const float* from) { return load<Eight>(from); }

// N tiles of `size` inputs times 8 * M positions of the codebook, to numbers that are `tiles` apart.
template <int N, int M, class Number>
static void transform_part(const Integers& w, const Number* columns, int64_t stride, const float* const* in,
                           float* const* out, int64_t size, int64_t first) {
    Eight sums[N][M]{};
    for (int64_t i = 0; i < size; ++i, columns += stride) {
        Eight some[M];
        for (int m = 0; m < M; ++m) some[m] = eight(columns + 8 * m);
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) sums[n][m] += in[n][i] * some[m];
    }
    float found[N][8 * M];
    for (int n = 0; n < N; ++n)
        for (int m = 0; m < M; ++m) store(found[n] + 8 * m, sums[n][m] * *w.scale);
    const int64_t some = w.rank() - first < 8 * M ? w.rank() - first : 8 * M;
    for (int64_t j = 0; j < some; ++j) {
        const int64_t place = w.place(first + j);
        for (int n = 0; n < N; ++n) out[n][place] = found[n][j];
    }
}

// Of the codebook as it is, or of its panels in float32, if there are any.
template <int N>
static void transform_tiles(const Integers& w, const float* panels, const float* const* in, float* const* out,
                            int64_t size) {
    for (int64_t p = 0; p < w.padded_rank; p += 16) {
        const bool pair = p + 8 < w.padded_rank;
        const int16_t* columns = w.codebook + p;
        const float* panel = panels ? panels + p * w.d : nullptr;
        if (panels && pair) transform_part<N, 2>(w, panel, 16, in, out, size, p);
        if (panels && !pair) transform_part<N, 1>(w, panel, 8, in, out, size, p);
        if (!panels && pair) transform_part<N, 2>(w, columns, w.padded_rank, in, out, size, p);
        if (!panels && !pair) transform_part<N, 1>(w, columns, w.padded_rank, in, out, size, p);
    }
}

static void transform_some(const Integers& w, const float* panels, const float* const* in, float* const* out,
                           int count, int64_t size) {
    constexpr decltype(&transform_tiles<1>) transforms[] = {
        transform_tiles<1>, transform_tiles<2>, transform_tiles<3>,
        transform_tiles<4>, transform_tiles<5>, transform_tiles<6>};
    transforms[count - 1](w, panels, in, out, size);
}

// The codebook as panels of 16 positions, the last of 8 if so many are left: to convert it costs as much
// as to multiply by it.
static void to_panels(const Integers& w, float* panels) {
    for (int64_t p = 0; p < w.padded_rank; p += 16)
        for (int64_t i = 0; i < w.d; ++i)
            for (int64_t some = p; some < p + 16 && some < w.padded_rank; some += 8, panels += 8)
                store(panels, eight(w.codebook + i * w.padded_rank + some));
}

// x (count, inputs) to u (count, columns), padded with zeros; not yet the middle and top sections.
static void transform(const Integers& w, const float* x, int64_t count, const float* panels, float* u) {
    for (int64_t n = 0; n < count; ++n) {
        float* row = u + n * w.columns();
        const int64_t wide = w.wide_rank * w.tiles, narrow = w.wide + w.narrow_rank * w.tiles;
        std::memset(row + wide, 0, (w.wide - wide) * sizeof(float));
        std::memset(row + narrow, 0, (w.columns() - narrow) * sizeof(float));
    }
    if (w.rank() == 1 && w.d == 1) {
        const float factor = *w.scale * w.codebook[0];
        for (int64_t n = 0; n < count; ++n)
            for (int64_t t = 0; t < w.tiles; ++t) u[n * w.columns() + w.place(0) + t] = factor * x[n * w.inputs + t];
        return;
    }
    const float* in[TOGETHER];
    float* out[TOGETHER];
    int held = 0;
    const int64_t whole = w.inputs / w.d, rest = w.inputs % w.d;
    const auto take = [&](int64_t n, int64_t t, int64_t size) {
        in[held] = x + n * w.inputs + t * w.d, out[held++] = u + n * w.columns() + t;
        if (held == TOGETHER) transform_some(w, panels, in, out, held, size), held = 0;
    };
    const auto flush_with = [&](int64_t size) {
        if (held) transform_some(w, panels, in, out, held, size), held = 0;
    };
    for (int64_t n = 0; n < count; ++n)
        for (int64_t t = 0; t < whole; ++t) take(n, t, w.d);
    flush_with(w.d);
    for (int64_t n = 0; n < count && rest; ++n) take(n, whole, rest);
    flush_with(rest);
}

constexpr float TINY = 1e-30f;  // a largest input below it counts as zero: its inverse would overflow

static inline Eight larger(Eight most, Eight v) {
    v = (Eight)((Vector<uint32_t, 8>)v & 0x7fffffffu);
    return v > most ? v : most;
}

static float largest(const float* u, int64_t size) {
    Eight most{};
    for (int64_t i = 0; i < size; i += 8) most = larger(most, load<Eight>(u + i));
    float found = 0;
    for (int i = 0; i < 8; ++i) found = most[i] > found ? most[i] : found;
    return found;
}

// Rounds a group; returns what its codes add too much, NaN if an input is infinite or NaN.
static float round_group(const Rounded& u, int64_t first, int64_t size, int excess) {
    const float most = largest(u.real + first, size), inverse = most > TINY ? 127 / most : 0;
    Vector<uint32_t, 8> sums{};  // unsigned: of what is not finite, sums may wrap
    Eight nothing{};
    for (int64_t i = first; i < first + size; i += 8) {
        const auto q = (Vector<int32_t, 8>)(load<Eight>(u.real + i) * inverse + MAGIC) - 0x4b400000;
        sums += (Vector<uint32_t, 8>)q;
        nothing += load<Eight>(u.real + i) * 0.f;
        store(u.bytes + i, __builtin_convertvector(q, Vector<int8_t, 8>));
    }
    uint32_t sum = 0;
    float none = 0;
    for (int i = 0; i < 8; ++i) sum += sums[i], none += nothing[i];
    u.scales[first / 16] = most / 127;
    return most / 127 * excess * static_cast<int32_t>(sum) + none;
}

static float round_section(const Rounded& u, int64_t first, int64_t columns, int excess) {
    float offset = 0;
    for (int64_t i = 0; i < columns; i += GROUP)
        offset += round_group(u, first + i, columns - i < GROUP ? columns - i : GROUP, excess);
    return offset;
}

static void round(const Integers& w, const float* x, const Rounded& u) {
    transform(w, x, 1, nullptr, u.real);
    float* higher = u.real + w.low_columns();
    for (int64_t i = 0; i < w.middle_rank * w.tiles; ++i) higher[i] = 16 * u.real[i];
    for (int64_t i = 0; i < w.top_rank * w.tiles; ++i) higher[w.middle + i] = 64 * u.real[i];
    *u.offset = round_section(u, 0, w.wide, 8) + round_section(u, w.wide, w.narrow, 1) +
                round_section(u, w.low_columns(), w.middle, 1) +
                round_section(u, w.low_columns() + w.middle, w.top, 1);
}

// ---- few inputs: products of bytes ----

constexpr int AHEAD = 1536;  // bytes to fetch before they are needed
constexpr int PARTS = 64 / WIDTH;  // registers of 16 rows

template <int N, int TILES>
struct Sums {
    Floats of[TILES][N][PARTS] = {};
};

// Adds so many inputs of a group, for tiles of 16 rows whose codes are `apart`.
template <int BITS, int INPUTS, int N, int TILES>
static inline void add_inputs(const uint8_t* codes, int64_t apart, int64_t first, int64_t group,
                              const Rounded* u, Sums<N, TILES>& sums) {
    constexpr int LINE = 32 / BITS, LINES = INPUTS / LINE;  // inputs of 64 bytes: of 4 bytes of a row
    constexpr int SOME = LINES < 4 ? LINES : 4;
    Ints total[TILES][N][PARTS] = {};
    for (int half = 0; half < LINES / SOME; ++half) {
        Partial part[TILES][N][PARTS] = {};
#pragma GCC unroll 1
        for (int quad = 0; quad < SOME; ++quad, codes += 64) {
            const int64_t at = first + (half * SOME + quad) * LINE;
            for (int t = 0; t < TILES; ++t) {
                const uint8_t* from = codes + t * apart;
                __builtin_prefetch(from + AHEAD);
                for (int v = 0; v < PARTS; ++v) {
                    const auto add = [&](Bytes some, int64_t where) __attribute__((always_inline)) {
                        for (int n = 0; n < N; ++n)
                            multiply_add(part[t][n][v], some, splat4(u[n].bytes + at + where));
                    };
                    if constexpr (BITS == 4) {
                        Bytes low, high;
                        halves(from + v * WIDTH, low, high);
                        add(low, 0);
                        add(high, 4);
                    } else {
                        const auto packed = load<Bytes>(from + v * WIDTH);
                        add(packed & 3, 0);
                        add(shifted<2>(packed) & 3, 4);
                        add(shifted<4>(packed) & 3, 8);
                        add(shifted<6>(packed) & 3, 12);
                    }
                }
            }
        }
        for (int t = 0; t < TILES; ++t)
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < PARTS; ++v) flush(total[t][n][v], part[t][n][v]);
    }
    for (int t = 0; t < TILES; ++t)
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < PARTS; ++v)
                sums.of[t][n][v] += __builtin_convertvector(total[t][n][v], Floats) * u[n].scales[group];
}

// Adds all inputs of a section; returns where the next begins.
template <int BITS, int N, int TILES>
static inline const uint8_t* add_section(const uint8_t* codes, int64_t apart, int64_t first, int64_t columns,
                                         const Rounded* u, Sums<N, TILES>& sums) {
    constexpr int UNIT = 16, BYTES = 16 * BITS / 8;  // that a section is a multiple of; of 16 rows
    const int64_t end = first + columns;
    for (; first + GROUP <= end; first += GROUP, codes += GROUP * BYTES)
        add_inputs<BITS, GROUP>(codes, apart, first, first / 16, u, sums);
    for (const int64_t group = first / 16; first < end; first += UNIT, codes += UNIT * BYTES)
        add_inputs<BITS, UNIT>(codes, apart, first, group, u, sums);
    return codes;
}

// Calls add(place, difference) for each escape of a row, as far as these are escapes of this matrix: what
// tensors say may have been changed.
template <class Add>
static inline void each_escape(const Integers& w, int64_t row, const Add& add) {
    const int64_t columns = w.rank() * w.tiles, last = w.starts[row + 1] < w.escape_count ? w.starts[row + 1]
                                                                                         : w.escape_count;
    int64_t column = 0;
    for (int64_t e = w.starts[row] < 0 ? last : w.starts[row]; e < last; ++e) {
        column += w.escapes[e] & 255;
        if (column >= columns) return;
        add(w.place_of(column), w.escapes[e] >> 8);
    }
}

static float of_escapes(const Integers& w, const float* u, int64_t row) {
    float sum = 0;
    each_escape(w, row, [&](int64_t place, int difference) { sum += difference * u[place]; });
    return sum;
}

// So many tiles of 16 rows side by side: memory is faster where it is read at several places.
template <int N, int TILES>
static void add_tiles(const Integers& w, const Rounded* u, const float* bias, float* y, int64_t tile) {
    const int64_t apart = 16 * w.row_bytes(), low = w.low_columns();
    const uint8_t* codes = w.codes + tile * apart;
    Sums<N, TILES> sums;
    codes = add_section<4>(codes, apart, 0, w.wide, u, sums);
    codes = add_section<2>(codes, apart, w.wide, w.narrow, u, sums);
    codes = add_section<2>(codes, apart, low, w.middle, u, sums);
    add_section<2>(codes, apart, low + w.middle, w.top, u, sums);
    for (int t = 0; t < TILES; ++t)
        for (int n = 0; n < N; ++n) {
            float out[16];
            std::memcpy(out, sums.of[t][n], sizeof out);
            const int64_t first = (tile + t) * 16, count = w.rows - first < 16 ? w.rows - first : 16;
            for (int64_t row = first; row < first + count; ++row)
                y[n * w.rows + row] =
                    out[row - first] - *u[n].offset + of_escapes(w, u[n].real, row) + (bias ? bias[row] : 0);
        }
}

template <int N>
static void few_of(const Integers& w, const Rounded* u, const float* bias, float* y, int64_t first,
                   int64_t last) {
    constexpr int TILES = N == 1 ? 4 : 1;
    if (TILES > 1 && w.row_bytes() >= 512)  // else sums that are put away cost more
        for (; first + TILES <= last; first += TILES) add_tiles<N, TILES>(w, u, bias, y, first);
    for (; first < last; ++first) add_tiles<N, 1>(w, u, bias, y, first);
}

static void few(const Integers& w, const Rounded* u, int64_t count, const float* bias, float* y,
                int64_t first, int64_t last) {
    switch (count) {
        case 1: return few_of<1>(w, u, bias, y, first, last);
        case 2: return few_of<2>(w, u, bias, y, first, last);
        case 3: return few_of<3>(w, u, bias, y, first, last);
        default: return few_of<4>(w, u, bias, y, first, last);
    }
}

// ---- many inputs: tables of sums ----
// A byte of codes is an index into the 256 sums that its two or four inputs can have, for 16 vectors at
// once, in 16-bit integers. Those may wrap around: only what 16 bytes add up to must fit, and by
// Cauchy-Schwarz that is at most the norm of the inputs times the reach of the weights.

constexpr int TABLE = 256 + 4;  // the same sums of all tables would fall into one set of the cache
static_assert(MANY == 16, "lanes of Sixteen");

// Real numbers of 16 vectors.
struct Reals {
    Eight low, high;
};
static inline void add_product(Reals& sum, const Reals& a, Eight b) {
    sum.low += a.low * b;
    sum.high += a.high * b;
}
static inline Eight splat(float a) { return a - Eight{}; }

// Numbers of `count` vectors of `size` side by side.
static void interleave(const float* from, int64_t count, int64_t size, Reals* to) {
    for (int64_t i = 0; i < size; ++i) {
        float lanes[MANY] = {};
        for (int64_t n = 0; n < count; ++n) lanes[n] = from[n * size + i];
        std::memcpy(to + i, lanes, sizeof lanes);
    }
}

static inline auto rounded_to_words(Eight v, Eight inverse) {
    const auto q = (Vector<int32_t, 8>)(v * inverse + MAGIC) - 0x4b400000;
    return __builtin_convertvector(q, Vector<int16_t, 8>);
}

// Rounds inputs of a block so that no sum overflows; returns their scales.
static Reals round_block(const Reals* u, int64_t size, float reach, Sixteen* rounded) {
    Reals most{}, squares{}, scale, inverse;
    for (int64_t i = 0; i < size; ++i) {
        most.low = larger(most.low, u[i].low);
        most.high = larger(most.high, u[i].high);
    }
    most.low += TINY;
    most.high += TINY;
    for (int64_t i = 0; i < size; ++i) {  // of numbers up to 1: no square overflows
        const Eight low = u[i].low / most.low, high = u[i].high / most.high;
        squares.low += low * low;
        squares.high += high * high;
    }
    float norms[MANY], largest[MANY], scales[MANY], inverses[MANY];
    std::memcpy(norms, &squares, sizeof norms);
    std::memcpy(largest, &most, sizeof largest);
    for (int n = 0; n < MANY; ++n) {
        const float bound = reach * std::sqrt(norms[n]) * largest[n] + TINY;  // NaN if one of them is
        // Of 32767, at most 4 * reach <= 256 is lost to rounding.
        scales[n] = bound / 32500;
        inverses[n] = 32500 / bound;
    }
    std::memcpy(&scale, scales, sizeof scales);
    std::memcpy(&inverse, inverses, sizeof inverses);
    for (int64_t i = 0; i < size; ++i) {
        store((int16_t*)(rounded + i), rounded_to_words(u[i].low, inverse.low));
        store((int16_t*)(rounded + i) + 8, rounded_to_words(u[i].high, inverse.high));
    }
    return scale;
}

// The 16 sums of a half byte: one input times -8..7, or two inputs times -1..2 each.
static inline void half_table(const Sixteen* u, bool wide, Sixteen* table) {
    if (wide) {
        table[0] = -8 * u[0];
        for (int z = 1; z < 16; ++z) table[z] = table[z - 1] + u[0];
        return;
    }
    for (int z = 0; z < 16; ++z) {
        const auto second = static_cast<int16_t>(z / 4 - 1), first = static_cast<int16_t>(z % 4 - 1);
        table[z] = second * u[4] + first * u[0];
    }
}

static void build_tables(const Sixteen* u, bool wide, Sixteen* tables) {
    const int each = wide ? 2 : 4;
    for (int byte = 0; byte < 16; ++byte, tables += TABLE) {
        const Sixteen* in = u + byte / 4 * 4 * each + byte % 4;
        Sixteen low[16], high[16];
        half_table(in, wide, low);
        half_table(in + 2 * each, wide, high);
        for (int h = 0; h < 16; ++h)
            for (int l = 0; l < 16; ++l) tables[16 * h + l] = low[l] + high[h];
    }
}

// Adds what the sums that the indices of a quad of bytes stand for.
static inline void add_four(const uint8_t* codes, const char* table, Sixteen& even, Sixteen& odd) {
    constexpr int ENTRY = sizeof(Sixteen), ALL = 255 * ENTRY, NEXT = TABLE * ENTRY;
    static_assert(ENTRY == 32, "shifts below");
    uint32_t bits;
    std::memcpy(&bits, codes, 4);
    const uint64_t four = bits;
    even += *reinterpret_cast<const Sixteen*>(table + (four << 5 & ALL));
    odd += *reinterpret_cast<const Sixteen*>(table + (four >> 3 & ALL) + NEXT);
    even += *reinterpret_cast<const Sixteen*>(table + (four >> 11 & ALL) + 2 * NEXT);
    odd += *reinterpret_cast<const Sixteen*>(table + (four >> 19 & ALL) + 3 * NEXT);
}

static inline Eight real(const int16_t* words) {
    return __builtin_convertvector(__builtin_convertvector(load<Vector<int16_t, 8>>(words), Vector<int32_t, 8>),
                                   Eight);
}

static inline void add_block(const uint8_t* codes, const Sixteen* tables, const Reals& scale, Reals* sums) {
    for (int r = 0; r < 16; ++r) {
        Sixteen even{}, odd{};
        for (int quad = 0; quad < 4; ++quad)
            add_four(codes + quad * 64 + r * 4, (const char*)(tables + quad * 4 * TABLE), even, odd);
        int16_t words[MANY];
        store(words, even + odd);
        sums[r].low += real(words) * scale.low;
        sums[r].high += real(words + 8) * scale.high;
    }
}

static void many(const Integers& w, const float* x, int64_t count, const float* bias, float* y,
                 int64_t first, int64_t last, char* workspace) {
    auto* tables = reinterpret_cast<Sixteen*>(workspace);
    auto* rounded = tables + 16 * TABLE;
    auto* u = reinterpret_cast<Reals*>(rounded + 64);
    auto* sums = u + w.columns();
    auto* transformed = reinterpret_cast<float*>(sums + (last - first) * 16);
    float* panels = transformed + count * w.columns();
    to_panels(w, panels);
    transform(w, x, count, panels, transformed);
    interleave(transformed, count, w.columns(), u);
    std::memset(sums, 0, (last - first) * 16 * sizeof(Reals));
    const Reals* in = u;
    for (int64_t b = 0; b < w.blocks(); ++b) {
        const bool wide = b < w.wide / 32;
        const int64_t size = wide ? 32 : 64;
        const Reals scale = round_block(in, size, w.reach[b], rounded);
        in += size;
        build_tables(rounded, wide, tables);
        for (int64_t tile = first; tile < last; ++tile) {
            const uint8_t* codes = w.codes + tile * 16 * w.row_bytes() + b * 256;
            for (int line = 0; line < 4; ++line)
                __builtin_prefetch(codes + 2 * 16 * w.row_bytes() + line * 64);
            add_block(codes, tables, scale, sums + (tile - first) * 16);
        }
    }
    for (int64_t row = first * 16; row < last * 16 && row < w.rows; ++row) {
        Reals& total = sums[row - first * 16];
        each_escape(w, row, [&](int64_t place, int difference) {
            add_product(total, u[place], splat(difference));
        });
        const auto* sum = reinterpret_cast<const float*>(&total);
        for (int64_t n = 0; n < count; ++n) y[n * w.rows + row] = sum[n] + (bias ? bias[row] : 0);
    }
}

// ---- integers that are unpacked: products of float32 ----

constexpr int LANES = WIDTH / 4;  // rows of a register

// The digits of 4 bits with those of 16 and 64 times, to 16 columns of 16 rows.
static inline void unpack_wide(const uint8_t* low, const uint8_t* middle, const uint8_t* top, float* to) {
    for (int v = 0; v < PARTS; ++v) {
        const Bytes none = Bytes{} + static_cast<uint8_t>(0x55);  // digits that stand for zero
        const Bytes second = middle ? load<Bytes>(middle + v * WIDTH) : none;
        const Bytes third = top ? load<Bytes>(top + v * WIDTH) : none;
        const Bytes first[2] = {load<Bytes>(low + v * WIDTH), load<Bytes>(low + 64 + v * WIDTH)};
        const auto put = [&](int quad, Bytes four, Bytes two, Bytes last) __attribute__((always_inline)) {
            const Ints all = (Ints)((four & 15) | (two & 0x30) | (last & 0xC0));
            for (int c = 0; c < 4; ++c) {
                const Ints one = (all >> 8 * c) & 255;
                store(to + (quad * 4 + c) * 16 + v * LANES, __builtin_convertvector(one, Floats) - 88.f);
            }
        };
        put(0, first[0], raised<4>(second), raised<6>(third));
        put(1, shifted<4>(first[0]), raised<2>(second), raised<4>(third));
        put(2, first[1], second, raised<2>(third));
        put(3, shifted<4>(first[1]), shifted<2>(second), third);
    }
}

// The digits of 2 bits, to 16 columns of 16 rows.
static inline void unpack_narrow(const uint8_t* codes, float* to) {
    for (int v = 0; v < PARTS; ++v) {
        const Ints all = load<Ints>(codes + v * WIDTH);
        for (int i = 0; i < 16; ++i) {
            const Ints one = (all >> (8 * (i % 4) + 2 * (i / 4))) & 3;
            store(to + i * 16 + v * LANES, __builtin_convertvector(one, Floats) - 1.f);
        }
    }
}

// All integers of 16 rows, to (low_columns, 16).
static void unpack(const Integers& w, int64_t tile, float* to) {
    const uint8_t* low = w.codes + tile * 16 * w.row_bytes();
    const uint8_t *narrow = low + w.wide * 8, *middle = narrow + w.narrow * 4, *top = middle + w.middle * 4;
    for (int64_t i = 0; i < w.wide; i += 16)
        unpack_wide(low + i * 8, i < w.middle ? middle + i * 4 : nullptr, i < w.top ? top + i * 4 : nullptr,
                    to + i * 16);
    for (int64_t i = 0; i < w.narrow; i += 16) unpack_narrow(narrow + i * 4, to + (w.wide + i) * 16);
    for (int64_t r = 0; r < 16 && tile * 16 + r < w.rows; ++r)
        each_escape(w, tile * 16 + r, [&](int64_t place, int difference) { to[place * 16 + r] += difference; });
}

template <int N>
static void multiply(const float* integers, int64_t depth, const float* u, int64_t stride, const float* bias,
                     float* y, int64_t rows, int64_t here) {
    Floats sums[N][PARTS] = {};
    for (int64_t i = 0; i < depth; ++i) {
        Floats some[PARTS];
        for (int v = 0; v < PARTS; ++v) some[v] = load<Floats>(integers + i * 16 + v * LANES);
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < PARTS; ++v) sums[n][v] += u[n * stride + i] * some[v];
    }
    for (int n = 0; n < N; ++n) {
        float out[16];
        std::memcpy(out, sums[n], sizeof out);
        for (int64_t r = 0; r < here; ++r) y[n * rows + r] = out[r] + (bias ? bias[r] : 0);
    }
}

static void unpacked(const Integers& w, const float* x, int64_t count, const float* bias, float* y,
                     int64_t first, int64_t last, char* workspace) {
    constexpr decltype(&multiply<1>) products[] = {multiply<1>, multiply<2>, multiply<3>,
                                                   multiply<4>, multiply<5>, multiply<6>};
    auto* integers = reinterpret_cast<float*>(workspace);
    float *u = integers + w.low_columns() * 16, *panels = u + count * w.columns();
    to_panels(w, panels);
    transform(w, x, count, panels, u);
    const int64_t sets = (count + TOGETHER - 1) / TOGETHER;
    for (int64_t tile = first; tile < last; ++tile) {
        unpack(w, tile, integers);
        const int64_t row = tile * 16, here = w.rows - row < 16 ? w.rows - row : 16;
        for (int64_t set = 0; set < sets; ++set) {
            const int64_t n = set * count / sets, next = (set + 1) * count / sets;
            products[next - n - 1](integers, w.low_columns(), u + n * w.columns(), w.columns(),
                                   bias ? bias + row : nullptr, y + n * w.rows + row, w.rows, here);
        }
    }
}

// ---- rows of the matrix ----

// Integers of one row, to (low_columns).
static void unpack_row(const Integers& w, int64_t row, float* to) {
    const uint8_t* codes = w.codes + (row / 16 * w.row_bytes() * 4 + row % 16) * 4;
    const auto each = [&](int64_t columns, int bits, const auto& put) {
        for (int64_t i = 0; i < columns; codes += 64)
            for (int digit = 0; digit < 8; digit += bits)
                for (int c = 0; c < 4; ++c, ++i) put(i, codes[c] >> digit & ((1 << bits) - 1));
    };
    each(w.wide, 4, [&](int64_t i, int digit) { to[i] = digit - 8; });
    each(w.narrow, 2, [&](int64_t i, int digit) { to[w.wide + i] = digit - 1; });
    each(w.middle, 2, [&](int64_t i, int digit) { to[i] += 16 * (digit - 1); });
    each(w.top, 2, [&](int64_t i, int digit) { to[i] += 64 * (digit - 1); });
    each_escape(w, row, [&](int64_t place, int difference) { to[place] += difference; });
}

static inline float sum_of(Eight v) {
    using Four = Vector<float, 4>;
    const auto* half = reinterpret_cast<const char*>(&v);
    const Four four = load<Four>(half) + load<Four>(half + sizeof(Four));
    return (four[0] + four[1]) + (four[2] + four[3]);
}

// M numbers of a tile of N rows, each `stride` integers from the other, by as many rows of the codebook.
// Sums of integers below 2^24 are exact in any order.
template <int N, int M>
static inline void compose(const Integers& w, const float* codebook, const float* integers, int64_t stride,
                           float* y) {
    Eight sums[N][M]{};
    for (int64_t p = 0; p < w.padded_rank; p += 8) {
        Eight some[M];
        for (int m = 0; m < M; ++m) some[m] = load<Eight>(codebook + m * w.padded_rank + p);
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) sums[n][m] += load<Eight>(integers + n * stride + p) * some[m];
    }
    for (int n = 0; n < N; ++n)
        for (int m = 0; m < M; ++m) y[n * w.inputs + m] = *w.scale * sum_of(sums[n][m]);
}

template <int M>
static void compose_all(const Integers& w, const float* codebook, const float* integers, int64_t count,
                        float* y) {
    constexpr int AT_ONCE = 4;
    const int64_t stride = w.padded_rank;
    int64_t n = 0;
    for (; n + AT_ONCE <= count; n += AT_ONCE)
        compose<AT_ONCE, M>(w, codebook, integers + n * stride, stride, y + n * w.inputs);
    for (; n < count; ++n) compose<1, M>(w, codebook, integers + n * stride, stride, y + n * w.inputs);
}

static void pick(const Integers& w, const int64_t* index, int64_t count, float* y, char* workspace) {
    constexpr int NUMBERS = 3;  // of a tile, whose rows of the codebook are converted once
    auto* codebook = reinterpret_cast<float*>(workspace);
    float *tiles = codebook + NUMBERS * w.padded_rank, *rows = tiles + count * w.padded_rank;
    std::memset(tiles, 0, count * w.padded_rank * sizeof(float));
    for (int64_t n = 0; n < count; ++n) unpack_row(w, index[n], rows + n * w.low_columns());
    for (int64_t t = 0; t < w.tiles; ++t) {
        for (int64_t n = 0; n < count; ++n)
            for (int64_t p = 0; p < w.rank(); ++p)
                tiles[n * w.padded_rank + p] = rows[n * w.low_columns() + w.place(p) + t];
        const int64_t left = w.inputs - t * w.d, size = left < w.d ? left : w.d;
        for (int64_t i = 0; i < size; i += NUMBERS) {
            const int64_t some = size - i < NUMBERS ? size - i : NUMBERS;
            for (int64_t j = 0; j < some * w.padded_rank; j += 8)
                store(codebook + j, eight(w.codebook + i * w.padded_rank + j));
            float* to = y + t * w.d + i;
            if (some == NUMBERS) compose_all<NUMBERS>(w, codebook, tiles, count, to);
            else for (int64_t m = 0; m < some; ++m)
                compose_all<1>(w, codebook + m * w.padded_rank, tiles, count, to + m);
        }
    }
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(integers_, target)
const tersor::IntegerKernels tersor::NAMED(TERSOR_TARGET) = {
    TERSOR_TARGET::round, TERSOR_TARGET::few, TERSOR_TARGET::many, TERSOR_TARGET::unpacked, TERSOR_TARGET::pick};
