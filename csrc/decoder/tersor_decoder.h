/* SPDX-License-Identifier: Apache-2.0 */
/* A decoder of tersor files in portable C99, written from docs/format.md.
 *
 * It takes no memory but what the caller gives, calls nothing but memcpy and memset, does not
 * recurse, needs about 2 kB of stack, and computes in integers, apart from one multiplication for
 * each weight. The file may hold anything: all of it is checked before it is used.
 *
 *     tersor_file file = {0};
 *     while ((status = tersor_open(&file, data, size, limit)) == TERSOR_SPACE)
 *         ...make its bytes, tensors and sections at least as many as file.needs says...
 *     while ((status = tersor_decode(&file, i, output, output_size, &space)) == TERSOR_SPACE)
 *         ...make the arrays of space at least as large as tersor_needs says...
 *
 * tersor_whole.c does this with malloc. The file must stay in memory while it is read.
 */
#ifndef TERSOR_DECODER_H
#define TERSOR_DECODER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    TERSOR_OK,
    TERSOR_SPACE,    /* an array of the caller is too small */
    TERSOR_MAGIC,    /* no tersor file */
    TERSOR_VERSION,  /* a version of the format that is not known here */
    TERSOR_CHECKSUM, /* damaged or cut off */
    TERSOR_DEFLATE,  /* compressed data that is invalid, or not of the size that was announced */
    TERSOR_HEADER,   /* a field of the header is missing, unknown or contradicts another */
    TERSOR_LIMIT,    /* would take more bytes than the caller allows */
    TERSOR_CONTENT,  /* coded integers or values that are invalid */
    TERSOR_POSITION  /* there is no such tensor */
} tersor_status;

enum { TERSOR_EXACT, TERSOR_ROUNDED, TERSOR_FACTORS, TERSOR_ALIAS }; /* kinds */

/* One tensor, as the header describes it. */
typedef struct {
    const uint8_t *name; /* UTF-8, not terminated */
    size_t name_size;
    const uint8_t *lengths; /* of the axes, as coded: see tersor_length */
    uint8_t axes, dtype, kind, trellis, codebook_start, latent_start;
    uint64_t numel, rows; /* elements; length of the first axis, 1 if there is none */
    uint64_t tile, rank;  /* of factors */
    uint64_t slice_rows;  /* of factors: rows of each slice but the last; all, if there is one */
    uint32_t scale;       /* of factors: the bits of a float32 */
    uint32_t before[4];   /* words in its first group before an unfactored tensor: see tersor_section */
    size_t section;       /* of the first slice of factors, or piece of an unfactored tensor */
    size_t target;        /* of an alias */
    size_t scratch;
} tersor_tensor;

/* One section of the file. */
typedef struct {
    const uint8_t *data;
    size_t size;
    uint32_t checksum;
    uint32_t words[4]; /* of a group of unfactored tensors: those of at least 1, 2, 4 and 8 bytes */
} tersor_section;

typedef struct {
    uint64_t bytes, tensors, sections; /* elements of the arrays of a tersor_file */
    uint64_t output, integers, scales; /* bytes of a tensor; elements of the arrays of its space */
} tersor_needs;

/* UTF-8, not terminated. */
typedef struct {
    const uint8_t *data;
    size_t size;
} tersor_text;

/* A file. The caller gives three arrays and their numbers of elements; tersor_open fills them. */
typedef struct {
    uint8_t *bytes; /* the header and the names */
    size_t bytes_size;
    tersor_tensor *tensors;
    size_t tensors_size;
    tersor_section *sections;
    size_t sections_size;
    tersor_needs needs;
    size_t count; /* of tensors */
    uint64_t source_bytes;
    tersor_text metadata;        /* as coded: see tersor_metadata */
    const uint8_t *content_hash; /* 32 bytes, which nothing here compares; 0 if there are none */
} tersor_file;

/* What the coder expects: one factor of a magnitude. */
typedef struct {
    int32_t log, seen;
} tersor_scale;

/* Where tensors are decoded. The caller gives the arrays and their numbers of elements. */
typedef struct {
    int16_t *integers;
    size_t integers_size;
    tersor_scale *scales;
    size_t scales_size;
    uint8_t *bytes; /* a group of unfactored tensors: 2^20 at most */
    size_t bytes_size;
    const tersor_section *held; /* what `bytes` holds: 0 at first, and again for another file */
    uint32_t probabilities[40 * 2 * 16];
} tersor_space;

/* Read the header. `limit` is the largest number of bytes that all decoded tensors and factors may
 * take. It also bounds what describes them: a header of more than 2^18 bytes, 4 times the bytes of the
 * file and limit / 128 is TERSOR_LIMIT. After TERSOR_SPACE `file->needs` has the numbers of elements that are known to be needed;
 * give these and call again. After TERSOR_OK `file->tensors` describes `file->count` tensors. */
tersor_status tersor_open(tersor_file *file, const uint8_t *data, size_t size, uint64_t limit);

/* Length of an axis of a tensor. */
uint64_t tersor_length(const tersor_tensor *tensor, unsigned axis);

/* An entry of the metadata; 0 if there are not as many. */
int tersor_metadata(const tersor_file *file, size_t position, tersor_text *key, tersor_text *value);

/* Bytes of an element of a data type, by its number in the format. */
unsigned tersor_itemsize(unsigned dtype);

/* Name of a data type, as in safetensors. */
const char *tersor_dtype(unsigned dtype);

/* What decoding a tensor takes. */
tersor_needs tersor_tensor_needs(const tersor_file *file, size_t position);

/* Write the elements of a tensor, row-major and little-endian as in safetensors. Unfactored tensors of
 * one group that are decoded one after the other are decompressed once. */
tersor_status tersor_decode(const tersor_file *file, size_t position, uint8_t *output,
                            size_t output_size, tersor_space *space);

/* One row of factors at a time, for those who have no room for the dense tensor: decode the integers of
 * both factors into the arrays of the space, from the section of the first slice on; then sum up the
 * products of a row below `rows`, numel / rows of them. Each sum times the scale is an element, before it is
 * rounded to the tensor's type. Sums are at most 2^24, so that the product is the same in float32. */
tersor_needs tersor_factor_needs(const tersor_tensor *tensor);
tersor_status tersor_decode_factors(const tersor_tensor *tensor, const tersor_section *section,
                                    tersor_space *space);
void tersor_row(const tersor_tensor *tensor, const int16_t *integers, uint64_t row, int32_t *sums);

/* A status in words. */
const char *tersor_message(tersor_status status);

#ifdef __cplusplus
}
#endif
#endif
