/* SPDX-License-Identifier: Apache-2.0 */
/* Every truncation and every single-bit flip of a file, each decoded from memory of its exact size.
 * Prints how many there were and how many were accepted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tersor_whole.h"

static void ignore(void *context, const tersor_tensor *tensor, const uint8_t *elements, size_t size)
{
    (void)context;
    (void)tensor;
    (void)elements;
    (void)size;
}

static int accepted(const uint8_t *data, size_t size, size_t flipped)
{
    uint8_t *copy = malloc(size + !size);
    int ok;
    if (!copy)
        abort();
    memcpy(copy, data, size);
    if (flipped / 8 < size)
        copy[flipped / 8] ^= (uint8_t)(1u << (flipped & 7));
    ok = tersor_decode_whole(copy, size, 1u << 24, ignore, 0) == TERSOR_OK;
    free(copy);
    return ok;
}

int main(int count, char **arguments)
{
    static uint8_t data[1 << 16];
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : 0;
    size_t size, i, cut = 0, flipped = 0;
    if (!file)
        return 2;
    size = fread(data, 1, sizeof data, file);
    fclose(file);
    if (!accepted(data, size, 8 * size))
        return 3;
    for (i = 0; i < size; i++)
        cut += (size_t)accepted(data, i, 8 * i);
    for (i = 0; i < 8 * size; i++)
        flipped += (size_t)accepted(data, size, i);
    printf("{\"truncations\": %lu, \"truncations_accepted\": %lu, ", (unsigned long)size,
           (unsigned long)cut);
    printf("\"flips\": %lu, \"flips_accepted\": %lu}\n", 8ul * size, (unsigned long)flipped);
    return 0;
}
