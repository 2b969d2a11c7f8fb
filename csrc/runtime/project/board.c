/* SPDX-License-Identifier: Apache-2.0 */
#include "board.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define TIMER_CONTROL REGISTER(0xE000E010u)
#define TIMER_RELOAD REGISTER(0xE000E014u)
#define TIMER_VALUE REGISTER(0xE000E018u)
#define COPROCESSORS REGISTER(0xE000ED88u)

/* With `-icount shift=0` an instruction takes a nanosecond, and the clock has 25 MHz. */
enum { INSTRUCTIONS_PER_TICK = 40, LONGEST = 0xFFFFFF, MARGIN = 256 };
static const uint32_t MARK = 0xA5A5A5A5u;

extern uint32_t stack_bottom[], stack_top[];
extern int main(void);
extern void initialise_monitor_handles(void);
void board_reset(void);
void _fini(void); /* the library calls it at the end */

void _fini(void) {}

static volatile uint32_t rounds;

static void stop(void) { _Exit(3); }

static void tick(void) { rounds++; }

/* What the processor starts from: the stack, and where it continues. The timer is the last. */
typedef void handler(void);
static const struct {
    uint32_t *stack;
    handler *handlers[15];
} vectors __attribute__((section(".vectors"), used)) = {
    stack_top, {board_reset, stop, stop, stop, stop, stop, 0, 0, 0, 0, stop, 0, 0, stop, tick}};

void board_reset(void)
{
    COPROCESSORS |= 0xFu << 20; /* floating-point numbers */
    initialise_monitor_handles();
    exit(main());
}

void board_start(void)
{
    uint32_t *word = stack_bottom;
    while ((uintptr_t)word < (uintptr_t)&word - MARGIN)
        *word++ = MARK;
    rounds = 0;
    TIMER_RELOAD = LONGEST;
    TIMER_VALUE = 0;
    TIMER_CONTROL = 7;
}

void board_report(void)
{
    const uint32_t left = TIMER_VALUE;
    const uint64_t ticks = (uint64_t)rounds * (LONGEST + 1u) + (LONGEST - left);
    const uint32_t *word = stack_bottom;
    TIMER_CONTROL = 0;
    while (word < stack_top && *word == MARK)
        word++;
    printf("instructions %lu\nstack %lu\n", (unsigned long)(ticks * INSTRUCTIONS_PER_TICK),
           (unsigned long)((const uint8_t *)stack_top - (const uint8_t *)word));
}
