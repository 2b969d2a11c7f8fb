/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors: the product of factors, and the unfactored ones, element by element. */
#include <float.h>

#include "internal.h"

#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128
#error "float is not the binary32 of IEEE 754, which the weights are multiplied in"
#endif

enum { F64 = 0, F32 = 1, F16 = 2, BF16 = 3, BOOL = 9, C64 = 15 };

/* The upper bits of a number without the lowest `count`: to nearest, ties to even. */
static uint32_t drop(uint32_t bits, unsigned count)
{
    return (bits + ((1u << (count - 1)) - 1) + (bits >> count & 1)) >> count;
}

static uint32_t to_half(uint32_t magnitude)
{
    const uint32_t exponent = magnitude >> 23;
    uint32_t half;
    if (exponent < 102) /* below half of the smallest */
        return 0;
    if (exponent < 113) /* a multiple of the smallest */
        return drop((magnitude & 0x7FFFFF) | 0x800000, 126 - exponent);
    half = drop(magnitude - (112u << 23), 13);
    return half < 0x7C00 ? half : 0x7C00;
}

static uint64_t to_double(uint32_t magnitude)
{
    uint64_t exponent = magnitude >> 23, fraction = magnitude & 0x7FFFFF;
    if (exponent == 255) /* infinite, or NaN, which becomes a quiet one */
        return (uint64_t)(fraction ? 0xFFF : 0xFFE) << 51 | fraction << 29;
    if (!exponent && !fraction)
        return 0;
    if (!exponent) { /* these are ordinary numbers in the wider type */
        for (exponent = 1; !(fraction & 0x800000); exponent--)
            fraction <<= 1;
        fraction &= 0x7FFFFF;
    }
    return (exponent + (1023 - 127)) << 52 | fraction << 29;
}

static void store(uint8_t *out, uint64_t bits, unsigned size)
{
    for (; size; size--, bits >>= 8)
        *out++ = (uint8_t)bits;
}

/* A float32, given by its bits, as an element of another type. */
static void store_float(uint8_t *out, uint32_t bits, unsigned dtype)
{
    const uint32_t sign = bits >> 31, magnitude = bits & 0x7FFFFFFF;
    switch (dtype) {
    case F64: store(out, (uint64_t)sign << 63 | to_double(magnitude), 8); break;
    case F32: store(out, bits, 4); break;
    case F16: store(out, sign << 15 | to_half(magnitude), 2); break;
    default: store(out, sign << 15 | drop(magnitude, 16), 2); break;
    }
}

/* The bits of an element of a tile: whole numbers up to 2^24, and then the one multiplication.
 * `row` and `column` are where C[i,0] and Z[0,j] are in the array, d and n the way to the next. */
static uint32_t element(const int16_t *integers, size_t row, size_t d, size_t column, size_t n,
                        size_t k, float scale)
{
    int32_t sum = 0;
    float product;
    uint32_t bits;
    for (; k; k--, row += d, column += n)
        sum += (int32_t)integers[row] * integers[column];
    product = (float)sum * scale;
    memcpy(&bits, &product, sizeof bits);
    return bits;
}

/* Rows of the weight of one slice, whose latent begins at `latent` in the array. */
static uint8_t *recompose(const tersor_tensor *t, const tersor_space *space, size_t latent,
                          size_t rows, uint8_t *out)
{
    const size_t d = (size_t)t->tile, k = (size_t)t->rank;
    const size_t length = (size_t)(t->numel / t->rows), n = (size_t)tersor_tiles(t) * rows;
    const unsigned size = tersor_itemsize(t->dtype);
    size_t row, at;
    float scale;
    memcpy(&scale, &t->scale, sizeof scale);
    for (row = 0; row < rows; row++)
        for (at = 0; at < length; at++, out += size) {
            const size_t column = latent + at / d * rows + row;
            store_float(out, element(space->integers, at % d, d, column, n, k, scale), t->dtype);
        }
    return out;
}

static void recompose_all(const tersor_tensor *t, const tersor_space *space, uint8_t *out)
{
    const size_t k = (size_t)t->rank, tiles = (size_t)tersor_tiles(t);
    const uint64_t slices = tersor_slices(t);
    size_t latent = (size_t)t->tile * k;
    uint64_t s;
    for (s = 0; s < slices; s++) {
        const size_t rows = (size_t)tersor_slice_rows(t, s);
        out = recompose(t, space, latent, rows, out);
        latent += k * tiles * rows;
    }
}

/* Where the bytes of the first word of a piece are, from the most significant on. In a group, these
 * of all words come first, then the second ones of those that have more, and so on. */
static void find_planes(size_t planes[8], const tersor_section *section, const uint32_t *before)
{
    static const uint8_t longer[8] = {0, 1, 2, 2, 3, 3, 3, 3}; /* log2 of the least size */
    size_t start = 0;
    unsigned i;
    for (i = 0; i < 8; i++) {
        planes[i] = start + before[longer[i]];
        start += section->words[longer[i]];
    }
}

static int is_turned(const tersor_tensor *t)
{
    return t->kind == TERSOR_EXACT && (t->dtype <= BF16 || t->dtype == C64);
}

/* Put the words of a piece together. */
static uint8_t *gather(const tersor_tensor *t, const tersor_section *section, int is_first,
                       const tersor_space *space, uint32_t count, uint8_t *out)
{
    static const uint32_t nothing[4] = {0, 0, 0, 0};
    const unsigned size = tersor_word_size(t), bits = 8 * size;
    size_t planes[8];
    uint32_t i;
    unsigned plane;
    find_planes(planes, section, is_first ? t->before : nothing);
    for (i = 0; i < count; i++) {
        uint64_t word = 0;
        for (plane = 0; plane < size; plane++)
            word = word << 8 | space->bytes[planes[plane] + i];
        if (is_turned(t)) /* the sign is at the end */
            word = word >> 1 | (word & 1) << (bits - 1);
        if (t->kind == TERSOR_ROUNDED) {
            store_float(out, (uint32_t)word << 16, t->dtype);
            out += tersor_itemsize(t->dtype);
        } else {
            store(out, word, size);
            out += size;
        }
    }
    return out;
}

