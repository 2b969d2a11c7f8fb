/* SPDX-License-Identifier: Apache-2.0 */
/* The range coder: bits with a probability that adapts, and flat ones. */
#ifndef TERSOR_CODER_H
#define TERSOR_CODER_H

#include <stddef.h>

#include "tables.h"

enum { COUNTS = 255, LEAST = 8, ONE = (1 << 22) - 1 };

typedef struct {
    const uint8_t *data;
    size_t size, used;
    uint32_t range, code;
} decoder;

static uint32_t next_byte(decoder *d) { return d->used < d->size ? d->data[d->used++] : 0; }

static void start(decoder *d, const uint8_t *data, size_t size)
{
    int i;
    d->data = data;
    d->size = size;
    d->used = 0;
    d->range = 0xFFFFFFFFu;
    d->code = 0;
    for (i = 0; i < 4; i++)
        d->code = d->code << 8 | next_byte(d);
}

static unsigned choose(decoder *d, uint32_t bound)
{
    const unsigned bit = d->code < bound;
    if (bit) {
        d->range = bound;
    } else {
        d->range -= bound;
        d->code -= bound;
    }
    while (d->range < 1u << 24) {
        d->range <<= 8;
        d->code = d->code << 8 | next_byte(d);
    }
    return bit;
}

static unsigned flat(decoder *d)
{
    const uint32_t half = d->range >> 1;
    d->range = 2 * half;
    return choose(d, half);
}

static uint32_t flat_bits(decoder *d, unsigned count)
{
    uint32_t value = 0;
    while (count--)
        value = value << 1 | flat(d);
    return value;
}

/* A probability is kept in 22 bits, with its count in the 8 below them. */
static unsigned decision(decoder *d, uint32_t *probability)
{
    uint32_t p = *probability >> 8, count = *probability & 255, coded = p >> 7;
    const uint64_t rate = RATE[count];
    unsigned bit;
    coded = coded < LEAST ? LEAST : coded > 32768 - LEAST ? 32768 - LEAST : coded;
    bit = choose(d, (d->range >> 15) * coded);
    if (bit)
        p += (uint32_t)((ONE - p) * rate >> 16);
    else
        p -= (uint32_t)((p * rate + 65535) >> 16); /* the gap is negative: rounded down */
    *probability = p << 8 | (count < COUNTS ? count + 1 : count);
    return bit;
}

static uint32_t escape(decoder *d)
{
    uint32_t value = 0;
    unsigned bits = 2;
    while (bits < 16 && flat(d))
        value += 1u << bits++;
    return value + flat_bits(d, bits);
}

#endif
