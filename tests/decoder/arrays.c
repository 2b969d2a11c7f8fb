/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays of the caller that are one element too small must be refused, and those that are as large
 * as the decoder asks for must do. Prints how many calls were tried. */
#include <stdio.h>
#include <stdlib.h>

#include "tersor_decoder.h"

static unsigned tried;

static void expect(tersor_status found, tersor_status wanted)
{
    tried++;
    if (found == wanted)
        return;
    fprintf(stderr, "call %u: %s, not %s\n", tried, tersor_message(found), tersor_message(wanted));
    exit(1);
}

static void *array(size_t count, size_t itemsize)
{
    void *made = malloc(count * itemsize + !count);
    return made ? made : (abort(), made);
}

static tersor_status decode(const tersor_file *file, size_t position, tersor_needs sizes)
{
    tersor_space space = {0};
    uint8_t *output = array((size_t)sizes.output, 1);
    tersor_status status;
    space.integers = array(space.integers_size = (size_t)sizes.integers, sizeof *space.integers);
    space.scales = array(space.scales_size = (size_t)sizes.scales, sizeof *space.scales);
    space.bytes = array(space.bytes_size = (size_t)sizes.bytes, 1);
    status = tersor_decode(file, position, output, (size_t)sizes.output, &space);
    free(output);
    free(space.integers);
    free(space.scales);
    free(space.bytes);
    return status;
}

static void try_tensor(const tersor_file *file, size_t position)
{
    const tersor_needs needs = tersor_tensor_needs(file, position);
    unsigned which;
    expect(decode(file, position, needs), TERSOR_OK);
    for (which = 0; which < 4; which++) {
        tersor_needs less = needs;
        uint64_t *size = which == 0   ? &less.output
                         : which == 1 ? &less.integers
                         : which == 2 ? &less.scales
                                      : &less.bytes;
        if (!*size)
            continue;
        --*size;
        expect(decode(file, position, less), TERSOR_SPACE);
    }
}

static tersor_status open_with(tersor_file *file, tersor_needs sizes, const uint8_t *data,
                               size_t size)
{
    free(file->bytes);
    free(file->tensors);
    free(file->sections);
    file->bytes = array(file->bytes_size = (size_t)sizes.bytes, 1);
    file->tensors = array(file->tensors_size = (size_t)sizes.tensors, sizeof *file->tensors);
    file->sections = array(file->sections_size = (size_t)sizes.sections, sizeof *file->sections);
    return tersor_open(file, data, size, 1u << 24);
}

static void try_file(tersor_file *file, const uint8_t *data, size_t size)
{
    tersor_needs needs, less;
    while (tersor_open(file, data, size, 1u << 24) == TERSOR_SPACE)
        open_with(file, file->needs, data, size);
    needs = less = file->needs;
    less.bytes--;
    expect(open_with(file, less, data, size), TERSOR_SPACE);
    less = needs;
    less.tensors--;
    expect(open_with(file, less, data, size), TERSOR_SPACE);
    less = needs;
    less.sections--;
    expect(open_with(file, less, data, size), TERSOR_SPACE);
    expect(open_with(file, needs, data, size), TERSOR_OK);
}

int main(int count, char **arguments)
{
    static uint8_t data[1 << 16];
    FILE *input = count == 2 ? fopen(arguments[1], "rb") : 0;
    tersor_file file = {0};
    size_t size, i;
    if (!input)
        return 2;
    size = fread(data, 1, sizeof data, input);
    fclose(input);
    try_file(&file, data, size);
    for (i = 0; i < file.count; i++)
        try_tensor(&file, i);
    expect(decode(&file, file.count, tersor_tensor_needs(&file, file.count)), TERSOR_POSITION);
    free(file.bytes);
    free(file.tensors);
    free(file.sections);
    printf("%u\n", tried);
    return 0;
}
