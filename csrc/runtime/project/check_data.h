/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs, and what torch computes for them. */
#ifndef CHECK_DATA_H
#define CHECK_DATA_H

extern const unsigned check_count;
extern const float check_inputs[], check_outputs[];

#endif
