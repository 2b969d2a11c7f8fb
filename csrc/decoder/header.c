/* SPDX-License-Identifier: Apache-2.0 */
/* The fields of the header that tell of tensors: columns of one property each. */
#include "internal.h"

enum { TYPES = 16, F64 = 0, F32 = 1, BF16 = 3, TRELLISES = 6, MOST_AXES = 64, BLOCK = 4096 };
enum { LARGEST_SNR = 30000, NO_SNR = 30001 };

static const uint8_t ITEMSIZE[TYPES] = {8, 4, 2, 2, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 8};
static const char *const NAMES[TYPES] = {"F64", "F32", "F16", "BF16", "I64",     "I32",
                                         "I16", "I8",  "U8",  "BOOL", "F8_E4M3", "F8_E5M2",
                                         "U16", "U32", "U64", "C64"};

unsigned tersor_itemsize(unsigned dtype) { return dtype < TYPES ? ITEMSIZE[dtype] : 0; }

const char *tersor_dtype(unsigned dtype) { return dtype < TYPES ? NAMES[dtype] : "unknown"; }

static int is_kept(const tersor_tensor *t)
{
    return t->kind == TERSOR_EXACT || t->kind == TERSOR_ROUNDED;
}

uint64_t tersor_length(const tersor_tensor *tensor, unsigned axis)
{
    tersor_cursor cursor = {0};
    cursor.data = tensor->lengths;
    cursor.size = 9 * MOST_AXES; /* none is longer, and they have been read before */
    if (axis >= tensor->axes)
        return 1;
    while (axis--)
        tersor_integer(&cursor, TERSOR_LARGEST_FIELD);
    return tersor_integer(&cursor, TERSOR_LARGEST_FIELD);
}

/* Lengths of the axes. An empty one must not hide that the others are too many. */
static void read_shape(tersor_cursor *cursor, tersor_tensor *t)
{
    uint64_t product = 1;
    unsigned i;
    int empty = 0;
    t->lengths = cursor->data + cursor->used;
    t->rows = 1;
    for (i = 0; i < t->axes; i++) {
        const uint64_t n = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
        if (!n)
            empty = 1;
        else if (n > TERSOR_LARGEST_FIELD / product)
            cursor->bad = 1;
        else
            product *= n;
        if (!i)
            t->rows = n;
    }
    t->numel = empty ? 0 : product;
}

static void read_alias(const tersor_file *file, tersor_cursor *cursor, size_t position)
{
    tersor_tensor *t = file->tensors + position;
    const tersor_tensor *target;
    unsigned i;
    t->target = (size_t)tersor_integer(cursor, position);
    target = file->tensors + t->target;
    if (t->target == position || target->kind == TERSOR_ALIAS || target->dtype != t->dtype ||
        target->axes != t->axes)
        cursor->bad = 1;
    for (i = 0; i < t->axes && !cursor->bad; i++)
        cursor->bad = tersor_length(t, i) != tersor_length(target, i);
}

static void read_kinds(tersor_file *file, tersor_cursor *cursor)
{
    tersor_tensor *t, *const end = file->tensors + file->count;
    size_t i;
    for (t = file->tensors; t < end; t++)
        t->dtype = tersor_byte(cursor, TYPES - 1);
    for (t = file->tensors; t < end; t++)
        t->kind = tersor_byte(cursor, TERSOR_ALIAS);
    for (t = file->tensors; t < end; t++)
        t->axes = tersor_byte(cursor, MOST_AXES);
    for (t = file->tensors; t < end; t++) {
        read_shape(cursor, t);
        if (t->kind == TERSOR_ROUNDED && t->dtype != F64 && t->dtype != F32)
            cursor->bad = 1;
    }
    for (t = file->tensors; t < end; t++)
        if (is_kept(t))
            tersor_byte(cursor, 255); /* the reason, for people */
    for (i = 0; i < file->count && !cursor->bad; i++)
        if (file->tensors[i].kind == TERSOR_ALIAS)
            read_alias(file, cursor, i);
}

static int is_snr(uint32_t bits)
{
    return bits < 0x8000 ? bits <= NO_SNR : 0x10000 - bits <= LARGEST_SNR;
}

static int is_finite(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u; }

/* Whether slices are at least two, of whole blocks of the trellis. 0 rows stand for all. */
static int read_slices(tersor_tensor *t)
{
    if (!t->slice_rows) {
        t->slice_rows = t->rows;
        return 1;
    }
    return t->slice_rows <= t->rows / 2 && t->slice_rows * tersor_tiles(t) % BLOCK == 0;
}

static void read_factors(tersor_file *file, tersor_cursor *cursor)
{
    tersor_tensor *t, *const end = file->tensors + file->count;
#define EACH for (t = file->tensors; t < end; t++) if (t->kind == TERSOR_FACTORS)
    EACH t->tile = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
    EACH t->rank = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
    EACH t->scale = tersor_u32(cursor);
    EACH {
        const uint32_t low = tersor_byte(cursor, 255), high = tersor_byte(cursor, 255);
        cursor->bad |= !is_snr(low | high << 8);
    }
    EACH t->trellis = tersor_byte(cursor, TRELLISES - 1);
    EACH t->codebook_start = tersor_byte(cursor, 255);
    EACH t->latent_start = tersor_byte(cursor, 255);
    EACH t->slice_rows = tersor_integer(cursor, TERSOR_LARGEST_FIELD);
    EACH if (!t->axes || !t->numel || !t->tile || t->tile > t->numel / t->rows ||
             t->dtype > BF16 || !is_finite(t->scale) || !read_slices(t))
        cursor->bad = 1;
#undef EACH
}

uint64_t tersor_tiles(const tersor_tensor *t)
{
    return (t->numel / t->rows - 1) / t->tile + 1;
}

uint64_t tersor_slices(const tersor_tensor *t) { return t->rows / t->slice_rows; }

uint64_t tersor_slice_rows(const tersor_tensor *t, uint64_t slice)
{
    return slice + 1 < tersor_slices(t) ? t->slice_rows : t->rows - slice * t->slice_rows;
}

/* Count the bytes of the dense tensors and of their factors; 0 if they exceed the limit. */
static int within(const tersor_file *file, uint64_t limit)
{
    size_t i;
    for (i = 0; i < file->count; i++) {
        const tersor_tensor *t = file->tensors + i;
        const uint64_t dense = t->numel * ITEMSIZE[t->dtype];
        if (dense > limit)
            return 0;
        limit -= dense;
        if (t->kind == TERSOR_FACTORS) {
            const uint64_t each = 2 * (t->tile + t->rows * tersor_tiles(t));
            if (t->rank > limit / each)
                return 0;
            limit -= t->rank * each;
        }
    }
    return 1;
}

tersor_status tersor_read_fields(tersor_file *file, tersor_cursor *cursor, uint64_t limit)
{
    if (!file->count)
        return TERSOR_OK; /* there may be no array, from whose address to count */
    read_kinds(file, cursor);
    if (!cursor->bad)
        read_factors(file, cursor);
    if (cursor->bad)
        return TERSOR_HEADER;
    return within(file, limit) ? TERSOR_OK : TERSOR_LIMIT;
}