tersor_needs tersor_factor_needs(const tersor_tensor *t)
{
    const uint64_t last = tersor_slice_rows(t, tersor_slices(t) - 1); /* the longest */
    const uint64_t tiles = tersor_tiles(t), both = last + tiles;
    tersor_needs needs = {0, 0, 0, 0, 0, 0};
    needs.output = t->numel * tersor_itemsize(t->dtype);
    needs.integers = t->rank * (t->tile + t->rows * tiles);
    needs.scales = both > t->tile + 1 ? both : t->tile + 1;
    return needs;
}

tersor_status tersor_decode_factors(const tersor_tensor *t, const tersor_section *section,
                                    tersor_space *space)
{
    const tersor_needs needs = tersor_factor_needs(t);
    if (needs.integers > space->integers_size || needs.scales > space->scales_size)
        return TERSOR_SPACE;
    return tersor_read_factors(t, section, space);
}

/* Where the latents of a row begin, for one row of Z, and how many integers this row of Z has. */
static size_t find_row(const tersor_tensor *t, uint64_t *row, size_t *rows)
{
    size_t latent = (size_t)(t->tile * t->rank);
    uint64_t slice = 0;
    while (*row >= (*rows = (size_t)tersor_slice_rows(t, slice))) {
        latent += (size_t)(t->rank * tersor_tiles(t)) * *rows;
        *row -= *rows;
        slice++;
    }
    return latent;
}

void tersor_row(const tersor_tensor *t, const int16_t *integers, uint64_t row, int32_t *sums)
{
    const size_t d = (size_t)t->tile, k = (size_t)t->rank;
    const size_t length = (size_t)(t->numel / t->rows);
    size_t rows, c, at, i;
    size_t latent = find_row(t, &row, &rows) + (size_t)row;
    memset(sums, 0, length * sizeof *sums);
    for (c = 0; c < k; c++)
        for (at = 0; at < length; at += d, latent += rows) {
            const int32_t z = integers[latent];
            const size_t size = length - at < d ? length - at : d;
            for (i = 0; z && i < size; i++) /* most are zero */
                sums[at + i] += z * integers[c * d + i];
        }
}

static tersor_status hold(const tersor_section *section, tersor_space *space)
{
    tersor_status status;
    if (space->held == section)
        return TERSOR_OK;
    space->held = 0;
    if (!tersor_section_intact(section))
        return TERSOR_CHECKSUM;
    status = tersor_inflate(section->data, section->size, space->bytes, tersor_group_size(section));
    if (status == TERSOR_OK)
        space->held = section;
    return status;
}

/* Piece by piece. Only the first may share its group with tensors before; the others follow. */
static tersor_status read_kept(const tersor_file *file, const tersor_tensor *t, tersor_space *space,
                               uint8_t *output)
{
    uint64_t i, left = t->numel * tersor_stored_size(t);
    size_t at = t->section;
    uint8_t *out = output;
    int is_first;
    for (is_first = 1; left; is_first = 0, at++) {
        const tersor_section *section = file->sections + at;
        const uint32_t size = left < TERSOR_GROUP ? (uint32_t)left : TERSOR_GROUP;
        const tersor_status status = hold(section, space);
        if (status != TERSOR_OK)
            return status;
        out = gather(t, section, is_first, space, size / tersor_word_size(t), out);
        left -= size;
    }
    for (i = 0; t->dtype == BOOL && i < t->numel; i++)
        if (output[i] > 1)
            return TERSOR_CONTENT;
    return TERSOR_OK;
}

static size_t original(const tersor_file *file, size_t position)
{
    const tersor_tensor *t = file->tensors + position;
    return t->kind == TERSOR_ALIAS ? t->target : position;
}

/* Bytes of the largest group that an unfactored tensor has a piece in. */
static uint64_t group_bytes(const tersor_file *file, const tersor_tensor *t)
{
    const uint64_t size = t->numel * tersor_stored_size(t);
    if (size > TERSOR_GROUP)
        return TERSOR_GROUP;
    return size ? tersor_group_size(file->sections + t->section) : 0;
}

tersor_needs tersor_tensor_needs(const tersor_file *file, size_t position)
{
    tersor_needs needs = {0, 0, 0, 0, 0, 0};
    const tersor_tensor *t;
    if (position >= file->count)
        return needs;
    t = file->tensors + original(file, position);
    if (t->kind == TERSOR_FACTORS)
        return tersor_factor_needs(t);
    needs.output = t->numel * tersor_itemsize(t->dtype);
    needs.bytes = group_bytes(file, t);
    return needs;
}

tersor_status tersor_decode(const tersor_file *file, size_t position, uint8_t *output,
                            size_t output_size, tersor_space *space)
{
    const tersor_needs needs = tersor_tensor_needs(file, position);
    const tersor_tensor *t;
    tersor_status status;
    if (position >= file->count)
        return TERSOR_POSITION;
    if (needs.output > output_size || needs.integers > space->integers_size ||
        needs.scales > space->scales_size || needs.bytes > space->bytes_size)
        return TERSOR_SPACE;
    t = file->tensors + original(file, position);
    if (t->kind != TERSOR_FACTORS)
        return read_kept(file, t, space, output);
    status = tersor_read_factors(t, file->sections + t->section, space);
    if (status == TERSOR_OK)
        recompose_all(t, space, output);
    return status;
}
