#include "lookup.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors wider than the machine's stay within this file
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own header for AVX-512
#endif

namespace tersor::lookup {
namespace {

// GCC and Clang compile operators on these to whatever the machine has.
typedef float Floats __attribute__((vector_size(32)));
typedef int16_t Many __attribute__((vector_size(32)));  // LANES of them

constexpr int64_t AHEAD = 4096;           // bytes that codes are fetched ahead, cold in DRAM 1.4x faster
constexpr float TINY = 1e-35f;            // 127 or 32767 over less may be infinite; taken as zero
constexpr float MAGIC = 1.5f * (1 << 23);
constexpr int MOST = 4095, STEP = 585;    // largest entry of a table of `batched`; MOST / LARGEST

int64_t blocks_per_scale(int64_t most, int64_t pairs) { return std::max<int64_t>(1, most / pairs); }

struct Kernels {
    void (*make_tables)(const Layer&, Matrix<const float>, int64_t, int8_t*, float*);
    void (*look_up)(const Layer&, const int8_t*, const float*, int64_t, Matrix<float>, int64_t, int64_t);
    void (*batched)(const Layer&, Matrix<const float>, int64_t, float*, Matrix<float>, int64_t, int64_t);
};

#define INLINE __attribute__((always_inline)) inline
#define COMMON                                                                                          \
    TARGET INLINE Floats load_floats(const float* p) {                                                  \
        Floats v;                                                                                       \
        std::memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                       \
    }                                                                                                   \
    TARGET INLINE Many load_many(const int16_t* p) {                                                    \
        Many v;                                                                                         \
        std::memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                       \
    }                                                                                                   \
    template <class Number, class Vector>                                                               \
    TARGET INLINE void store(Number* p, const Vector& v) {                                              \
        std::memcpy(p, &v, sizeof v);                                                                   \
    }

#if defined(__x86_64__)
#define WITH_AVX2
namespace avx2 {
#define TARGET __attribute__((target("avx2")))
COMMON
constexpr int64_t WIDTH = 32;
typedef Many Words;
struct Decoded {
    __m256i index, magnitude, sign;
};
TARGET INLINE __m256i load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
TARGET INLINE __m256i repeat(const int8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TARGET INLINE Decoded decode(__m256i codes) {
    return {_mm256_and_si256(codes, _mm256_set1_epi8(15)),
            _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(7)), codes};
}
TARGET INLINE Words product(__m256i table, const Decoded& d) {
    // A code of zero has no sign, and makes the entry zero, which its magnitude would do too.
    const __m256i entry = _mm256_sign_epi8(_mm256_shuffle_epi8(table, d.index), d.sign);
    return reinterpret_cast<Words>(_mm256_maddubs_epi16(d.magnitude, entry));
}
TARGET INLINE void widen(const Many& words, Floats& low, Floats& high) {
    const __m256i w = reinterpret_cast<__m256i>(words);
    low = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(w)));
    high = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(w, 1)));
}
TARGET INLINE void add_scaled(float* y, const Words& words, float scale) {
    Floats low, high;
    widen(words, low, high);
    store(y, load_floats(y) + low * scale);
    store(y + 8, load_floats(y + 8) + high * scale);
}
constexpr int64_t HALVES = 32;
struct Halves {
    __m256i low, high;
};
// Sums of rows 0 to 7 and 16 to 23, and of the others, as unpacking leaves them.
struct Signed {
    Words first, second;
};
TARGET INLINE Halves split(const uint8_t* codes) {
    const __m256i both = load(codes), mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}
