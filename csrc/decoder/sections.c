/* SPDX-License-Identifier: Apache-2.0 */
/* Sections: one for each factored tensor, then one for each group of pieces of unfactored ones. */
#include "internal.h"

enum { C64 = 15, LEAST_STAMP = 5 };

unsigned tersor_stored_size(const tersor_tensor *t)
{
    return t->kind == TERSOR_ROUNDED ? 2 : tersor_itemsize(t->dtype);
}

unsigned tersor_word_size(const tersor_tensor *t)
{
    return t->dtype == C64 ? 4 : tersor_stored_size(t);
}

uint32_t tersor_group_size(const tersor_section *s)
{
    return s->words[0] + s->words[1] + 2 * s->words[2] + 4 * s->words[3];
}

int tersor_section_intact(const tersor_section *section)
{
    return tersor_intact(section->data, section->size, section->checksum);
}

/* Put a piece into the group of a section. */
static void join(tersor_section *section, tersor_tensor *t, uint32_t size, int is_first)
{
    const unsigned word = tersor_word_size(t);
    unsigned i;
    for (i = 0; i < 4; i++) {
        if (is_first)
            t->before[i] = section->words[i];
        section->words[i] += word >> i ? size / word : 0;
    }
}

/* Cut an unfactored tensor into pieces, of which each goes into the last group if there is room for it, and
 * else into a new one. `total` are the bytes of the last group. Stops when there are too many. */
static void place(tersor_file *file, tersor_tensor *t, uint32_t *total, uint64_t most)
{
    uint64_t left = t->numel * tersor_stored_size(t);
    int is_first = 1;
    while (left && file->needs.sections <= most) {
        const uint32_t size = left < TERSOR_GROUP ? (uint32_t)left : TERSOR_GROUP;
        const int is_new = *total + size > TERSOR_GROUP;
        file->needs.sections += (uint64_t)is_new;
        *total = is_new ? size : *total + size;
        if (file->needs.sections <= file->sections_size) {
            const size_t section = (size_t)file->needs.sections - 1;
            if (is_new)
                memset(file->sections + section, 0, sizeof *file->sections);
            if (is_first)
                t->section = section;
            join(file->sections + section, t, size, is_first);
        }
        left -= size;
        is_first = 0;
    }
}

static tersor_status assign(tersor_file *file, uint64_t most)
{
    uint32_t total = TERSOR_GROUP; /* so that the first group is a new one */
    size_t i;
    for (i = 0; i < file->count; i++)
        if (file->tensors[i].kind == TERSOR_FACTORS) {
            file->tensors[i].section = (size_t)file->needs.sections;
            file->needs.sections += tersor_slices(file->tensors + i);
            if (file->needs.sections > most)
                return TERSOR_HEADER;
        }
    if (file->needs.sections && file->needs.sections <= file->sections_size)
        memset(file->sections, 0, (size_t)file->needs.sections * sizeof *file->sections);
    for (i = 0; i < file->count; i++)
        if (file->tensors[i].kind == TERSOR_EXACT || file->tensors[i].kind == TERSOR_ROUNDED)
            place(file, file->tensors + i, &total, most);
    if (file->needs.sections > most)
        return TERSOR_HEADER;
    return file->sections_size < file->needs.sections ? TERSOR_SPACE : TERSOR_OK;
}

tersor_status tersor_read_sections(tersor_file *file, tersor_cursor *cursor, const uint8_t *data,
                                   size_t start, size_t size)
{
    const uint64_t tail = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
    /* The header has at least this much of each: what it claims costs nobody more memory. */
    const tersor_status status = assign(file, (cursor->size - cursor->used) / LEAST_STAMP);
    const size_t count = (size_t)file->needs.sections;
    size_t i;
    if (status != TERSOR_OK)
        return status;
    for (i = 0; i < count; i++) {
        const uint64_t bytes = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
        if (cursor->bad || bytes > size - start)
            return cursor->bad ? TERSOR_HEADER : TERSOR_CHECKSUM;
        file->sections[i].data = data + start;
        file->sections[i].size = (size_t)bytes;
        start += (size_t)bytes;
        if (tersor_group_size(file->sections + i) > TERSOR_EXPANSION * bytes)
            return TERSOR_DEFLATE;
    }
    for (i = 0; i < count; i++)
        file->sections[i].checksum = tersor_u32(cursor);
    if (cursor->bad || cursor->used != cursor->size)
        return TERSOR_HEADER;
    if (tail != size - start)
        return TERSOR_CHECKSUM;
    return tersor_read_tail(file, data + start, size - start);
}
