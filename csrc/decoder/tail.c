/* SPDX-License-Identifier: Apache-2.0 */
/* What follows the sections: metadata and other things that a file says of itself. */
#include "internal.h"

enum { METADATA = 2, CONTENT_HASH = 4 };
enum { MOST_ENTRIES = 64, LONGEST_KEY = 255, MOST_BYTES = 1 << 16 };

static tersor_text read_text(tersor_cursor *cursor)
{
    tersor_text text;
    const uint64_t size = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
    text.data = tersor_raw(cursor, size);
    text.size = text.data ? (size_t)size : 0;
    return text;
}

static tersor_cursor over(tersor_text text)
{
    tersor_cursor cursor = {0};
    cursor.data = text.data;
    cursor.size = text.size;
    return cursor;
}

int tersor_metadata(const tersor_file *file, size_t position, tersor_text *key, tersor_text *value)
{
    tersor_cursor cursor = over(file->metadata);
    while (cursor.used < cursor.size) {
        *key = read_text(&cursor);
        *value = read_text(&cursor);
        if (cursor.bad)
            return 0;
        if (!position--)
            return 1;
    }
    return 0;
}

static int same(tersor_text a, tersor_text b)
{
    size_t i;
    for (i = 0; i < a.size && i < b.size; i++)
        if (a.data[i] != b.data[i])
            return 0;
    return a.size == b.size;
}

static int is_new_key(const tersor_file *file, size_t count, tersor_text key)
{
    tersor_text other, value;
    while (count-- && tersor_metadata(file, count, &other, &value))
        if (same(other, key))
            return 0;
    return 1;
}

static int is_valid_metadata(const tersor_file *file)
{
    tersor_cursor cursor = over(file->metadata);
    size_t count, total = 0;
    for (count = 0; cursor.used < cursor.size; count++) {
        const tersor_text key = read_text(&cursor), value = read_text(&cursor);
        total += key.size + value.size;
        if (cursor.bad || count == MOST_ENTRIES || total > MOST_BYTES || !key.size ||
            key.size > LONGEST_KEY || !tersor_is_utf8(key.data, key.size) ||
            !tersor_is_utf8(value.data, value.size) || !is_new_key(file, count, key))
            return 0;
    }
    return 1;
}

static int read_item(tersor_file *file, uint64_t tag, tersor_text content)
{
    if (tag == METADATA) {
        file->metadata = content;
        return is_valid_metadata(file);
    }
    if (tag == CONTENT_HASH) {
        file->content_hash = content.data;
        return content.size == 32;
    }
    return tag % 2 == 0; /* odd ones are for readers who know them */
}

tersor_status tersor_read_tail(tersor_file *file, const uint8_t *data, size_t size)
{
    tersor_cursor cursor = {0};
    uint64_t before = 0;
    if (!size)
        return TERSOR_OK;
    if (size < 5)
        return TERSOR_HEADER;
    if (!tersor_intact(data + 4, size - 4, tersor_load32(data)))
        return TERSOR_CHECKSUM;
    cursor.data = data + 4;
    cursor.size = size - 4;
    while (cursor.used < cursor.size) {
        const uint64_t tag = tersor_integer(&cursor, TERSOR_LARGEST_FIELD);
        const tersor_text content = read_text(&cursor);
        if (cursor.bad || tag <= before || !read_item(file, tag, content))
            return TERSOR_HEADER;
        before = tag;
    }
    return TERSOR_OK;
}