TARGET INLINE void add_halves(Signed& sum, const int8_t* low, const int8_t* high, const Halves& halves) {
    const __m256i ones = _mm256_set1_epi8(1), a = _mm256_shuffle_epi8(repeat(low), halves.low),
                  b = _mm256_shuffle_epi8(repeat(high), halves.high);
    sum.first += reinterpret_cast<Words>(_mm256_maddubs_epi16(ones, _mm256_unpacklo_epi8(a, b)));
    sum.second += reinterpret_cast<Words>(_mm256_maddubs_epi16(ones, _mm256_unpackhi_epi8(a, b)));
}
TARGET INLINE void add_scaled(float* y, const Signed& sum, float scale) {
    Floats a, b, c, d;
    widen(sum.first, a, c);
    widen(sum.second, b, d);
    store(y, load_floats(y) + a * scale);
    store(y + 8, load_floats(y + 8) + b * scale);
    store(y + 16, load_floats(y + 16) + c * scale);
    store(y + 24, load_floats(y + 24) + d * scale);
}
TARGET INLINE Many scaled(const Many& words, int16_t number) {
    return reinterpret_cast<Many>(
        _mm256_mulhrs_epi16(reinterpret_cast<__m256i>(words), _mm256_set1_epi16(number)));
}
#define SHARED_WIDEN                                                                                    \
    TARGET INLINE void add_scaled_lanes(float* y, const Many& words, const Floats& s, const Floats& t) { \
        Floats low, high;                                                                               \
        widen(words, low, high);                                                                        \
        store(y, load_floats(y) + low * s);                                                             \
        store(y + 8, load_floats(y + 8) + high * t);                                                    \
    }
SHARED_WIDEN
#include "lookup_body.hpp"
#undef TARGET
}  // namespace avx2

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx2")))
COMMON
using avx2::add_halves;
using avx2::add_scaled;
using avx2::Halves;
using avx2::HALVES;
using avx2::scaled;
using avx2::Signed;
using avx2::split;
using avx2::widen;
SHARED_WIDEN
constexpr int64_t WIDTH = 64;
typedef int16_t Words __attribute__((vector_size(64)));
struct Decoded {
    __m512i index, magnitude;
    __mmask64 negative;
};
TARGET INLINE __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }
TARGET INLINE __m512i repeat(const int8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TARGET INLINE Decoded decode(__m512i codes) {
    return {_mm512_and_si512(codes, _mm512_set1_epi8(15)),
            _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(7)),
            _mm512_movepi8_mask(codes)};
}
TARGET INLINE Words product(__m512i table, const Decoded& d) {
    const __m512i entry = _mm512_shuffle_epi8(table, d.index);
    return reinterpret_cast<Words>(_mm512_maddubs_epi16(
        d.magnitude, _mm512_mask_sub_epi8(entry, d.negative, _mm512_setzero_si512(), entry)));
}
TARGET INLINE void add_scaled(float* y, const Words& words, float scale) {
    const __m512i w = reinterpret_cast<__m512i>(words);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(w)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(w, 1)));
    const __m512 s = _mm512_set1_ps(scale);
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_mul_ps(low, s), _mm512_loadu_ps(y)));
    _mm512_storeu_ps(y + 16, _mm512_add_ps(_mm512_mul_ps(high, s), _mm512_loadu_ps(y + 16)));
}
#include "lookup_body.hpp"
#undef TARGET
}  // namespace avx512
#endif

