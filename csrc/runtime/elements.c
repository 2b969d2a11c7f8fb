/* SPDX-License-Identifier: Apache-2.0 */
/* Pooling, and functions of elements and vectors. */
#include <string.h>

#include "tersor_runtime.h"
#include "window.h"

static float largest_in(const tersor_pool *layer, const float *in, const tersor_window *y,
                        const tersor_window *x)
{
    float found = in[((size_t)tersor_at(y, y->first) * layer->in.width + tersor_at(x, x->first)) *
                     layer->in.channels];
    uint32_t i, j;
    for (i = y->first; i < y->end; i++)
        for (j = x->first; j < x->end; j++) {
            const float value = in[((size_t)tersor_at(y, i) * layer->in.width + tersor_at(x, j)) *
                                   layer->in.channels];
            found = value > found ? value : found;
        }
    return found;
}

static float mean_in(const tersor_pool *layer, const float *in, const tersor_window *y,
                     const tersor_window *x)
{
    const uint32_t inside = (y->end - y->first) * (x->end - x->first);
    const uint32_t count = layer->whole_windows ? layer->window[0] * layer->window[1] : inside;
    float sum = 0.0f;
    uint32_t i, j;
    for (i = y->first; i < y->end; i++)
        for (j = x->first; j < x->end; j++)
            sum += in[((size_t)tersor_at(y, i) * layer->in.width + tersor_at(x, j)) *
                      layer->in.channels];
    return sum / (float)count;
}

void tersor_pool_windows(const tersor_pool *layer, const float *in, float *out)
{
    uint32_t i, j, c;
    for (i = 0; i < layer->out.height; i++)
        for (j = 0; j < layer->out.width; j++) {
            const tersor_window y = tersor_window_at(i * layer->stride[0], layer->before[0],
                                                     layer->window[0], 1, layer->in.height);
            const tersor_window x = tersor_window_at(j * layer->stride[1], layer->before[1],
                                                     layer->window[1], 1, layer->in.width);
            for (c = 0; c < layer->in.channels; c++)
                *out++ = layer->kind == TERSOR_MEAN ? mean_in(layer, in + c, &y, &x)
                                                    : largest_in(layer, in + c, &y, &x);
        }
}

/* 2^n * e^r with |r| <= ln 2 / 2, of which a polynomial of degree 6 is enough. */
float tersor_exp(float x)
{
    uint32_t bits;
    int32_t n;
    float r, power;
    if (x != x) /* not a number */
        return x;
    if (x < -87.0f) /* the smallest ordinary numbers, near enough to 0 */
        return 0.0f;
    if (x > 88.0f)
        x = 88.0f;
    n = (int32_t)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
    r = x - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    bits = (uint32_t)(n + 127) << 23;
    memcpy(&power, &bits, sizeof power);
    return power * (1.0f + r * (1.0f + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f +
           r * (8.33333333e-3f + r * 1.38888889e-3f))))));
}

static float between(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value;
}

static float sigmoid(float x)
{
    const float e = tersor_exp(x < 0.0f ? x : -x);
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* Where x is small, the difference of two numbers near 1 would lose digits. */
static float tangent(float x)
{
    const float square = x * x, e = tersor_exp(x < 0.0f ? 2.0f * x : -2.0f * x);
    if (square < 0.01f)
        return x * (1.0f - square * (1.0f / 3.0f - square * (2.0f / 15.0f -
               square * (17.0f / 315.0f))));
    return (x < 0.0f ? e - 1.0f : 1.0f - e) / (1.0f + e);
}

void tersor_apply(tersor_function function, const float *in, float *out, size_t count)
{
    for (; count; count--) {
        const float x = *in++;
        switch (function) {
        case TERSOR_SIGMOID: *out++ = sigmoid(x); break;
        case TERSOR_TANH: *out++ = tangent(x); break;
        case TERSOR_SILU: *out++ = x * sigmoid(x); break;
        case TERSOR_HARD_SIGMOID: *out++ = between(x + 3.0f, 0.0f, 6.0f) / 6.0f; break;
        default: *out++ = x * between(x + 3.0f, 0.0f, 6.0f) / 6.0f; break;
        }
    }
}

void tersor_clamp(const float *in, float *out, size_t count, float low, float high)
{
    for (; count; count--)
        *out++ = between(*in++, low, high);
}

void tersor_add(const float *a, const float *b, float *out, size_t count, float low, float high)
{
    for (; count; count--)
        *out++ = between(*a++ + *b++, low, high);
}

static float largest(const float *in, size_t count)
{
    float found = *in;
    for (; count; count--, in++)
        found = *in > found ? *in : found;
    return found;
}

void tersor_softmax(const float *in, float *out, size_t count, size_t channels)
{
    size_t c;
    for (; count; count--, in += channels, out += channels) {
        const float top = largest(in, channels);
        float sum = 0.0f;
        for (c = 0; c < channels; c++) {
            out[c] = tersor_exp(in[c] - top);
            sum += out[c];
        }
        for (c = 0; c < channels; c++)
            out[c] /= sum;
    }
}

void tersor_move(const tersor_grid *grid, const void *in, void *out)
{
    uint32_t i, j;
    for (i = 0; i < grid->rows; i++) {
        const uint8_t *from = (const uint8_t *)in + (size_t)i * grid->in_row;
        uint8_t *to = (uint8_t *)out + (size_t)i * grid->out_row;
        for (j = 0; j < grid->columns; j++, from += grid->in_column, to += grid->out_column)
            memcpy(to, from, grid->bytes);
    }
}

void tersor_fill(float *out, size_t count, float value)
{
    for (; count; count--)
        *out++ = value;
}
