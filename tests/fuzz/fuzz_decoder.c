/* SPDX-License-Identifier: Apache-2.0 */
/* What a fuzzer calls for each input (see inputs.py): decode it, in a build that ignores checksums.
 * Memory errors and undefined behaviour are for the sanitizers to find. */
#include <stdlib.h>
#include <string.h>

#include "tersor_whole.h"

enum { LIMIT = 1 << 16, MOST_SECTIONS = 31, LARGEST_HEADER = 60000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ignore(void *context, const tersor_tensor *tensor, const uint8_t *elements, size_t size)
{
    (void)context;
    (void)tensor;
    (void)elements;
    (void)size;
}

static uint8_t *put(uint8_t *out, uint32_t value, unsigned bytes)
{
    for (; bytes; bytes--, value >>= 8)
        *out++ = (uint8_t)value;
    return out;
}

static uint8_t *put_integer(uint8_t *out, size_t value)
{
    for (; value > 127; value >>= 7)
        *out++ = (uint8_t)(value | 128);
    *out++ = (uint8_t)value;
    return out;
}

typedef struct {
    const uint8_t *data;
    size_t size;
} span;

/* What a size of two bytes in front of it announces. */
static span take(span *rest, size_t most)
{
    span taken = {0, 0};
    if (rest->size < 2) {
        rest->size = 0;
        return taken;
    }
    taken.size = rest->data[0] | (size_t)rest->data[1] << 8;
    taken.size = taken.size < most ? taken.size : most;
    taken.size = taken.size < rest->size - 2 ? taken.size : rest->size - 2;
    taken.data = rest->data + 2;
    rest->data += 2 + taken.size;
    rest->size -= 2 + taken.size;
    return taken;
}

static uint8_t *put_span(uint8_t *out, span what)
{
    if (what.size)
        memcpy(out, what.data, what.size);
    return out + what.size;
}

/* A file of a header, which becomes one stored block, of sections and of what follows them. */
static size_t make_file(uint8_t *file, span header, const span *sections, unsigned count,
                        span tail)
{
    static const uint8_t magic[9] = {0x93, 'T', 'E', 'R', 'S', 'O', 'R', '\n', 1};
    uint8_t *const plain = file + 26, *end = put_span(plain, header);
    uint32_t size;
    unsigned i;
    for (i = 0; i < count; i++)
        end = put_integer(end, sections[i].size);
    for (i = 0; i < count; i++)
        end = put(end, 0, 4);
    size = (uint32_t)(end - plain);
    memcpy(file, magic, sizeof magic);
    put(put(put(file + 9, size + 5, 4), size, 4), 0, 4);
    put(put(put(file + 21, 1, 1), size, 2), ~size, 2);
    for (i = 0; i < count; i++)
        end = put_span(end, sections[i]);
    end = put_span(end, tail);
    return (size_t)(end - file);
}

static void try_parts(const uint8_t *data, size_t size)
{
    span rest, header, sections[MOST_SECTIONS];
    const unsigned count = data[0] & MOST_SECTIONS;
    uint8_t *file = malloc(26 + size + MOST_SECTIONS * 7), *exact;
    unsigned i;
    rest.data = data + 1;
    rest.size = size - 1;
    header = take(&rest, LARGEST_HEADER);
    for (i = 0; i < count; i++)
        sections[i] = take(&rest, 0xFFFF);
    if (!file)
        abort();
    size = make_file(file, header, sections, count, rest);
    exact = malloc(size); /* so that reading beyond is seen */
    if (!exact)
        abort();
    memcpy(exact, file, size);
    tersor_decode_whole(exact, size, LIMIT, ignore, 0);
    free(exact);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size || data[0] == 0x93)
        tersor_decode_whole(data, size, LIMIT, ignore, 0);
    else
        try_parts(data, size);
    return 0;
}