namespace portable {
#define TARGET
COMMON
constexpr int64_t WIDTH = 16;
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Words __attribute__((vector_size(16)));
TARGET INLINE Bytes load(const void* p) {
    Bytes v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
TARGET INLINE Bytes repeat(const int8_t* p) { return load(p); }
struct Decoded {
    Bytes index, value;
};
TARGET INLINE Decoded decode(Bytes codes) {
    const Bytes magnitude = (codes >> 4) & 7, negative = codes >> 7;
    return {codes & 15, (magnitude ^ negative) - negative};
}
#if defined(__aarch64__)
TARGET INLINE Bytes pick(Bytes table, Bytes index) {
    return (Bytes)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)index);
}
TARGET INLINE void widen(Bytes bytes, Words& low, Words& high) {
    low = (Words)vmovl_s8(vget_low_s8((int8x16_t)bytes));
    high = (Words)vmovl_high_s8((int8x16_t)bytes);
}
TARGET INLINE Words product(Bytes table, const Decoded& d) {
    const int8x16_t entry = (int8x16_t)pick(table, d.index), value = (int8x16_t)d.value;
    return (Words)vpaddq_s16(vmull_s8(vget_low_s8(entry), vget_low_s8(value)), vmull_high_s8(entry, value));
}
TARGET INLINE Many scaled(const Many& words, int16_t number) {
    Many result;
    for (int h = 0; h < 2; ++h) {
        int16x8_t half;
        std::memcpy(&half, reinterpret_cast<const char*>(&words) + 16 * h, 16);
        half = vqrdmulhq_n_s16(half, number);
        std::memcpy(reinterpret_cast<char*>(&result) + 16 * h, &half, 16);
    }
    return result;
}
#else
TARGET INLINE Bytes pick(Bytes table, Bytes index) {
    Bytes result;
    for (int i = 0; i < 16; ++i) result[i] = table[index[i]];
    return result;
}
TARGET INLINE void widen(Bytes bytes, Words& low, Words& high) {
    for (int i = 0; i < 8; ++i) low[i] = bytes[i], high[i] = bytes[8 + i];
}
TARGET INLINE Words product(Bytes table, const Decoded& d) {
    Words result;
    for (int i = 0; i < 8; ++i)
        result[i] = static_cast<int16_t>(table[d.index[2 * i]] * d.value[2 * i] +
                                         table[d.index[2 * i + 1]] * d.value[2 * i + 1]);
    return result;
}
TARGET INLINE Many scaled(const Many& words, int16_t number) {
    Many result;
    for (int i = 0; i < LANES; ++i)
        result[i] = static_cast<int16_t>((words[i] * number + (1 << 14)) >> 15);
    return result;
}
#endif
TARGET INLINE void add_scaled(float* y, const Words& words, float scale) {
    const Floats sums = __builtin_convertvector(words, Floats);
    store(y, load_floats(y) + sums * scale);
}
constexpr int64_t HALVES = 16;
struct Halves {
    Bytes low, high;
};
struct Signed {
    Words first, second;
};
TARGET INLINE Halves split(const uint8_t* codes) {
    const Bytes both = load(codes);
    return {both & 15, (both >> 4) & 15};
}
TARGET INLINE void add_halves(Signed& sum, const int8_t* low, const int8_t* high, const Halves& halves) {
    const Bytes a = pick(load(low), halves.low), b = pick(load(high), halves.high);
    Words first[2], second[2];
    widen(a, first[0], first[1]);
    widen(b, second[0], second[1]);
    sum.first += first[0] + second[0];
    sum.second += first[1] + second[1];
}
TARGET INLINE void add_scaled(float* y, const Signed& sum, float scale) {
    add_scaled(y, sum.first, scale);
    add_scaled(y + 8, sum.second, scale);
}
TARGET INLINE void add_scaled_lanes(float* y, const Many& words, const Floats& low, const Floats& high) {
    Words halves[2];
    std::memcpy(halves, &words, sizeof words);
    store(y, load_floats(y) + __builtin_convertvector(halves[0], Floats) * low);
    store(y + 8, load_floats(y + 8) + __builtin_convertvector(halves[1], Floats) * high);
}
#include "lookup_body.hpp"
#undef TARGET
}  // namespace portable

struct Choice {
    const char* name;
    const Kernels* kernels;
};

std::vector<Choice> choices() {
    std::vector<Choice> known;
    known.reserve(3);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw"))
        known.push_back({"avx512", &avx512::kernels});
    if (__builtin_cpu_supports("avx2"))
        known.push_back({"avx2", &avx2::kernels});
#endif
    known.push_back({"portable", &portable::kernels});
    return known;
}

Choice chosen = choices().front();

// f(first, last) on parts of the panels, side by side; a thread is worth it from so many bytes of codes.
constexpr int64_t WORTH = 1 << 18;

template <class Function>
void in_threads(const Layer& layer, int64_t work, int threads, Function f) {
    const int64_t panels = layer.panels(), worth = work * panels * layer.panel_bytes() / WORTH;
    const int64_t parts = std::max<int64_t>(1, std::min({int64_t{threads}, worth, panels}));
    std::vector<std::thread> others;
    for (int64_t i = 1; i < parts; ++i)
        others.emplace_back(f, panels * i / parts, panels * (i + 1) / parts);
    f(0, panels / parts);
    for (std::thread& other : others) other.join();
}

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t table_bytes(const Layer& layer) { return padded(layer.blocks() * layer.tables() * FEW * 16); }

}  // namespace

