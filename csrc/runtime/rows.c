/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"

#include <string.h>

#include "internal.h" /* of the decoder */

/* The space comes first in the scratch memory, and has a constant size on all machines. */
typedef char space_fits[sizeof(tersor_space) <= TERSOR_SCRATCH ? 1 : -1];

static size_t aligned(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

/* The next part of the scratch memory; 0 if there is less. */
static void *take(uint8_t **scratch, size_t *left, size_t bytes)
{
    uint8_t *const taken = *scratch;
    bytes = aligned(bytes);
    if (bytes > *left)
        return 0;
    *scratch += bytes;
    *left -= bytes;
    return taken;
}

tersor_status tersor_start_rows(tersor_rows *rows, const tersor_weight *weight,
                                const tersor_shape *kernel, void *scratch, size_t size)
{
    const tersor_needs needs = tersor_factor_needs(weight->coded);
    const size_t length = (size_t)kernel->height * kernel->width * kernel->channels;
    uint8_t *at = scratch;
    tersor_space *space = take(&at, &size, TERSOR_SCRATCH);
    tersor_scale *scales = take(&at, &size, (size_t)needs.scales * sizeof *scales);
    int16_t *integers = take(&at, &size, (size_t)needs.integers * sizeof *integers);
    rows->tensor = weight->coded;
    rows->kernel = *kernel;
    rows->integers = integers;
    rows->sums = take(&at, &size, length * sizeof *rows->sums);
    rows->row = take(&at, &size, length * sizeof *rows->sums);
    if (!space || !scales || !integers || !rows->sums || !rows->row)
        return TERSOR_SPACE;
    memset(space, 0, sizeof *space);
    space->scales = scales, space->scales_size = (size_t)needs.scales;
    space->integers = integers, space->integers_size = (size_t)needs.integers;
    return tersor_decode_factors(weight->coded, weight->slices, space);
}

const float *tersor_float_row(const tersor_rows *rows, uint32_t row)
{
    const size_t points = (size_t)rows->kernel.height * rows->kernel.width;
    const size_t channels = rows->kernel.channels;
    const int32_t *sum = rows->sums;
    float *const out = rows->row;
    size_t c, at;
    tersor_row(rows->tensor, rows->integers, row, rows->sums);
    for (c = 0; c < channels; c++)
        for (at = 0; at < points; at++)
            out[at * channels + c] = (float)*sum++;
    return out;
}

tersor_status tersor_check(const tersor_section *slices, size_t count)
{
    for (; count; count--, slices++)
        if (!tersor_section_intact(slices))
            return TERSOR_CHECKSUM;
    return TERSOR_OK;
}
