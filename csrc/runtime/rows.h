/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of coded weights, one after the other. */
#ifndef TERSOR_ROWS_H
#define TERSOR_ROWS_H

#include "tersor_runtime.h"

typedef struct {
    const tersor_tensor *tensor;
    const int16_t *integers;
    tersor_shape kernel;
    int32_t *sums; /* of a row, as the file has it: channels first */
    void *row;     /* as much room, for what is made of them */
} tersor_rows;

/* Decode the integers of a weight into the scratch memory, which must be aligned to 8 bytes. */
tersor_status tersor_start_rows(tersor_rows *rows, const tersor_weight *weight,
                                const tersor_shape *kernel, void *scratch, size_t size);

/* Sums of a row, in the order in which layers go through it: channels last. */
const float *tersor_float_row(const tersor_rows *rows, uint32_t row);

#endif
