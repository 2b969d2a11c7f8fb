/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the decoder share. */
#ifndef TERSOR_INTERNAL_H
#define TERSOR_INTERNAL_H

#include <string.h>

#include "tersor_decoder.h"

/* Reads the fields of a header and never beyond the end. Once a field is bad, all later are 0. */
typedef struct {
    const uint8_t *data;
    size_t size, used;
    int bad;
} tersor_cursor;

#define TERSOR_LARGEST_FIELD ((uint64_t)1 << 48)
#define TERSOR_EXPANSION ((uint64_t)1032) /* most bytes that deflate makes of one */

const uint8_t *tersor_raw(tersor_cursor *cursor, uint64_t size); /* 0 if there is less */
uint8_t tersor_byte(tersor_cursor *cursor, unsigned limit);
uint32_t tersor_u32(tersor_cursor *cursor);
uint64_t tersor_integer(tersor_cursor *cursor, uint64_t limit);

uint32_t tersor_load32(const uint8_t *bytes); /* little-endian */
int tersor_intact(const uint8_t *data, size_t size, uint32_t checksum);

/* Names of all tensors into the bytes beyond `start`; then whether they are valid and differ. */
tersor_status tersor_read_names(tersor_file *file, tersor_cursor *cursor, size_t start);

int tersor_is_utf8(const uint8_t *text, size_t size);

/* All other fields. Sections, of which the first begins at `start`, and the tail must end where the
 * file does. */
tersor_status tersor_read_fields(tersor_file *file, tersor_cursor *cursor, uint64_t limit);
tersor_status tersor_read_sections(tersor_file *file, tersor_cursor *cursor, const uint8_t *data,
                                   size_t start, size_t size);
tersor_status tersor_read_tail(tersor_file *file, const uint8_t *data, size_t size);
int tersor_section_intact(const tersor_section *section);

/* Unfactored tensors: the most bytes of a group; bytes of an element and of a word, as stored; bytes of
 * the group that a section holds. */
enum { TERSOR_GROUP = 1 << 20 };
unsigned tersor_stored_size(const tersor_tensor *tensor);
unsigned tersor_word_size(const tersor_tensor *tensor);
uint32_t tersor_group_size(const tersor_section *section);

/* Raw deflate that must give exactly `out_size` bytes and end exactly with its input. */
tersor_status tersor_inflate(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size);

/* Coded integers of both factors: the codebook by columns, then slice by slice the latent by rows,
 * in the order of coding. The section is that of the first slice. */
tersor_status tersor_read_factors(const tersor_tensor *tensor, const tersor_section *section,
                                  tersor_space *space);

/* Slices of a latent, and weight rows of one of them. */
uint64_t tersor_slices(const tersor_tensor *tensor);
uint64_t tersor_slice_rows(const tersor_tensor *tensor, uint64_t slice);

/* Tiles of a row of the weight: whole ones, and a padded one. */
uint64_t tersor_tiles(const tersor_tensor *tensor);

#endif
