/* SPDX-License-Identifier: Apache-2.0 */
#include "tersor_whole.h"

#include <stdlib.h>

/* An array that is at least as large; what it held may be lost. Empty if there is no memory. */
static void *enlarge(void *array, size_t *count, uint64_t wanted, size_t itemsize)
{
    if (wanted <= *count)
        return array;
    free(array);
    array = wanted <= SIZE_MAX / itemsize ? malloc((size_t)wanted * itemsize) : 0;
    *count = array ? (size_t)wanted : 0;
    return array;
}

static tersor_status open_file(tersor_file *file, const uint8_t *data, size_t size, uint64_t limit)
{
    tersor_status status;
    while ((status = tersor_open(file, data, size, limit)) == TERSOR_SPACE) {
        file->bytes = enlarge(file->bytes, &file->bytes_size, file->needs.bytes, 1);
        file->tensors = enlarge(file->tensors, &file->tensors_size, file->needs.tensors,
                                sizeof *file->tensors);
        file->sections = enlarge(file->sections, &file->sections_size, file->needs.sections,
                                 sizeof *file->sections);
        if (file->bytes_size < file->needs.bytes || file->tensors_size < file->needs.tensors ||
            file->sections_size < file->needs.sections)
            return TERSOR_SPACE;
    }
    return status;
}

static tersor_status visit_one(const tersor_file *file, size_t position, tersor_space *space,
                               tersor_visit *visit, void *context)
{
    const tersor_needs needs = tersor_tensor_needs(file, position);
    uint8_t *output = 0;
    size_t size = 0;
    tersor_status status;
    if (needs.bytes > space->bytes_size)
        space->held = 0;
    space->bytes = enlarge(space->bytes, &space->bytes_size, needs.bytes, 1);
    space->integers = enlarge(space->integers, &space->integers_size, needs.integers,
                              sizeof *space->integers);
    space->scales = enlarge(space->scales, &space->scales_size, needs.scales,
                            sizeof *space->scales);
    output = enlarge(output, &size, needs.output, 1);
    status = tersor_decode(file, position, output, size, space);
    if (status == TERSOR_OK)
        visit(context, file->tensors + position, output, size);
    free(output);
    return status;
}

tersor_status tersor_decode_whole(const uint8_t *data, size_t size, uint64_t limit,
                                  tersor_visit *visit, void *context)
{
    tersor_file file = {0};
    tersor_space space = {0};
    tersor_status status = open_file(&file, data, size, limit);
    size_t i;
    for (i = 0; i < file.count && status == TERSOR_OK; i++)
        status = visit_one(&file, i, &space, visit, context);
    free(file.bytes);
    free(file.tensors);
    free(file.sections);
    free(space.bytes);
    free(space.integers);
    free(space.scales);
    return status;
}
