// SPDX-License-Identifier: Apache-2.0
// Compiled once for each instruction set, with TERSOR_TARGET its name: nothing here may be an inline
// function of another namespace, else the linker could choose the copy of the wrong one.
#include "solver.hpp"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace TERSOR_TARGET {

using tersor::Costs;
using tersor::kBlock;
using tersor::kRates;
using tersor::Row;
using tersor::Scratch;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

constexpr int LARGEST = 4095;        // magnitude
constexpr float NONE = __builtin_inff();  // cost of what cannot be
constexpr float MOST = 1e20f;        // largest cost of an element
constexpr float NOWHERE = 1e30f;     // cost of a path that begins in another state
constexpr int64_t PIECE = 256;       // columns that are summed in float32
constexpr int SUMS = 16;             // sums side by side, one for every 16th column

template <int W>
struct Of {
    typedef float Floats __attribute__((vector_size(4 * W)));
    typedef int32_t Ints __attribute__((vector_size(4 * W)));
};
template <int W>
using Floats = typename Of<W>::Floats;
template <int W>
using Ints = typename Of<W>::Ints;

template <class V>
inline V load(const float* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class V>
inline void store(float* to, const V& v) {
    std::memcpy(to, &v, sizeof v);
}
template <class V>
inline V smaller(const V& a, const V& b) {  // b if a number is none
    return a < b ? a : b;
}

// ---------------------------------------------------------------------------------------------
// Candidates: for each element the cheapest magnitude of both parities of its index, on each grid.

// The cheapest near `a`: zero, the index next below, or one of its neighbours. Others are farther
// away and no cheaper. Loops are short and without branches, so that compilers make vectors of them.
template <int grid, bool trellis>
void candidates(const Costs& costs, const Row& row, Scratch& s) {
    constexpr int last = trellis ? (LARGEST + grid) / 2 : LARGEST;
    constexpr float spacing = trellis ? 2.0f : 1.0f, first = trellis ? grid : 0;
    constexpr int64_t SOME = 64;
    const float* bits = &costs.bits[0][0][0] + grid * kRates;
    for (int64_t start = 0; start < row.count; start += SOME) {
        const int count = static_cast<int>(row.count - start < SOME ? row.count - start : SOME);
        float *even = s.costs[2 * grid] + start, *odd = s.costs[2 * grid + 1] + start;
        float *even_value = s.values[2 * grid] + start, *odd_value = s.values[2 * grid + 1] + start;
        float wanted[SOME] = {}, curvature[SOME] = {}, here[SOME], low[SOME], high[SOME], zero[SOME];
        int32_t base[SOME] = {}, shift[SOME] = {}, floor[SOME], at[3][SOME];
        for (int c = 0; c < count; ++c) {
            const int level = row.places[start + c] >> 1;
            base[c] = level * 2 * kRates;
            shift[c] = costs.shift[level];
            wanted[c] = __builtin_fabsf(row.wanted[start + c]);
        }
        if (row.curvature) std::memcpy(curvature, row.curvature + start, count * sizeof(float));
        else for (int c = 0; c < SOME; ++c) curvature[c] = row.own;
        for (int c = 0; c < SOME; ++c) {
            const float a = wanted[c], position = trellis ? (grid ? 0.5f * (a + 1) : 0.5f * a) : a;
            const int f = static_cast<int>(position < last ? position : static_cast<float>(last));
            const int l = f > 0 ? f - 1 : 0, u = f < last ? f + 1 : last;
            const int sf = f >> shift[c], sl = l >> shift[c], su = u >> shift[c];
            floor[c] = f;
            at[0][c] = base[c] + (sf < kRates - 1 ? sf : kRates - 1);
            at[1][c] = base[c] + (sl < kRates - 1 ? sl : kRates - 1);
            at[2][c] = base[c] + (su < kRates - 1 ? su : kRates - 1);
        }
        for (int c = 0; c < SOME; ++c) here[c] = bits[at[0][c]];
        for (int c = 0; c < SOME; ++c) low[c] = bits[at[1][c]];
        for (int c = 0; c < SOME; ++c) high[c] = bits[at[2][c]];
        for (int c = 0; c < SOME; ++c) zero[c] = bits[base[c]];
        float chosen[4][SOME];
        for (int c = 0; c < SOME; ++c) {
            const float a = wanted[c], k = curvature[c], f = static_cast<float>(floor[c]);
            const float l = f > 0 ? f - 1 : 0, u = f < last ? f + 1 : last;
            const float gap = a - (spacing * f - first), gap_l = a - (spacing * l - first);
            const float gap_u = a - (spacing * u - first);
            const float mine = k * gap * gap + here[c], below = k * gap_l * gap_l + low[c];
            const float above = k * gap_u * gap_u + high[c], none = k * a * a + zero[c];
            const float cost = f > 0 ? mine : NONE, cost_l = l > 0 ? below : NONE;
            const float cost_u = u > f ? above : NONE;
            const float other = cost_u < cost_l ? u : l, there = cost_u < cost_l ? cost_u : cost_l;
            const float e = floor[c] & 1 ? there : cost, o = floor[c] & 1 ? cost : there;
            const float ei = floor[c] & 1 ? other : f, oi = floor[c] & 1 ? f : other;
            const float best = e < none ? e : none;
            chosen[0][c] = best < MOST ? best : MOST;
            chosen[1][c] = o < MOST ? o : MOST;
            chosen[2][c] = e < none ? spacing * ei - first : 0.0f;
            chosen[3][c] = spacing * oi - first;
        }
        std::memcpy(even, chosen[0], count * sizeof(float));
        std::memcpy(odd, chosen[1], count * sizeof(float));
        std::memcpy(even_value, chosen[2], count * sizeof(float));
        std::memcpy(odd_value, chosen[3], count * sizeof(float));
    }
}

// ---------------------------------------------------------------------------------------------
// Viterbi search, with the states in lanes.

#if defined(__clang__)
#define TERSOR_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TERSOR_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

template <int... i>
struct Places {};
template <int n, int... i>
struct Upto : Upto<n - 1, n - 1, i...> {};
template <int... i>
struct Upto<0, i...> {
    using type = Places<i...>;
};

// The lanes of one or two vectors, in another order.
template <int W>
struct Lanes {
    using V = Floats<W>;
    using Mask = Ints<W>;
    template <int flip, int... i>
    static V flipped(const V& v, Places<i...>) { return TERSOR_SHUFFLE(v, v, (i ^ flip)...); }
    template <int from, int... i>
    static V zipped(const V& a, const V& b, Places<i...>) {
        return TERSOR_SHUFFLE(a, b, ((i + from) / 2 + (i & 1) * W)...);
    }
    template <int flip>
    static V flip_by(const V& v) {
        if (flip == 0) return v;
        return flipped<flip>(v, typename Upto<W>::type());
    }
    static V zip_low(const V& a, const V& b) { return zipped<0>(a, b, typename Upto<W>::type()); }
    static V zip_high(const V& a, const V& b) { return zipped<W>(a, b, typename Upto<W>::type()); }
    // One bit for each lane whose mask is set.
    static uint32_t bits(const Mask& mask) {
#if defined(__AVX512F__)
        if constexpr (W == 16) return _mm512_movepi32_mask((__m512i)mask);
#endif
#if defined(__AVX2__)
        if constexpr (W == 8) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
        if constexpr (W == 4) return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#elif defined(__aarch64__)
        if constexpr (W == 4) {
            const uint32x4_t weights = {1, 2, 4, 8};
            return vaddvq_u32(vandq_u32((uint32x4_t)mask, weights));
        }
#endif
        uint32_t all = 0;
        for (int i = 0; i < W; ++i) all |= static_cast<uint32_t>(mask[i] & 1) << i;
        return all;
    }
};

// States 0 to H - 1 take even numbers, the others odd ones or zero; j, its parity and the grid decide
// the next state: see `Trellis`.
template <int S, int h0, int h1>
int viterbi(int first, const Row& row, float* z, Scratch& s) {
    constexpr int H = S / 2, W = H < LANES ? H : LANES, R = H / W;
    using L = Lanes<W>;
    using V = Floats<W>;
    float start[S];
    for (int i = 0; i < S; ++i) start[i] = i == first ? 0.0f : NOWHERE;
    V even[R], odd[R];  // costs of the paths to the states of the two grids
    for (int r = 0; r < R; ++r) {
        even[r] = load<V>(start + r * W);
        odd[r] = load<V>(start + H + r * W);
    }
    for (int64_t c = 0; c < row.count; ++c) {
        const float e0 = s.costs[0][c], e1 = s.costs[1][c], o0 = s.costs[2][c], o1 = s.costs[3][c];
        V evens[R], odds[R];
        uint32_t from_even = 0, from_odd = 0;
        for (int r = 0; r < R; ++r) {
            const V a = even[r] + e0;
            const V b = L::template flip_by<h1 & (W - 1)>(even[r ^ (h1 / W)]) + e1;
            const V p = L::template flip_by<h0 & (W - 1)>(odd[r ^ (h0 / W)]) + o0;
            const V q = L::template flip_by<(h0 ^ h1) & (W - 1)>(odd[r ^ ((h0 ^ h1) / W)]) + o1;
            from_even |= L::bits(b < a) << (r * W);
            from_odd |= L::bits(q < p) << (r * W);
            evens[r] = smaller(b, a);
            odds[r] = smaller(q, p);
        }
        s.choices[c][0] = from_even;
        s.choices[c][1] = from_odd;
        for (int r = 0; r < R; ++r) {
            V* const to = 2 * r < R ? even + 2 * r : odd + (2 * r - R);
            if constexpr (R == 1) {
                even[0] = L::zip_low(evens[0], odds[0]);
                odd[0] = L::zip_high(evens[0], odds[0]);
            } else {
                to[0] = L::zip_low(evens[r], odds[r]);
                to[1] = L::zip_high(evens[r], odds[r]);
            }
        }
        if (c % 16 == 15) {  // keeps costs small, for the sake of their precision
            V least = even[0];
            for (int r = 0; r < R; ++r) least = smaller(odd[r], smaller(even[r], least));
            float low = least[0];
            for (int i = 1; i < W; ++i) low = least[i] < low ? least[i] : low;
            for (int r = 0; r < R; ++r) {
                even[r] -= low;
                odd[r] -= low;
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        store(start + r * W, even[r]);
        store(start + H + r * W, odd[r]);
    }
    int state = 0;
    for (int i = 1; i < S; ++i) state = start[i] < start[state] ? i : state;
    const int end = state;
    for (int64_t c = row.count - 1; c >= 0; --c) {
        const int top = state & 1, j = state >> 1, parity = s.choices[c][top] >> j & 1;
        const float value = s.values[2 * top + parity][c];
        z[c] = __builtin_copysignf(value, row.wanted[c]);
        state = (top ? H + (j ^ h0) : j) ^ (parity ? h1 : 0);
    }
    return end;
}

int cheapest(const Costs& costs, const Row& row, int state, float* z, Scratch& s) {
    if (costs.states == 1) {
        candidates<0, false>(costs, row, s);
        for (int64_t c = 0; c < row.count; ++c) {
            const bool is_odd = s.costs[1][c] < s.costs[0][c];
            z[c] = __builtin_copysignf(s.values[is_odd][c], row.wanted[c]);
        }
        return 0;
    }
    candidates<0, true>(costs, row, s);
    candidates<1, true>(costs, row, s);
    switch (costs.states) {  // Ungerboeck's polynomials, as in `Trellis`
        case 4: return viterbi<4, 0, 1>(state, row, z, s);
        case 8: return viterbi<8, 1, 2>(state, row, z, s);
        case 16: return viterbi<16, 1, 2>(state, row, z, s);
        case 32: return viterbi<32, 2, 4>(state, row, z, s);
        default: return viterbi<64, 1, 10>(state, row, z, s);
    }
}

// ---------------------------------------------------------------------------------------------
// Sums. Loops over columns are plain where each column has a sum of its own.

void best_row(const float* target, const float* gram, const float* z, int64_t stride, int64_t r, int64_t k,
              int64_t n, float* __restrict wanted) {
    const float *own = target + r * stride, *g = gram + r * k;
    const float curvature = g[r] > 1e-30f ? g[r] : 1e-30f;
    constexpr int64_t SOME = 256;
    for (int64_t start = 0; start < n; start += SOME) {
        const int64_t end = n - start < SOME ? n : start + SOME;
        for (int64_t c = start; c < end; ++c) wanted[c] = own[c];
        for (int64_t q = 0; q < k; ++q) {
            const float factor = g[q];
            if (q == r || factor == 0) continue;
            const float* other = z + q * stride;
            for (int64_t c = start; c < end; ++c) wanted[c] -= factor * other[c];
        }
        for (int64_t c = start; c < end; ++c) wanted[c] /= curvature;
    }
}

// Sum of 16 numbers, in the order of a tree.
inline float sum_of(float* sums) {
    for (int half = SUMS / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

// Sum of products of two rows, in 16 sums for each piece of columns; a piece begins at a multiple of 16.
inline double sum_of_products(const float* x, const float* y, int64_t n) {
    double total = 0;
    for (int64_t start = 0; start < n; start += PIECE) {
        const int64_t end = n - start < PIECE ? n : start + PIECE, whole = end - (end - start) % SUMS;
        float sums[SUMS] = {};
        for (int64_t c = start; c < whole; c += SUMS)
            for (int i = 0; i < SUMS; ++i) sums[i] += x[c + i] * y[c + i];
        for (int64_t c = whole; c < end; ++c) sums[c - whole] += x[c] * y[c];
        total += sum_of(sums);
    }
    return total;
}

void avoided(const float* target, const float* gram, const float* z, int64_t stride, int64_t k, int64_t n,
             double* sums, Scratch& s) {
    for (int64_t r = 0; r < k; ++r) {
        const float *own = z + r * stride, curvature = gram[r * k + r];
        float* wanted = s.wanted;
        best_row(target, gram, z, stride, r, k, n, wanted);
        // 2 wanted - z, in units of the curvature, is what the row is multiplied with.
        for (int64_t c = 0; c < n; ++c) s.curvature[c] = 2 * wanted[c] - own[c];
        sums[r] += sum_of_products(own, s.curvature, n) * curvature;
    }
}

// A panel of `rows` rows of the result, for a few vectors of columns.
template <int rows, int vectors>
inline void panel(const float* a, const float* b, float* out, int64_t m, int64_t width, int64_t stride,
                  int64_t n) {
    using V = Floats<LANES>;
    V sums[rows][vectors];
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) sums[r][v] = V{};
    for (int64_t i = 0; i < m; ++i)
        for (int v = 0; v < vectors; ++v) {
            const V column = load<V>(b + i * stride + v * LANES);
            for (int r = 0; r < rows; ++r) sums[r][v] += a[i * width + r] * column;
        }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v) store(out + r * n + v * LANES, sums[r][v]);
}

// The same for k rows of the result; rows of a are `width` numbers apart, those of b `stride`.
template <int vectors>
inline void panels(const float* a, const float* b, float* out, int64_t m, int64_t k, int64_t width,
                   int64_t stride, int64_t n) {
    int64_t r = 0;
    for (; r + 4 <= k; r += 4) panel<4, vectors>(a + r, b, out + r * n, m, width, stride, n);
    for (; r < k; ++r) panel<1, vectors>(a + r, b, out + r * n, m, width, stride, n);
}

void product(const float* a, const float* b, float* out, int64_t m, int64_t k, int64_t stride, int64_t n,
             int64_t first, int64_t last) {
    constexpr int MANY = LANES == 16 ? 4 : 2;
    int64_t c = first;
    for (; c + MANY * LANES <= last; c += MANY * LANES) panels<MANY>(a, b + c, out + c, m, k, k, stride, n);
    for (; c + LANES <= last; c += LANES) panels<1>(a, b + c, out + c, m, k, k, stride, n);
    for (; c < last; ++c)
        for (int64_t r = 0; r < k; ++r) {
            float sum = 0;
            for (int64_t i = 0; i < m; ++i) sum += a[i * k + r] * b[i * stride + c];
            out[r * n + c] = sum;
        }
}

// Sums of a piece of columns for some rows of both.
template <int rows, int others>
inline void square(const float* x, const float* y, double* sums, int64_t d, int64_t n, int64_t count) {
    constexpr int VECTORS = SUMS / LANES;
    using V = Floats<LANES>;
    V all[rows][others][VECTORS];
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < others; ++j)
            for (int v = 0; v < VECTORS; ++v) all[i][j][v] = V{};
    const int64_t whole = count - count % SUMS;
    for (int64_t c = 0; c < whole; c += SUMS)
        for (int v = 0; v < VECTORS; ++v) {
            V right[others];
            for (int j = 0; j < others; ++j) right[j] = load<V>(y + j * n + c + v * LANES);
            for (int i = 0; i < rows; ++i) {
                const V left = load<V>(x + i * n + c + v * LANES);
                for (int j = 0; j < others; ++j) all[i][j][v] += left * right[j];
            }
        }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < others; ++j) {
            float lanes[SUMS];
            for (int v = 0; v < VECTORS; ++v) store(lanes + v * LANES, all[i][j][v]);
            for (int64_t c = whole; c < count; ++c) lanes[c - whole] += x[i * n + c] * y[j * n + c];
            sums[i * d + j] += sum_of(lanes);
        }
}

void inner(const float* x, const float* y, double* sums, int64_t k, int64_t d, int64_t n, int64_t first,
           int64_t last) {
    constexpr int E = LANES == 16 ? 4 : 2;
    for (int64_t start = first; start < last; start += PIECE) {
        const int64_t count = last - start < PIECE ? last - start : PIECE;
        const float *xs = x + start, *ys = y + start;
        int64_t i = 0;
        for (; i + E <= k; i += E) {
            int64_t j = 0;
            for (; j + E <= d; j += E) square<E, E>(xs + i * n, ys + j * n, sums + i * d + j, d, n, count);
            for (; j < d; ++j) square<E, 1>(xs + i * n, ys + j * n, sums + i * d + j, d, n, count);
        }
        for (; i < k; ++i) {
            int64_t j = 0;
            for (; j + E <= d; j += E) square<1, E>(xs + i * n, ys + j * n, sums + i * d + j, d, n, count);
            for (; j < d; ++j) square<1, 1>(xs + i * n, ys + j * n, sums + i * d + j, d, n, count);
        }
    }
}

// With the codebook transposed, as the product wants it, and rows of the weight in groups.
double distortion(const float* w, const float* c, const float* z, int64_t d, int64_t k, int64_t n,
                  int64_t first, int64_t last, Scratch& s) {
    constexpr int64_t GROUP = 4 * kBlock / PIECE;
    constexpr int MANY = LANES == 16 ? 4 : 2;
    float* made = &s.costs[0][0];
    double total = 0;
    for (int64_t start = first; start < last; start += PIECE) {
        const int64_t count = last - start < PIECE ? last - start : PIECE;
        for (int64_t top = 0; top < d; top += GROUP) {
            const int64_t rows = d - top < GROUP ? d - top : GROUP;
            int64_t at = 0;
            for (; at + MANY * LANES <= count; at += MANY * LANES)
                panels<MANY>(c + top, z + start + at, made + at, k, rows, d, n, PIECE);
            for (; at + LANES <= count; at += LANES)
                panels<1>(c + top, z + start + at, made + at, k, rows, d, n, PIECE);
            for (; at < count; ++at)
                for (int64_t i = 0; i < rows; ++i) {
                    float sum = 0;
                    for (int64_t q = 0; q < k; ++q) sum += c[q * d + top + i] * z[q * n + start + at];
                    made[i * PIECE + at] = sum;
                }
            for (int64_t i = 0; i < rows; ++i) {
                float* error = made + i * PIECE;
                const float* own = w + (top + i) * n + start;
                for (int64_t e = 0; e < count; ++e) error[e] = own[e] - error[e];
                total += sum_of_products(error, error, count);
            }
        }
    }
    return total;
}

}  // namespace TERSOR_TARGET

#define TERSOR_JOINED(a, b) a##b
#define TERSOR_NAMED(a, b) TERSOR_JOINED(a, b)
#define TERSOR_TEXT(a) #a
#define TERSOR_TEXT_OF(a) TERSOR_TEXT(a)

const tersor::Solver tersor::TERSOR_NAMED(kSolver, TERSOR_TARGET) = {
    TERSOR_TEXT_OF(TERSOR_TARGET), TERSOR_TARGET::cheapest, TERSOR_TARGET::best_row, TERSOR_TARGET::avoided,
    TERSOR_TARGET::product, TERSOR_TARGET::inner, TERSOR_TARGET::distortion};
