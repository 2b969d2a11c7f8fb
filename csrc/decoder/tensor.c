/* Tensors: the product of factors, and those that were kept, element by element. */
#include <float.h>

#include "internal.h"

#if FLT_RADIX != 2 || FLT_MANT_DIG != 24 || FLT_MAX_EXP != 128
#error "float is not the binary32 of IEEE 754, which the weights are multiplied in"
#endif

enum { F64 = 0, F32 = 1, F16 = 2, BF16 = 3, BOOL = 9 };

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
    if (exponent == 255)
        return (uint64_t)0x7FF << 52;
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

/* An element of a tile: whole numbers up to 2^24, and then the one multiplication. */
static uint32_t element(const int16_t *codebook, const int16_t *latent, size_t d, size_t n,
                        size_t k, float scale)
{
    int32_t sum = 0;
    float product;
    uint32_t bits;
    for (; k; k--, codebook += d, latent += n)
        sum += (int32_t)*codebook * *latent;
    product = (float)sum * scale;
    memcpy(&bits, &product, sizeof bits);
    return bits;
}

static void recompose(const tersor_tensor *t, const tersor_space *space, uint8_t *out)
{
    const size_t d = (size_t)t->tile, k = (size_t)t->rank, rows = (size_t)t->rows;
    const size_t length = (size_t)(t->numel / t->rows), n = (size_t)tersor_tiles(t) * rows;
    const unsigned size = tersor_itemsize(t->dtype);
    const int16_t *latent = space->integers + d * k;
    size_t row, at;
    float scale;
    memcpy(&scale, &t->scale, sizeof scale);
    for (row = 0; row < rows; row++)
        for (at = 0; at < length; at++, out += size)
            store_float(out,
                        element(space->integers + at % d, latent + at / d * rows + row, d, n, k,
                                scale),
                        t->dtype);
}

/* Put together the bytes of each element, which stand in planes, the most significant first. */
static void gather(const tersor_tensor *t, const tersor_tensor *group, const uint8_t *planes,
                   uint8_t *out)
{
    static const uint8_t least[8] = {0, 1, 2, 2, 3, 3, 3, 3}; /* log2 of who has this plane */
    const unsigned stored = tersor_stored_size(t), size = tersor_itemsize(t->dtype);
    const size_t numel = (size_t)t->numel;
    unsigned plane;
    size_t i;
    for (plane = 0; plane < stored; plane++) {
        const uint8_t *from = planes + t->before[least[plane]];
        for (i = 0; i < numel; i++)
            out[i * size + stored - 1 - plane] = from[i];
        planes += (size_t)group->group[least[plane]];
    }
    if (t->kind != TERSOR_ROUNDED)
        return;
    for (i = 0; i < numel; i++)
        store_float(out + i * size,
                    (uint32_t)out[i * size + 1] << 24 | (uint32_t)out[i * size] << 16, t->dtype);
}

static tersor_status read_kept(const tersor_file *file, size_t position, tersor_space *space,
                               uint64_t group_size, uint8_t *out)
{
    const tersor_tensor *t = file->tensors + position, *group = file->tensors + t->target;
    uint64_t i;
    if (space->held != group->section) {
        tersor_status status;
        space->held = 0;
        if (!tersor_intact(group->section, group->section_size, group->checksum))
            return TERSOR_CHECKSUM;
        status = tersor_inflate(group->section, group->section_size, space->bytes,
                                (size_t)group_size);
        if (status != TERSOR_OK)
            return status;
        space->held = group->section;
    }
    if (t->numel)
        gather(t, group, space->bytes, out);
    for (i = 0; t->dtype == BOOL && i < t->numel; i++)
        if (out[i] > 1)
            return TERSOR_CONTENT;
    return TERSOR_OK;
}

static size_t original(const tersor_file *file, size_t position)
{
    const tersor_tensor *t = file->tensors + position;
    return t->kind == TERSOR_ALIAS ? t->target : position;
}

static uint64_t group_bytes(const tersor_tensor *first)
{
    return first->group[0] + first->group[1] + 2 * first->group[2] + 4 * first->group[3];
}

tersor_needs tersor_tensor_needs(const tersor_file *file, size_t position)
{
    tersor_needs needs = {0, 0, 0, 0, 0};
    const tersor_tensor *t;
    if (position >= file->count)
        return needs;
    t = file->tensors + original(file, position);
    needs.output = t->numel * tersor_itemsize(t->dtype);
    if (t->kind == TERSOR_FACTORS) {
        const uint64_t tiles = tersor_tiles(t), both = t->rows + tiles;
        needs.integers = t->rank * (t->tile + t->rows * tiles);
        needs.scales = both > t->tile + 1 ? both : t->tile + 1;
    } else {
        needs.bytes = group_bytes(file->tensors + t->target);
    }
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
    position = original(file, position);
    t = file->tensors + position;
    if (t->kind != TERSOR_FACTORS)
        return read_kept(file, position, space, needs.bytes, output);
    if (!tersor_intact(t->section, t->section_size, t->checksum))
        return TERSOR_CHECKSUM;
    status = tersor_read_factors(t, space);
    if (status == TERSOR_OK)
        recompose(t, space, output);
    return status;
}
