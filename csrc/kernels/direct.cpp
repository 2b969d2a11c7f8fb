// Convolutions with a dense weight, compiled once for each instruction set, like integers.cpp, and with the
// same rule: nothing inline of the standard library.
#include "lanes.hpp"

namespace TERSOR_TARGET {

constexpr int P = PANEL;
static_assert(sizeof(Lanes<STRIP>) <= LANES_BYTES, "memory of matrix");

static void pack(const float* weight, int64_t rows, int64_t inputs, float* panels) {
    for (int64_t row = 0; row < rows; row += P, panels += P * inputs)
        for (int r = 0; r < P; ++r)
            for (int64_t i = 0; i < inputs; ++i)
                panels[i * P + r] = row + r < rows ? weight[(row + r) * inputs + i] : 0;
}

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

static void matrix(const Window& s, int64_t rows, const float* panels, const float* x, int64_t first,
                   int64_t strips, const float* bias, float* y, float* workspace) {
    const int64_t inputs = s.c * s.kernel_h * s.kernel_w;
    auto* lanes = reinterpret_cast<Lanes<STRIP>*>(workspace + strips * inputs * STRIP);
    for (int64_t strip = 0; strip < strips; ++strip) {
        lanes[strip] = {};
        find(s, s.c * s.padded_h() * s.padded_w(), s.padded_w(), rows, first + strip * STRIP, lanes[strip]);
        float* to = workspace + strip * inputs * STRIP;
        Input input(s, 0);
        for (int64_t i = 0; i < inputs; ++i, input.next(s))
            gather(lanes[strip], x + input.at(s), to + i * STRIP);
    }
    for (int64_t row = 0; row < rows; row += P, panels += P * inputs)
        for (int64_t strip = 0; strip < strips; ++strip) {
            const Product sum = multiply(panels, workspace + strip * inputs * STRIP, inputs);
            for (int r = 0; r < P && row + r < rows; ++r) {
                float out[STRIP];
                const float more = bias ? bias[row + r] : 0;
                store(out, sum.of[r][0] + more);
                store(out + 8, sum.of[r][1] + more);
                for (int i = 0; i < lanes[strip].outs; ++i) {
                    const Stretch& o = lanes[strip].out[i];
                    copy(out + o.lane, o.count, y + o.from + (row + r) * s.oh * s.ow);
                }
            }
        }
}

// ---- Winograd's algorithm (Lavin and Gray, 2016, arXiv 1509.09308): 16 products for 4 pixels ----

struct Pixels {
    Eight low, high;
};
static inline Pixels operator+(const Pixels& a, const Pixels& b) { return {a.low + b.low, a.high + b.high}; }
static inline Pixels operator-(const Pixels& a, const Pixels& b) { return {a.low - b.low, a.high - b.high}; }

// Windows of 4 x 4 of a channel, transformed: to + i * step is the i-th number of all.
static void transform(const Lanes<STRIP>& lanes, const float* x, int64_t row, float* to, int64_t step) {
    const int64_t odd = row / 2, column[4] = {0, odd, 1, odd + 1};
    Pixels d[4][4], t[4][4];
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            float found[STRIP];
            gather(lanes, x + i * row + column[j], found);
            d[i][j] = load<Pixels>(found);
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
    const int64_t row = s.padded_w(), step = s.c * STRIP, all = (rows + P - 1) / P * P * s.c;
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

// Sums of eight neighbours of a row.
template <int STRIDE>
static inline Eight neighbours(const Window& s, const float* x, const float* weight) {
    Eight sum{};
    for (int64_t ky = 0; ky < s.kernel_h; ++ky)
        for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
            const float* from = x + ky * s.dilation_h * s.padded_w() + kx * s.dilation_w;
            Eight in;
            if (STRIDE == 1) {
                in = load<Eight>(from);
            } else {
                const Eight a = load<Eight>(from), b = load<Eight>(from + 7);
                in = __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15);
            }
            sum += in * weight[ky * s.kernel_w + kx];
        }
    return sum;
}

static float alone(const Window& s, const float* x, const float* weight) {
    float sum = 0;
    for (int64_t ky = 0; ky < s.kernel_h; ++ky)
        for (int64_t kx = 0; kx < s.kernel_w; ++kx)
            sum += weight[ky * s.kernel_w + kx] * x[ky * s.dilation_h * s.padded_w() + kx * s.dilation_w];
    return sum;
}

template <int STRIDE>
static void rows_of(const Window& s, const float* x, const float* weight, float bias, float* y) {
    for (int64_t oy = 0; oy < s.oh; ++oy, y += s.ow) {
        const float* row = x + oy * s.stride_h * s.padded_w();
        int64_t ox = 0;
        for (; ox + 8 <= s.ow; ox += 8)
            store(y + ox, neighbours<STRIDE>(s, row + ox * STRIDE, weight) + bias);
        if (ox < s.ow && s.ow >= 8) {  // some again
            ox = s.ow - 8;
            store(y + ox, neighbours<STRIDE>(s, row + ox * STRIDE, weight) + bias);
        } else {
            for (; ox < s.ow; ++ox) y[ox] = alone(s, row + ox * STRIDE, weight) + bias;
        }
    }
}

static void depthwise(const Window& s, const float* x, const float* weight, float bias, float* y) {
    if (s.stride_w == 1) return rows_of<1>(s, x, weight, bias, y);
    if (s.stride_w == 2) return rows_of<2>(s, x, weight, bias, y);
    for (int64_t oy = 0; oy < s.oh; ++oy)
        for (int64_t ox = 0; ox < s.ow; ++ox)
            *y++ = alone(s, x + oy * s.stride_h * s.padded_w() + ox * s.stride_w, weight) + bias;
}

}  // namespace TERSOR_TARGET

#define JOIN(a, b) a##b
#define NAMED(target) JOIN(direct_, target)
const tersor::DirectKernels tersor::NAMED(TERSOR_TARGET) = {TERSOR_TARGET::pack, TERSOR_TARGET::matrix,
                                                            TERSOR_TARGET::winograd, TERSOR_TARGET::depthwise};
