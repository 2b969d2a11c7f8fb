/* SPDX-License-Identifier: Apache-2.0 */
/* An emulated board with a Cortex-M4: MPS2 with the image AN386, as QEMU has it. */
#ifndef BOARD_H
#define BOARD_H

void board_start(void);  /* begin to count instructions, and mark the free stack */
void board_report(void); /* print the instructions since then, and the bytes of stack that were used */

#endif
