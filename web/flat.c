/* SPDX-License-Identifier: Apache-2.0 */
/* The decoder for callers that cannot see structs of C, such as JavaScript: it lays out the arrays in
 * memory that the caller gives, and describes tensors by numbers. */
#include <string.h>

#include "tersor_decoder.h"

#define EXPORT(name) __attribute__((export_name(#name)))

enum { NAME, NAME_SIZE, DTYPE, AXES, OUTPUT, SPACE, LENGTHS, LARGEST_AXES = 64 };

static uint64_t aligned(uint64_t size)
{
    return (size + 15) & ~(uint64_t)15;
}

/* The arrays of a file behind it, in the order of their alignment; returns how many bytes they end at. */
static uint64_t place(tersor_file *file, const tersor_needs *n)
{
    const uint64_t tensors = aligned(sizeof *file);
    const uint64_t sections = tensors + aligned(n->tensors * sizeof *file->tensors);
    const uint64_t bytes = sections + aligned(n->sections * sizeof *file->sections);
    file->tensors = (tersor_tensor *)((uint8_t *)file + tensors);
    file->tensors_size = (size_t)n->tensors;
    file->sections = (tersor_section *)((uint8_t *)file + sections);
    file->sections_size = (size_t)n->sections;
    file->bytes = (uint8_t *)file + bytes;
    file->bytes_size = (size_t)n->bytes;
    return bytes + aligned(n->bytes);
}

/* Read the header into `memory`. After TERSOR_SPACE `needed` says how many bytes that takes. */
EXPORT(open)
tersor_status flat_open(uint8_t *memory, size_t size, const uint8_t *data, size_t length,
                        size_t limit, uint64_t *needed)
{
    tersor_file *file = (tersor_file *)memory;
    tersor_needs needs = {0};
    tersor_status status = TERSOR_SPACE;
    *needed = aligned(sizeof *file);
    if (size < *needed)
        return status;
    memset(file, 0, sizeof *file);
    while (status == TERSOR_SPACE) {
        *needed = place(file, &needs);
        if (*needed > size)
            return TERSOR_SPACE;
        status = tersor_open(file, data, length, limit);
        needs = file->needs;
    }
    return status;
}

EXPORT(count)
size_t flat_count(const tersor_file *file)
{
    return file->count;
}

EXPORT(hash)
const uint8_t *flat_hash(const tersor_file *file)
{
    return file->content_hash;
}

static uint64_t arrays(const tersor_needs *n)
{
    return aligned(sizeof(tersor_space)) + aligned(n->bytes) +
           aligned(n->scales * sizeof(tersor_scale)) + aligned(n->integers * sizeof(int16_t));
}

/* Name (address and bytes), data type, number of axes, bytes of the elements, bytes of the space that
 * decoding takes, and the lengths of the axes. */
EXPORT(describe)
void flat_describe(const tersor_file *file, size_t position, uint64_t *words)
{
    const tersor_tensor *t = file->tensors + position;
    const tersor_needs needs = tersor_tensor_needs(file, position);
    unsigned axis;
    words[NAME] = (uintptr_t)t->name;
    words[NAME_SIZE] = t->name_size;
    words[DTYPE] = t->dtype;
    words[AXES] = t->axes;
    words[OUTPUT] = needs.output;
    words[SPACE] = arrays(&needs);
    for (axis = 0; axis < t->axes && axis < LARGEST_AXES; axis++)
        words[LENGTHS + axis] = tersor_length(t, axis);
}

/* Write the elements of a tensor. The space begins as zeros. What it holds of one group of unfactored
 * tensors is used again, unless integers were written over it. */
EXPORT(decode)
tersor_status flat_decode(const tersor_file *file, size_t position, uint8_t *output, size_t size,
                          uint8_t *memory)
{
    const tersor_needs needs = tersor_tensor_needs(file, position);
    tersor_space *space = (tersor_space *)memory;
    const uint64_t bytes = aligned(sizeof *space), scales = bytes + aligned(needs.bytes);
    if (needs.integers)
        space->held = 0;
    space->bytes = memory + bytes;
    space->bytes_size = (size_t)needs.bytes;
    space->scales = (tersor_scale *)(memory + scales);
    space->scales_size = (size_t)needs.scales;
    space->integers = (int16_t *)(memory + scales + aligned(needs.scales * sizeof(tersor_scale)));
    space->integers_size = (size_t)needs.integers;
    return tersor_decode(file, position, output, size, space);
}
