/* SPDX-License-Identifier: Apache-2.0 */
/* The container: what is before the header, checksums, and the calls that tell what a file holds. */
#include "internal.h"

/* A fuzzer does not guess checksums, and should get beyond them. */
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
enum { UNCHECKED = 1 };
#else
enum { UNCHECKED = 0 };
#endif

enum { PREFIX = 21, LARGEST_HEADER = 1 << 26, ORDINARY_HEADER = 1 << 18, LEAST_TENSOR = 6 };

static const uint8_t MAGIC[9] = {0x93, 'T', 'E', 'R', 'S', 'O', 'R', '\n', 1 /* version */};

uint32_t tersor_load32(const uint8_t *b)
{
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* CRC-32 of zlib and PNG, four bits at a time. */
int tersor_intact(const uint8_t *data, size_t size, uint32_t checksum)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
        0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = 0xFFFFFFFFu;
    size_t i;
    for (i = 0; i < size; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return UNCHECKED || (crc ^ 0xFFFFFFFFu) == checksum;
}

static tersor_status check_prefix(const uint8_t *data, size_t size)
{
    size_t i;
    for (i = 0; i < 8; i++)
        if (i >= size || data[i] != MAGIC[i])
            return TERSOR_MAGIC;
    if (size < PREFIX)
        return TERSOR_CHECKSUM;
    return data[8] == MAGIC[8] ? TERSOR_OK : TERSOR_VERSION;
}

/* Whether a header is small, no larger than its file lets expect, or such that the caller has room
 * for all tensors that it may describe. */
static int affordable(uint32_t header, size_t size, uint64_t limit)
{
    return header <= ORDINARY_HEADER || header / 4 <= size || header <= limit / 128;
}

/* Inflate the header into the bytes of the file. */
static tersor_status read_header(tersor_file *file, const uint8_t *data, size_t size,
                                 uint64_t limit, tersor_cursor *cursor, size_t *end)
{
    const uint32_t deflated = tersor_load32(data + 9), plain = tersor_load32(data + 13);
    /* Deflate makes no more of a byte, so that a claim costs nobody memory. */
    if (plain > LARGEST_HEADER || plain > TERSOR_EXPANSION * deflated)
        return TERSOR_HEADER;
    if (!affordable(plain, size, limit))
        return TERSOR_LIMIT;
    if (deflated > size - PREFIX || !tersor_intact(data + PREFIX, deflated, tersor_load32(data + 17)))
        return TERSOR_CHECKSUM;
    file->needs.bytes = plain;
    if (file->bytes_size < plain)
        return TERSOR_SPACE;
    cursor->data = file->bytes;
    cursor->size = plain;
    *end = PREFIX + (size_t)deflated;
    return tersor_inflate(data + PREFIX, deflated, file->bytes, plain);
}

tersor_status tersor_open(tersor_file *file, const uint8_t *data, size_t size, uint64_t limit)
{
    tersor_cursor cursor = {0};
    size_t end = 0;
    tersor_status status = check_prefix(data, size);
    file->count = 0;
    memset(&file->needs, 0, sizeof file->needs);
    memset(&file->metadata, 0, sizeof file->metadata);
    file->content_hash = 0;
    if (status == TERSOR_OK)
        status = read_header(file, data, size, limit, &cursor, &end);
    if (status != TERSOR_OK)
        return status;
    file->source_bytes = tersor_integer(&cursor, TERSOR_LARGEST_FIELD);
    file->needs.tensors = tersor_integer(&cursor, cursor.size);
    if (cursor.bad || file->needs.tensors > (cursor.size - cursor.used) / LEAST_TENSOR)
        return TERSOR_HEADER;
    if (file->tensors_size < file->needs.tensors)
        return TERSOR_SPACE;
    file->count = (size_t)file->needs.tensors;
    status = tersor_read_names(file, &cursor, cursor.size);
    if (status == TERSOR_OK)
        status = tersor_read_fields(file, &cursor, limit);
    if (status == TERSOR_OK)
        status = tersor_read_sections(file, &cursor, data, end, size);
    if (status != TERSOR_OK)
        file->count = 0;
    return status;
}

const char *tersor_message(tersor_status status)
{
    switch (status) {
    case TERSOR_OK: return "no error";
    case TERSOR_SPACE: return "an array of the caller is too small";
    case TERSOR_MAGIC: return "not a tersor file: it does not start with the magic number";
    case TERSOR_VERSION: return "a version of the format that this decoder does not know";
    case TERSOR_CHECKSUM: return "damaged or cut off";
    case TERSOR_DEFLATE: return "compressed data that is invalid or has another size than stated";
    case TERSOR_HEADER: return "an invalid header";
    case TERSOR_LIMIT: return "decoding would take more bytes than allowed";
    case TERSOR_CONTENT: return "invalid coded integers or values";
    case TERSOR_POSITION: return "there is no such tensor";
    }
    return "unknown status";
}
