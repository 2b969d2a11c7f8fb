/* SPDX-License-Identifier: Apache-2.0 */
/* Whole files, for those who have malloc. */
#ifndef TERSOR_WHOLE_H
#define TERSOR_WHOLE_H

#include "tersor_decoder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What becomes of each tensor: its description, its elements, and how many bytes these are. */
typedef void tersor_visit(void *context, const tersor_tensor *tensor, const uint8_t *elements,
                          size_t size);

/* Decode all tensors of a file, in its order, and visit each. For `limit` see tersor_open;
 * TERSOR_SPACE means that there is not enough memory. */
tersor_status tersor_decode_whole(const uint8_t *data, size_t size, uint64_t limit,
                                  tersor_visit *visit, void *context);

#ifdef __cplusplus
}
#endif

#endif
