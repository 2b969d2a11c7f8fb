/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"
#include "window.h"

static float dot(const float *a, const float *b, size_t count)
{
    float sum = 0.0f;
    for (; count; count--)
        sum += *a++ * *b++;
    return sum;
}

/* Products of a row of the weight with what is below the kernel at one place of the input. */
static float at_place(const tersor_convolution *layer, const float *in, const float *row,
                      const tersor_window *y, const tersor_window *x)
{
    const size_t channels = layer->kernel.channels, all = layer->in.channels;
    const int is_run = layer->groups == 1 && layer->dilation[1] == 1; /* columns follow another */
    float sum = 0.0f;
    uint32_t i, j;
    for (i = y->first; i < y->end; i++) {
        const size_t line = (size_t)tersor_at(y, i) * layer->in.width;
        const float *const weights = row + (size_t)i * layer->kernel.width * channels;
        if (is_run && x->first < x->end)
            sum += dot(in + (line + tersor_at(x, x->first)) * all, weights + x->first * channels,
                       (x->end - x->first) * channels);
        for (j = x->first; !is_run && j < x->end; j++)
            sum += dot(in + (line + tersor_at(x, j)) * all, weights + j * channels, channels);
    }
    return sum;
}

/* All elements of one output channel. */
static void convolve_channel(const tersor_convolution *layer, const float *in, const float *row,
                             float *out, uint32_t channel)
{
    const uint32_t group = channel / (layer->out.channels / layer->groups);
    tersor_window y, x;
    uint32_t i, j;
    in += (size_t)group * layer->kernel.channels;
    for (i = 0; i < layer->out.height; i++) {
        y = tersor_window_at(i * layer->stride[0], layer->before[0], layer->kernel.height,
                             layer->dilation[0], layer->in.height);
        for (j = 0; j < layer->out.width; j++, out += layer->out.channels) {
            float value;
            x = tersor_window_at(j * layer->stride[1], layer->before[1], layer->kernel.width,
                                 layer->dilation[1], layer->in.width);
            value = at_place(layer, in, row, &y, &x) * layer->gain[channel] + layer->bias[channel];
            *out = value < layer->low ? layer->low : value > layer->high ? layer->high : value;
        }
    }
}

tersor_status tersor_convolve(const tersor_convolution *layer, const float *in, float *out,
                              void *scratch, size_t scratch_size)
{
    const size_t length =
        (size_t)layer->kernel.height * layer->kernel.width * layer->kernel.channels;
    tersor_rows rows;
    uint32_t channel;
    if (layer->weight.coded) {
        const tersor_status status =
            tersor_start_rows(&rows, &layer->weight, &layer->kernel, scratch, scratch_size);
        if (status != TERSOR_OK)
            return status;
    }
    for (channel = 0; channel < layer->out.channels; channel++) {
        const float *const row = layer->weight.coded ? tersor_float_row(&rows, channel)
                                                     : layer->weight.values + channel * length;
        convolve_channel(layer, in, row, out + channel, channel);
    }
    return TERSOR_OK;
}
