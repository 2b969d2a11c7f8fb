/* SPDX-License-Identifier: Apache-2.0 */
/* Fields of the header, one after the other. */
#include "internal.h"

const uint8_t *tersor_raw(tersor_cursor *cursor, uint64_t size)
{
    if (cursor->bad || size > cursor->size - cursor->used) {
        cursor->bad = 1;
        return 0;
    }
    cursor->used += (size_t)size;
    return cursor->data + (cursor->used - (size_t)size);
}

uint8_t tersor_byte(tersor_cursor *cursor, unsigned limit)
{
    const uint8_t *byte = tersor_raw(cursor, 1);
    if (!byte || *byte > limit) {
        cursor->bad = 1;
        return 0;
    }
    return *byte;
}

uint32_t tersor_u32(tersor_cursor *cursor)
{
    const uint8_t *bytes = tersor_raw(cursor, 4);
    return bytes ? tersor_load32(bytes) : 0;
}

uint64_t tersor_integer(tersor_cursor *cursor, uint64_t limit)
{
    uint64_t value = 0;
    unsigned shift;
    for (shift = 0; shift < 63; shift += 7) {
        const uint8_t byte = tersor_byte(cursor, 255);
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            cursor->bad |= value > limit;
            return cursor->bad ? 0 : value;
        }
    }
    cursor->bad = 1;
    return 0;
}
