// Convolutions with a dense weight, compiled once for each instruction set, like integers.cpp, and with the
// same rule: nothing inline of the standard library.
#include "lanes.hpp"

namespace TERSOR_TARGET {

constexpr int P = PANEL;

// A panel times a strip (inputs, STRIP).
struct Product {
    Eight of[P][2];
};
static inline Product multiply(const float* panel, const float* strip, int64_t inputs) {
    Product sum = {};
    for (int64_t i = 0; i < inputs; ++i, panel += P, strip += STRIP) {
        const Eight low = load<Eight>(strip), high = load<Eight>(strip + 8);
        for (int r = 0; r < P; ++r) {
            sum.of[r][0] += low * panel[r];
            sum.of[r][1] += high * panel[r];
        }
    }
    return sum;
}

// ---- Winograd's algorithm (Lavin and Gray, 2016, arXiv 1509.09308): 16 products for 4 pixels ----

struct Pixels {
    Eight low, high;
};
static inline Pixels operator+(const Pixels& a, const Pixels& b) { return {a.low + b.low, a.high + b.high}; }
static inline Pixels operator-(const Pixels& a, const Pixels& b) { return {a.low - b.low, a.high - b.high}; }

static inline Pixels gathered(const Lanes<STRIP>& lanes, const float* x) {
    if (lanes.ins == 1 && lanes.count == STRIP) return load<Pixels>(x + lanes.in[0].from);
    float found[STRIP];
    gather(lanes, x, found);
    return load<Pixels>(found);
}

// Windows of 4 x 4 of a channel, transformed: to + i * step is the i-th number of all.
static void transform(const Lanes<STRIP>& lanes, const float* x, int64_t row, float* to, int64_t step) {
    const int64_t odd = row / 2, column[4] = {0, odd, 1, odd + 1};
    Pixels d[4][4], t[4][4];
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            d[i][j] = gathered(lanes, x + i * row + column[j]);
        }
    for (int j = 0; j < 4; ++j) {
        t[0][j] = d[0][j] - d[2][j];
        t[1][j] = d[1][j] + d[2][j];
        t[2][j] = d[2][j] - d[1][j];
        t[3][j] = d[1][j] - d[3][j];
    }
    for (int i = 0; i < 4; ++i, to += 4 * step) {
        store(to, t[i][0] - t[i][2]);
        store(to + step, t[i][1] + t[i][2]);
        store(to + 2 * step, t[i][2] - t[i][1]);
        store(to + 3 * step, t[i][1] - t[i][3]);
    }
}

// The 2 x 2 pixels that 16 products make.
static inline void back(const Pixels m[16], float bias, float out[2][2][STRIP]) {
    Pixels t[2][4];
    for (int j = 0; j < 4; ++j) {
        t[0][j] = m[j] + m[4 + j] + m[8 + j];
        t[1][j] = m[4 + j] - m[8 + j] - m[12 + j];
    }
    for (int i = 0; i < 2; ++i) {
        const Pixels left = t[i][0] + t[i][1] + t[i][2], right = t[i][1] - t[i][2] - t[i][3];
        store(out[i][0], Pixels{left.low + bias, left.high + bias});
        store(out[i][1], Pixels{right.low + bias, right.high + bias});
    }
}

static void winograd(const Window& s, int64_t rows, const float* panels, const float* x, int64_t first,
                     const float* bias, float* y, int64_t oh, int64_t ow, float* workspace) {
    const int64_t row = s.padded_w(), step = winograd_step(s.c), all = (rows + P - 1) / P * P * s.c;
    Lanes<STRIP> lanes;
    find(s, s.c * s.padded_h() * row, row, rows, first, lanes);
    for (int64_t c = 0; c < s.c; ++c)
        transform(lanes, x + c * s.padded_h() * row, row, workspace + c * STRIP, step);
    int64_t to[STRIP];
    int wide[STRIP], high[STRIP];
    for (int lane = 0; lane < lanes.count; ++lane) {
        const int64_t tile = (first + lane) % (s.oh * s.ow), ty = tile / s.ow * 2, tx = tile % s.ow * 2;
        to[lane] = lanes.image[lane] * rows * oh * ow + ty * ow + tx;
        wide[lane] = tx + 1 < ow;
        high[lane] = ty + 1 < oh;
    }
    for (int64_t r0 = 0; r0 < rows; r0 += P, panels += P * s.c) {
        Product sums[16];
        for (int i = 0; i < 16; ++i) sums[i] = multiply(panels + i * all, workspace + i * step, s.c);
        for (int r = 0; r < P && r0 + r < rows; ++r) {
            Pixels m[16];
            for (int i = 0; i < 16; ++i) m[i] = {sums[i].of[r][0], sums[i].of[r][1]};
            float out[2][2][STRIP];
            back(m, bias ? bias[r0 + r] : 0, out);
            float* of_row = y + (r0 + r) * oh * ow;
            for (int lane = 0; lane < lanes.count; ++lane) {
                float* pixel = of_row + to[lane];
                pixel[0] = out[0][0][lane];
                if (wide[lane]) pixel[1] = out[0][1][lane];
                if (!high[lane]) continue;
                pixel[ow] = out[1][0][lane];
                if (wide[lane]) pixel[ow + 1] = out[1][1][lane];
            }
        }
    }
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

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(direct_, target)
const tersor::DirectKernels tersor::NAMED(TERSOR_TARGET) = {TERSOR_TARGET::winograd, TERSOR_TARGET::depthwise};