// Bytes of one tile, whose latent has entries `next` apart.
static bool pack_nonzeros(const int16_t* latent, int64_t next, int64_t atoms, int64_t pairs, uint8_t* code) {
    int64_t count = 0;
    for (int64_t j = 0; j < atoms; ++j) {
        const int value = latent[j * next];
        if (!value) continue;
        if (std::abs(value) > LARGEST || count == 2 * pairs) return false;
        code[count / 2 * 2 * PANEL + count % 2] =
            static_cast<uint8_t>((value < 0 ? 128 : 0) | std::abs(value) << 4 | j);
        ++count;
    }
    return true;
}

static bool pack_signs(const int16_t* latent, int64_t next, int64_t atoms, uint8_t* code) {
    for (int64_t j = 0; j < atoms; ++j) {
        const int value = latent[j * next];
        if (value != 1 && value != -1) return false;
        code[j / 8 * PANEL] |= static_cast<uint8_t>((value < 0) << j % 8);
    }
    return true;
}

static bool pack_panels(const int16_t* latent, int64_t atoms, const Layer& layer, uint8_t* codes,
                        int64_t first, int64_t last) {
    const int64_t blocks = layer.blocks(), columns = layer.rows * blocks, each = 2 * layer.pairs * PANEL;
    std::memset(codes + first * layer.panel_bytes(), 0, (last - first) * layer.panel_bytes());
    for (int64_t r = first * PANEL; r < std::min(last * PANEL, layer.rows); ++r)
        for (int64_t b = 0; b < blocks; ++b) {
            uint8_t* block = codes + r / PANEL * layer.panel_bytes() + b * each;
            const int16_t* column = latent + r * blocks + b;
            const bool fits = layer.signs ? pack_signs(column, columns, atoms, block + r % PANEL)
                                          : pack_nonzeros(column, columns, atoms, layer.pairs, block + r % PANEL * 2);
            if (!fits) return false;
        }
    return true;
}

bool pack(const int16_t* latent, int64_t atoms, const Layer& layer, uint8_t* codes, int threads) {
    if (atoms > layer.atoms() || layer.pairs > MOST_PAIRS) return false;
    std::atomic<bool> fits{true};
    in_threads(layer, 1, threads, [&](int64_t first, int64_t last) {
        if (!pack_panels(latent, atoms, layer, codes, first, last)) fits = false;
    });
    return fits;
}

int64_t working_bytes(const Layer& layer, bool batched) {
    if (batched) return layer.panels() * PANEL * LANES * static_cast<int64_t>(sizeof(float));
    return table_bytes(layer) + layer.blocks() * FEW * static_cast<int64_t>(sizeof(float));
}

void look_up(const Layer& layer, Matrix<const float> x, Matrix<float> y, int64_t batch, void* working,
             int threads) {
    int8_t* tables = static_cast<int8_t*>(working);
    float* scales = reinterpret_cast<float*>(tables + table_bytes(layer));
    for (int64_t start = 0; start < batch; start += FEW) {
        const int64_t items = std::min(FEW, batch - start);
        chosen.kernels->make_tables(layer, x.from(start), items, tables, scales);
        in_threads(layer, 1, threads, [&](int64_t first, int64_t last) {
            chosen.kernels->look_up(layer, tables, scales, items, y.from(start), first, last);
        });
    }
}

void batched(const Layer& layer, Matrix<const float> x, Matrix<float> y, int64_t batch, void* working,
             int threads) {
    float* sums = static_cast<float*>(working);
    in_threads(layer, batch, threads, [&](int64_t first, int64_t last) {
        for (int64_t start = 0; start < batch; start += LANES)
            chosen.kernels->batched(layer, x.from(start), std::min(LANES, batch - start), sums, y.from(start),
                                    first, last);
    });
}

const char* in_use() { return chosen.name; }

bool use(const char* name) {
    for (const Choice& choice : choices())
        if (!std::strcmp(choice.name, name)) {
            chosen = choice;
            return true;
        }
    return false;
}

}  // namespace tersor::lookup
