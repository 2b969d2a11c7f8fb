/* SPDX-License-Identifier: Apache-2.0 */
/* Layers of networks in portable C99, for weights that csrc/decoder decodes.
 *
 * Nothing is allocated, and nothing is called but memcpy and memset. Tensors have one sample, with
 * channels last: element (y, x, c) of a shape is at (y * width + x) * channels + c. Vectors are of
 * height and width 1, sequences of height 1. `tersor export c` writes programs of these calls.
 */
#ifndef TERSOR_RUNTIME_H
#define TERSOR_RUNTIME_H

#include "tersor_decoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    uint32_t height, width, channels;
} tersor_shape;

/* A weight: one row for each output channel, of kernel height * width * channels of a group. */
typedef struct {
    const float *values;           /* rows with channels last; 0 if they are coded */
    const tersor_tensor *coded;    /* factors, whose rows have channels first */
    const tersor_section *slices;  /* where their integers are */
} tersor_weight;

/* Convolution or linear layer: out = gain * (weight * in) + bias for each channel, then at least
 * `low` and at most `high`. The kernel's channels are those of one group. */
typedef struct {
    tersor_shape in, out, kernel;
    uint32_t stride[2], dilation[2], before[2]; /* y, x; zeros that are padded above and left */
    uint32_t groups;
    tersor_weight weight;
    const float *gain, *bias;
    float low, high;
} tersor_convolution;

/* Bytes of the scratch memory of a layer with coded weights are TERSOR_SCRATCH, and
 * 8 * scales + 2 * integers (both as tersor_needs counts them, made multiples of 8) and twice 4 * the
 * length of a row (likewise). */
enum { TERSOR_SCRATCH = 5248 };
tersor_status tersor_convolve(const tersor_convolution *layer, const float *in, float *out,
                              void *scratch, size_t scratch_size);

/* Largest value or mean of windows. With `whole_windows` a mean divides by the size of the window,
 * also where it reaches beyond the input. */
typedef enum { TERSOR_MAXIMUM, TERSOR_MEAN } tersor_pool_kind;
typedef struct {
    tersor_pool_kind kind;
    tersor_shape in, out;
    uint32_t window[2], stride[2], before[2];
    uint32_t whole_windows;
} tersor_pool;
void tersor_pool_windows(const tersor_pool *layer, const float *in, float *out);

typedef enum {
    TERSOR_SIGMOID,
    TERSOR_TANH,
    TERSOR_SILU,
    TERSOR_HARD_SIGMOID,
    TERSOR_HARD_SWISH
} tersor_function;

/* Element by element; `out` may be an input. */
void tersor_apply(tersor_function function, const float *in, float *out, size_t count);
void tersor_clamp(const float *in, float *out, size_t count, float low, float high);
void tersor_add(const float *a, const float *b, float *out, size_t count, float low, float high);

/* Of each of `count` vectors of `channels`; `out` may be the input. */
void tersor_softmax(const float *in, float *out, size_t count, size_t channels);

/* e^x, to a relative error of some 1e-7. */
float tersor_exp(float x);

/* A grid of blocks, with the bytes from one to the next in both. This subsamples, pads,
 * concatenates, and puts channels last or first. */
typedef struct {
    uint32_t rows, columns, bytes;
    uint32_t in_row, in_column, out_row, out_column;
} tersor_grid;
void tersor_move(const tersor_grid *grid, const void *in, void *out);
void tersor_fill(float *out, size_t count, float value);

/* Whether the sections of `count` slices are as their checksums say. */
tersor_status tersor_check(const tersor_section *slices, size_t count);

#ifdef __cplusplus
}
#endif
#endif
