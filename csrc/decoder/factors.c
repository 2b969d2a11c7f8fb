/* SPDX-License-Identifier: Apache-2.0 */
/* Integers of codebook and latent: the adaptive model and the trellis. */
#include "coder.h"
#include "internal.h"

enum { LEVELS = 40, BINS = 16, ESCAPE = 20, CONFIDENCE = 8, PLACES = 320 };
enum { STRENGTH = 8192, MOST = 65280, FARTHEST = 65536, LEARNING = 370, STEEPEST = 12288 };
enum { LARGEST = 4095, RESTART = 4096 };

/* Where a state of the trellis leads to. Shift is log2 of the number of states. */
typedef struct {
    unsigned shift, even, odd;
} trellis;

/* One matrix: rows of `inner` runs of `outer` integers. */
typedef struct {
    size_t rows, inner, outer;
    unsigned start;
    trellis trellis;
} matrix;

static uint32_t read_index(decoder *d, uint32_t *probabilities, unsigned level, unsigned grid)
{
    uint32_t *bins = probabilities + (level * 2 + grid) * BINS;
    const unsigned lowest = level < 22 ? 0 : (level - 20) >> 1;
    uint32_t coarse = 0;
    while (coarse < ESCAPE && decision(d, bins + (coarse < BINS ? coarse : BINS - 1)))
        coarse++;
    if (coarse == ESCAPE)
        coarse += escape(d);
    return coarse << lowest | flat_bits(d, lowest);
}

static void learn(tersor_scale *scale, int32_t gradient, int32_t weight)
{
    scale->log += gradient * LEARNING / ((scale->seen + STRENGTH) >> 4);
    if (scale->log > FARTHEST)
        scale->log = FARTHEST;
    if (scale->log < -FARTHEST)
        scale->log = -FARTHEST;
    if (scale->seen < MOST)
        scale->seen += weight;
}

static int32_t gradient_of(uint32_t index, unsigned place)
{
    const int64_t gap = (int64_t)(256 * index) - MEAN[place];
    const int64_t product = gap * INVERSE[place];
    /* Rounded down; shifting a negative number is not portable. */
    const int64_t gradient = product >= 0 ? product >> 16 : -((-product + 65535) >> 16);
    return gradient < STEEPEST ? (int32_t)gradient : STEEPEST;
}

static unsigned place_of(int32_t log)
{
    const int32_t place = log + 128 * 256;
    return place < 0 ? 0 : place >> 8 < PLACES ? (unsigned)place >> 8 : PLACES - 1;
}

static void start_probabilities(uint32_t *probabilities, int has_trellis)
{
    unsigned level, grid, bin;
    for (level = 0; level < LEVELS; level++)
        for (grid = 0; grid < 2; grid++)
            for (bin = 0; bin < BINS; bin++) {
                const unsigned plain = bin ? 5 : 4, first = bin > 1 ? 3 : bin ? 2 : grid;
                const uint32_t prior = PRIOR[has_trellis ? first : plain][level < 23 ? level : 23];
                *probabilities++ = prior << 22 | CONFIDENCE;
            }
}

static trellis make_trellis(unsigned number)
{
    static const uint8_t even[] = {0, 0, 1, 1, 2, 1}, odd[] = {0, 1, 2, 2, 4, 10};
    trellis t;
    t.shift = number ? number + 1 : 0;
    t.even = even[number];
    t.odd = odd[number];
    return t;
}

static unsigned grid_of(const trellis *t, unsigned state)
{
    return t->shift ? state >> (t->shift - 1) : 0;
}

static unsigned next_state(const trellis *t, unsigned state, unsigned grid, uint32_t index)
{
    unsigned rest;
    if (!t->shift)
        return 0;
    rest = state & ((1u << (t->shift - 1)) - 1);
    return (rest ^ (grid ? t->even : 0) ^ (index & 1 ? t->odd : 0)) << 1 | grid;
}

/* One integer; an invalid one is larger than LARGEST. */
static int32_t read_integer(decoder *d, tersor_space *space, tersor_scale *scales[3],
                            const trellis *t, unsigned *state)
{
    const unsigned place = place_of(scales[0]->log + scales[1]->log + scales[2]->log);
    const unsigned grid = grid_of(t, *state);
    const uint32_t index = read_index(d, space->probabilities, place >> 3, grid);
    int32_t value, gradient, i;
    unsigned positive = 1;
    if (index > LARGEST)
        return LARGEST + 1;
    if (index)
        positive = flat(d);
    value = (int32_t)(!t->shift ? index : grid && index ? 2 * index - 1 : 2 * index);
    if (value > LARGEST)
        return LARGEST + 1;
    gradient = gradient_of(index, place);
    for (i = 0; i < 3; i++)
        learn(scales[i], gradient, WEIGHT[place]);
    *state = next_state(t, *state, grid, index);
    return positive ? value : -value;
}

