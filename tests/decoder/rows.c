/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of factors, one at a time, against the tensors as a whole; fails at the first difference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tersor_decoder.h"

static void *allocate(uint64_t count, size_t size)
{
    return calloc((size_t)count + !count, size);
}

static int same(const tersor_tensor *t, const int16_t *integers, const uint8_t *whole)
{
    const size_t length = (size_t)(t->numel / t->rows);
    int32_t *sums = allocate(length, sizeof *sums);
    int found = 1;
    uint64_t row;
    size_t i;
    float scale, element;
    memcpy(&scale, &t->scale, sizeof scale);
    for (row = 0; row < t->rows; row++) {
        tersor_row(t, integers, row, sums);
        for (i = 0; i < length; i++, whole += sizeof element) {
            const float product = (float)sums[i] * scale;
            memcpy(&element, whole, sizeof element);
            found &= product == element || (product != product && element != element);
        }
    }
    free(sums);
    return found;
}

static int check(const tersor_file *file, size_t position)
{
    const tersor_tensor *t = file->tensors + position;
    const tersor_needs needs = tersor_factor_needs(t);
    tersor_space space = {0};
    uint8_t *whole = allocate(needs.output, 1);
    int found;
    space.integers = allocate(needs.integers, sizeof *space.integers);
    space.scales = allocate(needs.scales, sizeof *space.scales);
    found = tersor_decode_factors(t, file->sections + t->section, &space) == TERSOR_SPACE;
    space.integers_size = (size_t)needs.integers;
    space.scales_size = (size_t)needs.scales;
    found &= tersor_decode(file, position, whole, (size_t)needs.output, &space) == TERSOR_OK;
    memset(space.integers, 1, space.integers_size * sizeof *space.integers);
    found &= tersor_decode_factors(t, file->sections + t->section, &space) == TERSOR_OK;
    found &= same(t, space.integers, whole);
    free(whole);
    free(space.integers);
    free(space.scales);
    return found;
}

int main(int count, char **arguments)
{
    static uint8_t data[1 << 22], bytes[1 << 16];
    static tersor_tensor tensors[64];
    static tersor_section sections[64];
    tersor_file file = {0};
    FILE *stream = count == 2 ? fopen(arguments[1], "rb") : 0;
    size_t i, size = stream ? fread(data, 1, sizeof data, stream) : 0;
    int checked = 0;
    file.bytes = bytes, file.bytes_size = sizeof bytes;
    file.tensors = tensors, file.tensors_size = 64;
    file.sections = sections, file.sections_size = 64;
    if (tersor_open(&file, data, size, (uint64_t)1 << 30) != TERSOR_OK)
        return 1;
    for (i = 0; i < file.count; i++)
        if (tensors[i].kind == TERSOR_FACTORS && tensors[i].dtype == 1) {
            if (!check(&file, i))
                return 1;
            checked++;
        }
    printf("%d\n", checked);
    return 0;
}
