/* SPDX-License-Identifier: Apache-2.0 */
/* Decode a tersor file into raw tensors:
 *
 *     cc -std=c99 -O2 *.c -o decode && ./decode model.tersor tensors.bin
 *
 * The second file gets the elements of all tensors, little-endian, one tensor after the other. A
 * line for each tensor goes to standard output: bytes, data type, lengths of the axes, name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tersor_whole.h"

typedef struct {
    FILE *file;
    int failed;
} output;

static void write_tensor(void *context, const tersor_tensor *tensor, const uint8_t *elements,
                         size_t size)
{
    output *out = context;
    unsigned axis;
    printf("%lu %s ", (unsigned long)size, tersor_dtype(tensor->dtype));
    for (axis = 0; axis < tensor->axes; axis++)
        printf("%s%llu", axis ? "x" : "", (unsigned long long)tersor_length(tensor, axis));
    putchar(' ');
    fwrite(tensor->name, 1, tensor->name_size, stdout);
    putchar('\n');
    if (size && fwrite(elements, 1, size, out->file) != size)
        out->failed = 1;
}

/* All bytes of a file, with malloc; 0 if it cannot be read. */
static uint8_t *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = 0;
    long end;
    if (!file)
        return 0;
    if (!fseek(file, 0, SEEK_END) && (end = ftell(file)) >= 0 && !fseek(file, 0, SEEK_SET)) {
        *size = (size_t)end;
        data = malloc(*size + !*size);
        if (data && fread(data, 1, *size, file) != *size) {
            free(data);
            data = 0;
        }
    }
    fclose(file);
    return data;
}

static tersor_status decode(const char *path, output *out)
{
    const uint64_t limit = (uint64_t)1 << 32;
    size_t size = 0;
    uint8_t *data = read_file(path, &size);
    tersor_status status;
    if (!data) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(2);
    }
    status = tersor_decode_whole(data, size, limit, write_tensor, out);
    free(data);
    return status;
}

int main(int count, char **arguments)
{
    output out = {0, 0};
    tersor_status status;
    if (count != 3) {
        fprintf(stderr, "usage: decode MODEL.tersor OUTPUT\n");
        return 2;
    }
    out.file = fopen(arguments[2], "wb");
    if (!out.file) {
        fprintf(stderr, "%s cannot be written\n", arguments[2]);
        return 2;
    }
    status = decode(arguments[1], &out);
    if (fclose(out.file) || out.failed) {
        fprintf(stderr, "%s could not be written\n", arguments[2]);
        return 2;
    }
    if (status != TERSOR_OK)
        fprintf(stderr, "%s: %s\n", arguments[1], tersor_message(status));
    return status == TERSOR_OK ? 0 : 2;
}