static int read_row(decoder *d, tersor_space *space, const matrix *m, tersor_scale *row,
                    int16_t *out)
{
    const size_t columns = m->inner * m->outer;
    tersor_scale *scales[3];
    size_t c, i = 0, j = 0;
    unsigned state = 0;
    row->seen = 0;
    scales[0] = row;
    for (c = 0; c < columns; c++) {
        int32_t value;
        if (c % RESTART == 0)
            state = 0;
        scales[1] = space->scales + i;
        scales[2] = space->scales + m->outer + j;
        value = read_integer(d, space, scales, &m->trellis, &state);
        if (value > LARGEST)
            return 0;
        out[c] = (int16_t)value;
        if (++i == m->outer) {
            i = 0;
            j++;
        }
    }
    return 1;
}

static int read_matrix(decoder *d, tersor_space *space, const matrix *m, int16_t *out)
{
    tersor_scale row = {0, 0};
    size_t r;
    row.log = ((int32_t)m->start - 128) * 256;
    memset(space->scales, 0, (m->outer + m->inner) * sizeof *space->scales);
    start_probabilities(space->probabilities, m->trellis.shift != 0);
    for (r = 0; r < m->rows; r++)
        if (!read_row(d, space, m, &row, out + r * m->inner * m->outer))
            return 0;
    return 1;
}

static uint32_t largest(const int16_t *integers, size_t count)
{
    uint32_t found = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        const uint32_t magnitude = (uint32_t)(integers[i] < 0 ? -integers[i] : integers[i]);
        if (magnitude > found)
            found = magnitude;
    }
    return found;
}

/* Whether no sum of products can exceed 2^24, up to which float32 is exact. */
static int is_exact(const tersor_tensor *t, const int16_t *integers)
{
    const size_t d = (size_t)t->tile, k = (size_t)t->rank, tiles = (size_t)tersor_tiles(t);
    const uint64_t slices = tersor_slices(t);
    uint32_t sum = 0;
    size_t c;
    for (c = 0; c < k; c++) {
        const int16_t *latent = integers + d * k;
        uint32_t found = 0;
        uint64_t s;
        for (s = 0; s < slices; s++) {
            const size_t n = tiles * (size_t)tersor_slice_rows(t, s);
            const uint32_t of_slice = largest(latent + c * n, n);
            found = of_slice > found ? of_slice : found;
            latent += k * n;
        }
        sum += largest(integers + c * d, d) * found;
        if (sum > 1u << 24)
            return 0;
    }
    return 1;
}

/* The codebook, if this is the first slice, and one slice of the latent. Returns where it ends. */
static int16_t *read_slice(const tersor_tensor *t, const tersor_section *section, uint64_t slice,
                           tersor_space *space, int16_t *out)
{
    const size_t k = (size_t)t->rank;
    matrix codebook, latent;
    decoder coder;
    if (section->size && !section->data[section->size - 1])
        return 0;
    codebook.rows = latent.rows = k;
    codebook.inner = 1;
    codebook.outer = (size_t)t->tile;
    codebook.start = t->codebook_start;
    codebook.trellis = make_trellis(0);
    latent.inner = (size_t)tersor_tiles(t);
    latent.outer = (size_t)tersor_slice_rows(t, slice);
    latent.start = t->latent_start;
    latent.trellis = make_trellis(t->trellis);
    start(&coder, section->data, section->size);
    if (!slice && !read_matrix(&coder, space, &codebook, out))
        return 0;
    out += slice ? 0 : codebook.outer * k;
    if (!read_matrix(&coder, space, &latent, out) || coder.used < coder.size)
        return 0;
    return out + latent.inner * latent.outer * k;
}

tersor_status tersor_read_factors(const tersor_tensor *t, const tersor_section *section,
                                  tersor_space *space)
{
    const uint64_t slices = tersor_slices(t);
    int16_t *out = space->integers;
    uint64_t s;
    for (s = 0; s < slices; s++, section++) {
        if (!tersor_section_intact(section))
            return TERSOR_CHECKSUM;
        if (!t->rank && section->size)
            return TERSOR_CONTENT;
        if (t->rank && !(out = read_slice(t, section, s, space, out))) /* else no array */
            return TERSOR_CONTENT;
    }
    return is_exact(t, space->integers) ? TERSOR_OK : TERSOR_CONTENT;
}
