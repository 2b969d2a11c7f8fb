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

static void transform(const Integers& w, const float* x, float* u) {
    std::memset(u, 0, w.columns() * sizeof(float));
    const int64_t rank = w.wide_rank + w.narrow_rank;
    if (rank == 1 && w.d == 1) {
        for (int64_t t = 0; t < w.tiles; ++t) u[w.place(0) + t] = w.codebook[0] * x[t];
        return;
    }
    for (int64_t p = 0; p < rank; p += 8) {
        float* to[8];
        const int64_t some = rank - p < 8 ? rank - p : 8;
        for (int64_t i = 0; i < some; ++i) to[i] = u + w.place(p + i);
        for (int64_t t = 0; t < w.tiles; ++t) {
            const int64_t left = w.inputs - t * w.d, size = left < w.d ? left : w.d;
            const float *in = x + t * w.d, *column = w.codebook + p;
            Eight even{}, odd{};
            int64_t i = 0;
            for (; i + 1 < size; i += 2, column += 2 * w.padded_rank) {
                even += in[i] * load<Eight>(column);
                odd += in[i + 1] * load<Eight>(column + w.padded_rank);
            }
            if (i < size) even += in[i] * load<Eight>(column);
            even += odd;
            for (int64_t j = 0; j < some; ++j) to[j][t] = even[j];
        }
    }
}

constexpr float TINY = 1e-30f;  // a largest input below it counts as zero: its inverse would overflow

static inline Eight larger(Eight most, Eight v) {
    v = (Eight)((Vector<uint32_t, 8>)v & 0x7fffffffu);
    return v > most ? v : most;
}

static float largest(const float* u) {
    Eight most{};
    for (int64_t i = 0; i < GROUP; i += 8) most = larger(most, load<Eight>(u + i));
    float found = 0;
    for (int i = 0; i < 8; ++i) found = most[i] > found ? most[i] : found;
    return found;
}

static void round(const Integers& w, const float* x, const Rounded& u) {
    transform(w, x, u.real);
    float offset = 0;
    for (int64_t g = 0; g < w.columns() / GROUP; ++g) {
        const float most = largest(u.real + g * GROUP), inverse = most > TINY ? 127 / most : 0;
        Vector<int32_t, 8> sums{};
        Eight nothing{};  // NaN if an input is infinite or NaN
        for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i += 8) {
            const auto q = (Vector<int32_t, 8>)(load<Eight>(u.real + i) * inverse + MAGIC) - 0x4b400000;
            sums += q;
            nothing += load<Eight>(u.real + i) * 0.f;
            store(u.bytes + i, __builtin_convertvector(q, Vector<int8_t, 8>));
        }
        int32_t sum = 0;
        for (int i = 0; i < 8; ++i) sum += sums[i], offset += nothing[i];
        u.scales[g] = most / 127;
        offset += u.scales[g] * (g * GROUP < w.wide ? 8 : 1) * sum;
    }
    *u.offset = offset;
}

// ---- few inputs: products of bytes ----

constexpr int AHEAD = 1536;  // bytes to fetch before they are needed
constexpr int PARTS = 64 / WIDTH;  // registers of 16 rows

template <int N, int TILES>
struct Sums {
    Floats of[TILES][N][PARTS] = {};
};

// Adds a group of inputs, for tiles of 16 rows whose codes are `apart`.
template <int BITS, int N, int TILES>
static inline void add_group(const uint8_t* codes, int64_t apart, int64_t group, const Rounded* u,
                             Sums<N, TILES>& sums) {
    constexpr int EACH = 8 / BITS, QUADS = 16 / EACH;  // integers of a byte; 64 bytes of a group
    Ints total[TILES][N][PARTS] = {};
    for (int half = 0; half < QUADS / 4; ++half) {
        Partial part[TILES][N][PARTS] = {};
#pragma GCC unroll 1
        for (int quad = 0; quad < 4; ++quad, codes += 64) {
            const int64_t at = group * GROUP + (half * 4 + quad) * 4 * EACH;
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

// Columns of escapes are counted without padding.
static inline int64_t padded_column(const Integers& w, int64_t column) {
    const int64_t wide = w.wide_rank * w.tiles;
    return column < wide ? column : column - wide + w.wide;
}

static float of_escapes(const Integers& w, const float* u, int64_t row) {
    float sum = 0;
    for (int32_t e = w.starts[row]; e < w.starts[row + 1]; ++e)
        sum += (w.escapes[e] >> 19) * u[padded_column(w, w.escapes[e] & 0x7ffff)];
    return sum;
}

// So many tiles of 16 rows side by side: memory is faster where it is read at several places.
template <int N, int TILES>
static void add_tiles(const Integers& w, const Rounded* u, const float* bias, float* y, int64_t tile) {
    const int64_t apart = 16 * w.row_bytes(), wide = w.wide / GROUP, groups = w.columns() / GROUP;
    const uint8_t* codes = w.codes + tile * apart;
    Sums<N, TILES> sums;
    for (int64_t g = 0; g < wide; ++g, codes += 512) add_group<4>(codes, apart, g, u, sums);
    for (int64_t g = wide; g < groups; ++g, codes += 256) add_group<2>(codes, apart, g, u, sums);
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

static void gather(const Integers& w, const float* x, int64_t count, Reals* to, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        float lanes[MANY] = {};
        for (int64_t n = 0; n < count; ++n) lanes[n] = x[n * w.inputs + i];
        std::memcpy(to + i, lanes, sizeof lanes);
    }
}

static void transform_many(const Integers& w, const float* x, int64_t count, Reals* u, Reals* tile) {
    std::memset(u, 0, w.columns() * sizeof(Reals));
    for (int64_t t = 0; t < w.tiles; ++t) {
        const int64_t left = w.inputs - t * w.d, size = left < w.d ? left : w.d;
        gather(w, x + t * w.d, count, tile, size);
        for (int64_t p = 0; p < w.wide_rank + w.narrow_rank; ++p) {
            Reals sum{};
            for (int64_t i = 0; i < size; ++i)
                add_product(sum, tile[i], splat(w.codebook[i * w.padded_rank + p]));
            u[w.place(p) + t] = sum;
        }
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
    for (int z = 0; z < 16; ++z) table[z] = (int16_t)(z / 4 - 1) * u[4] + (int16_t)(z % 4 - 1) * u[0];
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

static void add_escapes(const Integers& w, const Reals* u, int64_t row, Reals& sum) {
    for (int32_t e = w.starts[row]; e < w.starts[row + 1]; ++e)
        add_product(sum, u[padded_column(w, w.escapes[e] & 0x7ffff)], splat(w.escapes[e] >> 19));
}

static void many(const Integers& w, const float* x, int64_t count, const float* bias, float* y,
                 int64_t first, int64_t last, char* workspace) {
    auto* tables = reinterpret_cast<Sixteen*>(workspace);
    auto* rounded = tables + 16 * TABLE;
    auto* u = reinterpret_cast<Reals*>(rounded + 64);
    auto* sums = u + w.columns();
    transform_many(w, x, count, u, sums);
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
        add_escapes(w, u, row, sums[row - first * 16]);
        const auto* sum = reinterpret_cast<const float*>(sums + row - first * 16);
        for (int64_t n = 0; n < count; ++n) y[n * w.rows + row] = sum[n] + (bias ? bias[row] : 0);
    }
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(integers_, target)
const tersor::IntegerKernels tersor::NAMED(TERSOR_TARGET) = {TERSOR_TARGET::round, TERSOR_TARGET::few,
                                                             TERSOR_TARGET::many};
