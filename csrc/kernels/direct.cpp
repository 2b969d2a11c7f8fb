// SPDX-License-Identifier: Apache-2.0
// Convolutions with a dense weight, compiled once for each instruction set, like integers.cpp, and with the
// same rule: nothing inline of the standard library.
#include "lanes.hpp"

namespace TERSOR_TARGET {

// ---- Winograd's algorithm (Lavin and Gray, 2016, arXiv 1509.09308) ----
// SIZE x SIZE pixels of a 3 x 3 window at once, from (SIZE + 2)^2 inputs, transformed, by as many products.

#define ALWAYS inline __attribute__((always_inline))

constexpr int P = PANEL;

// Pixels of 8 N tiles.
template <int N>
struct Pixels {
    Eight of[N];
};
template <int N>
static inline Pixels<N> operator+(Pixels<N> a, const Pixels<N>& b) {
    for (int i = 0; i < N; ++i) a.of[i] += b.of[i];
    return a;
}
template <int N>
static inline Pixels<N> operator-(Pixels<N> a, const Pixels<N>& b) {
    for (int i = 0; i < N; ++i) a.of[i] -= b.of[i];
    return a;
}
template <int N>
static inline Pixels<N> operator*(float a, Pixels<N> b) {
    for (int i = 0; i < N; ++i) b.of[i] *= a;
    return b;
}

// Of a row of inputs.
template <int N>
static ALWAYS void forth(const Pixels<N>* d, Pixels<N>* t, int step, Vector<int, 4>*) {
    t[0] = d[0] - d[2];
    t[step] = d[1] + d[2];
    t[2 * step] = d[2] - d[1];
    t[3 * step] = d[1] - d[3];
}
template <int N>
static ALWAYS void forth(const Pixels<N>* d, Pixels<N>* t, int step, Vector<int, 8>*) {
    const auto even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    const auto near = d[4] - d[2], far = 2 * (d[3] - d[1]);
    t[0] = 4 * d[0] - 5 * d[2] + d[4];
    t[step] = even + odd;
    t[2 * step] = even - odd;
    t[3 * step] = near + far;
    t[4 * step] = near - far;
    t[5 * step] = 4 * d[1] - 5 * d[3] + d[5];
}

// Of a row of products.
template <int N>
static ALWAYS void back(const Pixels<N>* m, Pixels<N>* t, int step, Vector<int, 4>*) {
    t[0] = m[0] + m[1] + m[2];
    t[step] = m[1] - m[2] - m[3];
}
template <int N>
static ALWAYS void back(const Pixels<N>* m, Pixels<N>* t, int step, Vector<int, 8>*) {
    const auto near = m[1] + m[2], far = m[3] + m[4], less = m[1] - m[2], more = m[3] - m[4];
    t[0] = m[0] + near + far;
    t[step] = less + 2 * more;
    t[2 * step] = near + 4 * far;
    t[3 * step] = less + 8 * more + m[5];
}
template <int SIZE>
using Of = Vector<int, SIZE == 2 ? 4 : 8>*;  // tells the above apart

// All tiles of a channel: to + i * step is the i-th number of each.
template <int SIZE, int N, bool SIMPLE>
static void transform(const Window& s, const Lanes<8 * N>& lanes, const float* x, float* to, int64_t step) {
    constexpr int ALL = SIZE + 2;
    Pixels<N> t[ALL][ALL], d[ALL], u[ALL];
    for (int i = 0; i < ALL; ++i) {
        for (int j = 0; j < ALL; ++j) {
            const float* from = x + (i % SIZE * ALL + j) * (s.oh + 1) * s.ow + i / SIZE * s.ow;
            if (SIMPLE) {
                d[j] = load<Pixels<N>>(from + lanes.in[0].from);
            } else {
                float found[8 * N];
                gather(lanes, from, found);
                d[j] = load<Pixels<N>>(found);
            }
        }
        forth(d, t[i], 1, Of<SIZE>{});
    }
    for (int j = 0; j < ALL; ++j) {
        for (int i = 0; i < ALL; ++i) d[i] = t[i][j];
        forth(d, u, 1, Of<SIZE>{});
        for (int i = 0; i < ALL; ++i) store(to + (i * ALL + j) * step, u[i]);
    }
}

template <int SIZE, int N>
static ALWAYS void back(const Pixels<N>* m, float bias, float* out) {
    constexpr int ALL = SIZE + 2;
    Pixels<N> t[SIZE][ALL], column[ALL], o[SIZE];
    for (int j = 0; j < ALL; ++j) {
        for (int i = 0; i < ALL; ++i) column[i] = m[i * ALL + j];
        back(column, o, 1, Of<SIZE>{});
        for (int i = 0; i < SIZE; ++i) t[i][j] = o[i];
    }
    for (int i = 0; i < SIZE; ++i) {
        back(t[i], o, 1, Of<SIZE>{});
        for (int j = 0; j < SIZE; ++j, out += 8 * N)
            for (int n = 0; n < N; ++n) store(out + 8 * n, o[j].of[n] + bias);
    }
}

// A panel times (inputs, 8 N), to rows of a product that are `step` apart.
template <int N>
static inline void multiply(const float* panel, const float* strip, int64_t inputs, Pixels<N>* to, int step) {
    Pixels<N> sums[P] = {};
    for (int64_t i = 0; i < inputs; ++i, panel += P, strip += 8 * N) {
        Eight in[N];
        for (int n = 0; n < N; ++n) in[n] = load<Eight>(strip + 8 * n);
        for (int r = 0; r < P; ++r)
            for (int n = 0; n < N; ++n) sums[r].of[n] += in[n] * panel[r];
    }
    for (int r = 0; r < P; ++r) to[r * step] = sums[r];
}

template <int SIZE, int N>
static void tiles_of(const Window& s, int64_t rows, const float* panels, const float* x, int64_t first,
                     const float* bias, float* y, int64_t oh, int64_t ow, float* workspace) {
    constexpr int ALL = (SIZE + 2) * (SIZE + 2), STRIP = 8 * N;
    const int64_t step = winograd_step(s.c, STRIP), all = (rows + P - 1) / P * P * s.c;
    const int64_t channel = SIZE * (SIZE + 2) * (s.oh + 1) * s.ow;
    Lanes<STRIP> lanes;
    find(s, s.c * channel, s.ow, rows, first, lanes);
    const bool simple = lanes.ins == 1;  // what lanes have that are not there does not matter
    const auto transformed = simple ? transform<SIZE, N, true> : transform<SIZE, N, false>;
    for (int64_t c = 0; c < s.c; ++c)
        transformed(s, lanes, x + c * channel, workspace + c * STRIP, step);
    int64_t to[STRIP];
    int wide[STRIP], high[STRIP];
    for (int lane = 0; lane < lanes.count; ++lane) {
        const int64_t tile = (first + lane) % (s.oh * s.ow);
        const int64_t ty = tile / s.ow * SIZE, tx = tile % s.ow * SIZE;
        to[lane] = lanes.image[lane] * rows * oh * ow + ty * ow + tx;
        wide[lane] = ow - tx < SIZE ? ow - tx : SIZE;
        high[lane] = oh - ty < SIZE ? oh - ty : SIZE;
    }
    for (int64_t r0 = 0; r0 < rows; r0 += P, panels += P * s.c) {
        Pixels<N> sums[P][ALL];
        for (int i = 0; i < ALL; ++i)
            multiply(panels + i * all, workspace + i * step, s.c, &sums[0][i], ALL);
        for (int r = 0; r < P && r0 + r < rows; ++r) {
            float out[SIZE * SIZE * STRIP];
            back<SIZE, N>(sums[r], bias ? bias[r0 + r] : 0, out);
            for (int lane = 0; lane < lanes.count; ++lane) {
                float* pixel = y + (r0 + r) * oh * ow + to[lane];
                if (high[lane] == SIZE && wide[lane] == SIZE) {
                    for (int i = 0; i < SIZE; ++i, pixel += ow)
                        for (int j = 0; j < SIZE; ++j) pixel[j] = out[(i * SIZE + j) * STRIP + lane];
                    continue;
                }
                for (int i = 0; i < high[lane]; ++i, pixel += ow)
                    for (int j = 0; j < wide[lane]; ++j) pixel[j] = out[(i * SIZE + j) * STRIP + lane];
            }
        }
    }
}

static void winograd(const Window& s, int64_t size, int64_t rows, const float* panels, const float* x,
                     int64_t first, const float* bias, float* y, int64_t oh, int64_t ow, float* workspace) {
    const bool few = s.pixels() - first <= 8;
    const auto of = size == 2 ? (few ? tiles_of<2, 1> : tiles_of<2, 2>) : few ? tiles_of<4, 1> : tiles_of<4, 2>;
    of(s, rows, panels, x, first, bias, y, oh, ow, workspace);
}

// ---- one channel alone ----

template <int STRIDE>
static inline Eight every(const float* from) {
    const Eight a = load<Eight>(from);
    if (STRIDE == 1) return a;
    return __builtin_shufflevector(a, load<Eight>(from + 7), 0, 2, 4, 6, 9, 11, 13, 15);
}

static float alone(const Window& s, const float* x, const float* weight) {
    float sum = 0;
    for (int64_t ky = 0; ky < s.kernel_h; ++ky)
        for (int64_t kx = 0; kx < s.kernel_w; ++kx)
            sum += weight[ky * s.kernel_w + kx] * x[ky * s.dilation_h * s.padded_w() + kx * s.dilation_w];
    return sum;
}

// Eight pixels at once of ROWS rows; SIZE is that of the window, stored row after row.
template <int STRIDE, int SIZE, int ROWS>
static inline void block(const float* x, int64_t row, const Eight* weight, float bias, float* y, int64_t ow) {
    Eight sums[ROWS];
    for (int r = 0; r < ROWS; ++r) sums[r] = bias - Eight{};
    for (int i = 0; i < (ROWS - 1) * STRIDE + SIZE; ++i)
        for (int kx = 0; kx < SIZE; ++kx) {
            const Eight in = every<STRIDE>(x + i * row + kx);
            for (int r = 0; r < ROWS; ++r)
                if (i - r * STRIDE >= 0 && i - r * STRIDE < SIZE)
                    sums[r] += in * weight[(i - r * STRIDE) * SIZE + kx];
        }
    for (int r = 0; r < ROWS; ++r) store(y + r * ow, sums[r]);
}

template <int STRIDE, int SIZE, int ROWS>
static void rows_of(const Window& s, const float* x, const Eight* weight, float bias, float* y) {
    const int64_t row = s.padded_w();
    for (int64_t ox = 0; ox < s.ow; ox += 8) {
        const int64_t at = ox + 8 <= s.ow ? ox : s.ow - 8;  // some again, at the end
        block<STRIDE, SIZE, ROWS>(x + at * STRIDE, row, weight, bias, y + at, s.ow);
    }
}

template <int STRIDE, int SIZE>
static void squares(const Window& s, const float* x, const float* weight, float bias, float* y) {
    Eight splat[SIZE * SIZE];
    for (int i = 0; i < SIZE * SIZE; ++i) splat[i] = weight[i] - Eight{};
    const int64_t row = s.padded_w() * STRIDE;
    int64_t oy = 0;
    for (; oy + 2 <= s.oh; oy += 2) rows_of<STRIDE, SIZE, 2>(s, x + oy * row, splat, bias, y + oy * s.ow);
    if (oy < s.oh) rows_of<STRIDE, SIZE, 1>(s, x + oy * row, splat, bias, y + oy * s.ow);
}

static void depthwise(const Window& s, const float* x, const float* weight, float bias, float* y) {
    const bool square = s.kernel_h == s.kernel_w && s.stride_h == s.stride_w && s.ow >= 8;
    if (square && s.dilation_h == 1 && s.dilation_w == 1) {
        if (s.kernel_h == 3 && s.stride_h == 1) return squares<1, 3>(s, x, weight, bias, y);
        if (s.kernel_h == 3 && s.stride_h == 2) return squares<2, 3>(s, x, weight, bias, y);
        if (s.kernel_h == 5 && s.stride_h == 1) return squares<1, 5>(s, x, weight, bias, y);
        if (s.kernel_h == 5 && s.stride_h == 2) return squares<2, 5>(s, x, weight, bias, y);
    }
    for (int64_t oy = 0; oy < s.oh; ++oy)
        for (int64_t ox = 0; ox < s.ow; ++ox)
            *y++ = alone(s, x + oy * s.stride_h * s.padded_w() + ox * s.stride_w, weight) + bias;
}

// ---- all channels of a pixel, side by side ----

constexpr int PIXELS = DepthwiseLast::PIXELS;

// Channels c to c + 8 N of as many pixels.
template <int N>
static inline void windows(const float* const* seen, int64_t taps, int64_t channels, const float* weight,
                           const float* bias, int64_t c, float* const* y) {
    Eight sums[PIXELS][N];
    for (int p = 0; p < PIXELS; ++p)
        for (int n = 0; n < N; ++n) sums[p][n] = bias ? load<Eight>(bias + c + 8 * n) : Eight{};
    for (int64_t tap = 0; tap < taps; ++tap, seen += PIXELS, weight += channels) {
        Eight some[N];
        for (int n = 0; n < N; ++n) some[n] = load<Eight>(weight + c + 8 * n);
        for (int p = 0; p < PIXELS; ++p)
            for (int n = 0; n < N; ++n) sums[p][n] += load<Eight>(seen[p] + c + 8 * n) * some[n];
    }
    for (int p = 0; p < PIXELS; ++p)
        for (int n = 0; n < N; ++n) store(y[p] + c + 8 * n, sums[p][n]);
}

static void depthwise_last(const Window& s, const float* image, const float* weight, const float* bias,
                           int64_t oy, float* y, char* memory) {
    const DepthwiseLast room(s, memory);
    const int64_t taps = s.kernel_h * s.kernel_w;
    for (int64_t ox = 0; ox < s.ow; ox += PIXELS) {
        float* to[PIXELS];
        for (int p = 0; p < PIXELS; ++p) {
            to[p] = ox + p < s.ow ? y + (ox + p) * s.c : room.spare;
            const int64_t left = (ox + p) * s.stride_w - s.left;
            const float** seen = room.seen + p;
            for (int64_t ky = 0; ky < s.kernel_h; ++ky)
                for (int64_t kx = 0; kx < s.kernel_w; ++kx, seen += PIXELS) {
                    const int64_t iy = oy * s.stride_h - s.top + ky * s.dilation_h, ix = left + kx * s.dilation_w;
                    const bool inside = 0 <= iy && iy < s.h && 0 <= ix && ix < s.w;
                    *seen = inside ? image + (iy * s.w + ix) * s.c : room.zeros;
                }
        }
        int64_t c = 0;
        for (; c + 16 <= s.c; c += 16) windows<2>(room.seen, taps, s.c, weight, bias, c, to);
        for (; c + 8 <= s.c; c += 8) windows<1>(room.seen, taps, s.c, weight, bias, c, to);
        for (; c < s.c; ++c)
            for (int p = 0; p < PIXELS; ++p) {
                float sum = bias ? bias[c] : 0;
                for (int64_t tap = 0; tap < taps; ++tap) sum += room.seen[tap * PIXELS + p][c] * weight[tap * s.c + c];
                to[p][c] = sum;
            }
    }
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(direct_, target)
const tersor::DirectKernels tersor::NAMED(TERSOR_TARGET) = {TERSOR_TARGET::winograd, TERSOR_TARGET::depthwise,
                                                             TERSOR_TARGET::depthwise_last};
