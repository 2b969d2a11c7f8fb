/* SPDX-License-Identifier: Apache-2.0 */
/* Names of tensors: put together from what they share, and all valid and different. */
#include "internal.h"

enum { LARGEST_NAMES = 1 << 26 };

/* Bytes of the character that starts here, as UTF-8 has it (RFC 3629); 0 if it is none. */
static size_t character(const uint8_t *text, size_t size)
{
    const uint8_t lead = text[0];
    const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    size_t i;
    if (length == 1)
        return 1;
    if (lead < 0xC2 || lead > 0xF4 || length > size)
        return 0;
    for (i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80)
            return 0;
    if ((lead == 0xE0 && text[1] < 0xA0) || (lead == 0xED && text[1] > 0x9F) ||
        (lead == 0xF0 && text[1] < 0x90) || (lead == 0xF4 && text[1] > 0x8F))
        return 0;
    return length;
}

int tersor_is_utf8(const uint8_t *text, size_t size)
{
    while (size) {
        const size_t length = character(text, size);
        if (!length)
            return 0;
        text += length;
        size -= length;
    }
    return 1;
}

static int compare(const tersor_tensor *a, const tersor_tensor *b)
{
    size_t i;
    for (i = 0; i < a->name_size && i < b->name_size; i++)
        if (a->name[i] != b->name[i])
            return a->name[i] < b->name[i] ? -1 : 1;
    return a->name_size == b->name_size ? 0 : a->name_size < b->name_size ? -1 : 1;
}

/* Let a position sink in a heap of positions, which the tensors have in `scratch`. */
static void sink(tersor_tensor *tensors, size_t at, size_t count)
{
    size_t child;
    while ((child = 2 * at + 1) < count) {
        const size_t moved = tensors[at].scratch;
        if (child + 1 < count &&
            compare(tensors + tensors[child].scratch, tensors + tensors[child + 1].scratch) < 0)
            child++;
        if (compare(tensors + moved, tensors + tensors[child].scratch) >= 0)
            return;
        tensors[at].scratch = tensors[child].scratch;
        tensors[child].scratch = moved;
        at = child;
    }
}

/* Sort the positions of all tensors by name, so that those of the same name are neighbours. */
static int all_differ(tersor_tensor *tensors, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        tensors[i].scratch = i;
    for (i = count / 2; i-- > 0;)
        sink(tensors, i, count);
    for (i = count; i-- > 1;) {
        const size_t largest = tensors[0].scratch;
        tensors[0].scratch = tensors[i].scratch;
        tensors[i].scratch = largest;
        sink(tensors, 0, i);
    }
    for (i = 1; i < count; i++)
        if (!compare(tensors + tensors[i - 1].scratch, tensors + tensors[i].scratch))
            return 0;
    return 1;
}

/* One name, behind the others if there is room for it. The room that all take is known only when
 * the last has been read, so that reading goes on without. */
static void read_name(tersor_file *file, tersor_cursor *cursor, size_t *shared_from, size_t *used,
                      tersor_tensor *tensor)
{
    const uint64_t shared = tersor_integer(cursor, *shared_from);
    const uint64_t own = tersor_integer(cursor, cursor->size);
    const uint8_t *text = tersor_raw(cursor, own);
    if (cursor->bad)
        return;
    if (*used <= file->bytes_size && shared + own <= file->bytes_size - *used) {
        uint8_t *name = file->bytes + *used;
        if (shared)
            memcpy(name, name - *shared_from, (size_t)shared);
        if (own)
            memcpy(name + shared, text, (size_t)own);
        tensor->name = name;
    }
    tensor->name_size = *shared_from = (size_t)(shared + own);
    *used += tensor->name_size;
}

tersor_status tersor_read_names(tersor_file *file, tersor_cursor *cursor, size_t start)
{
    size_t i, previous = 0, used = start;
    for (i = 0; i < file->count; i++) {
        memset(file->tensors + i, 0, sizeof *file->tensors);
        read_name(file, cursor, &previous, &used, file->tensors + i);
        if (cursor->bad || used - start > LARGEST_NAMES)
            return TERSOR_HEADER;
    }
    file->needs.bytes = used;
    if (file->bytes_size < used)
        return TERSOR_SPACE;
    for (i = 0; i < file->count; i++)
        if (!tersor_is_utf8(file->tensors[i].name, file->tensors[i].name_size))
            return TERSOR_HEADER;
    return all_differ(file->tensors, file->count) ? TERSOR_OK : TERSOR_HEADER;
}
