/* SPDX-License-Identifier: Apache-2.0 */
/* Deflate (RFC 1951): codes of canonical Huffman trees, decoded bit by bit. */
#include "internal.h"

enum { LONGEST = 15, LITERALS = 288, DISTANCES = 30, LENGTH_CODES = 19, END = 256 };

typedef struct {
    const uint8_t *in;
    size_t in_size, used;
    uint8_t *out;
    size_t out_size, made;
    uint32_t bits;  /* not used yet, of the last byte */
    unsigned count; /* how many these are */
    int bad;
} stream;

/* A tree: how many codes there are of each length, and the symbols in the order of their codes. */
typedef struct {
    uint16_t count[LONGEST + 1];
    uint16_t symbol[LITERALS];
} tree;

static unsigned take(stream *s, unsigned wanted)
{
    unsigned value;
    while (s->count < wanted) {
        if (s->used == s->in_size) {
            s->bad = 1;
            return 0;
        }
        s->bits |= (uint32_t)s->in[s->used++] << s->count;
        s->count += 8;
    }
    value = s->bits & ((1u << wanted) - 1);
    s->bits >>= wanted;
    s->count -= wanted;
    return value;
}

static void put(stream *s, uint8_t byte)
{
    if (s->made == s->out_size)
        s->bad = 1;
    else
        s->out[s->made++] = byte;
}

/* Make a tree from the length of each symbol's code, 0 if it has none. Too many codes are refused;
 * too few as well, unless there is at most one, of one bit, and `partial` allows it. */
static int grow(tree *t, const uint8_t *lengths, unsigned symbols, int partial)
{
    uint16_t next[LONGEST + 2];
    unsigned i;
    int32_t left = 1, codes = 0, longest = 0;
    memset(t, 0, sizeof *t);
    for (i = 0; i < symbols; i++)
        if (lengths[i])
            t->count[lengths[i]]++;
    for (i = 1, next[1] = 0; i <= LONGEST; i++) {
        left = 2 * left - t->count[i];
        if (left < 0)
            return 0;
        codes += t->count[i];
        if (t->count[i])
            longest = (int32_t)i;
        next[i + 1] = (uint16_t)codes;
    }
    for (i = 0; i < symbols; i++)
        if (lengths[i])
            t->symbol[next[lengths[i]]++] = (uint16_t)i;
    return left == 0 || (partial && longest <= 1);
}

/* The codes of one length are consecutive numbers: count on to where the next length begins. */
static unsigned decode(stream *s, const tree *t)
{
    unsigned length, code = 0, first = 0, index = 0;
    for (length = 1; length <= LONGEST && !s->bad; length++) {
        code |= take(s, 1);
        if (code - first < t->count[length])
            return t->symbol[index + code - first];
        index += t->count[length];
        first = (first + t->count[length]) << 1;
        code <<= 1;
    }
    s->bad = 1;
    return END;
}

static unsigned match_length(stream *s, unsigned symbol)
{
    const unsigned step = symbol - END - 1, extra = step < 8 ? 0 : (step - 4) >> 2;
    if (step > 28) {
        s->bad = 1;
        return 0;
    }
    if (step == 28)
        return 258;
    return 3 + (step < 8 ? step : ((4 + (step & 3)) << extra) + take(s, extra));
}

static size_t match_distance(stream *s, const tree *t)
{
    const unsigned step = decode(s, t), extra = step < 4 ? 0 : (step - 2) >> 1;
    if (s->bad || step >= DISTANCES) {
        s->bad = 1;
        return 1;
    }
    return 1 + (step < 4 ? (size_t)step : ((size_t)(2 + (step & 1)) << extra) + take(s, extra));
}

static void copy(stream *s, unsigned length, size_t distance)
{
    if (distance > s->made)
        s->bad = 1;
    for (; length && !s->bad; length--)
        put(s, s->out[s->made - distance]);
}

static void coded_block(stream *s, const tree *literals, const tree *distances)
{
    for (;;) {
        const unsigned symbol = decode(s, literals);
        if (s->bad || symbol == END)
            return;
        if (symbol < END) {
            put(s, (uint8_t)symbol);
        } else {
            const unsigned length = match_length(s, symbol);
            copy(s, length, match_distance(s, distances));
        }
    }
}

static void stored_block(stream *s)
{
    unsigned size, inverse;
    s->bits = s->count = 0; /* the rest of the byte */
    size = take(s, 16);
    inverse = take(s, 16);
    if (size != (~inverse & 0xFFFF))
        s->bad = 1;
    for (; size && !s->bad; size--) {
        const unsigned byte = take(s, 8);
        if (!s->bad)
            put(s, (uint8_t)byte);
    }
}

static void fixed_block(stream *s)
{
    uint8_t lengths[LITERALS];
    tree literals, distances;
    unsigned i;
    for (i = 0; i < LITERALS; i++)
        lengths[i] = (uint8_t)(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    grow(&literals, lengths, LITERALS, 0);
    memset(lengths, 5, 32);
    grow(&distances, lengths, 32, 0);
    coded_block(s, &literals, &distances);
}

/* Lengths of codes, which are coded themselves, with repetitions. */
static void read_lengths(stream *s, const tree *t, uint8_t *lengths, unsigned count)
{
    unsigned i = 0;
    while (i < count && !s->bad) {
        const unsigned symbol = decode(s, t);
        unsigned times = 1;
        uint8_t value = (uint8_t)symbol;
        if (symbol >= 16) {
            value = symbol == 16 && i ? lengths[i - 1] : 0;
            s->bad |= symbol == 16 && !i;
            times = symbol == 16 ? 3 + take(s, 2) : symbol == 17 ? 3 + take(s, 3) : 11 + take(s, 7);
        }
        if (s->bad || times > count - i) {
            s->bad = 1;
            return;
        }
        memset(lengths + i, value, times);
        i += times;
    }
}

static void dynamic_block(stream *s)
{
    static const uint8_t order[LENGTH_CODES] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[286 + DISTANCES];
    tree literals, distances;
    unsigned i;
    const unsigned many = 257 + take(s, 5), far = 1 + take(s, 5), codes = 4 + take(s, 4);
    memset(lengths, 0, sizeof lengths);
    for (i = 0; i < codes; i++)
        lengths[order[i]] = (uint8_t)take(s, 3);
    if (s->bad || many > 286 || far > DISTANCES || !grow(&literals, lengths, LENGTH_CODES, 0)) {
        s->bad = 1;
        return;
    }
    read_lengths(s, &literals, lengths, many + far);
    if (s->bad || !lengths[END] || !grow(&literals, lengths, many, 1) ||
        !grow(&distances, lengths + many, far, 1)) {
        s->bad = 1;
        return;
    }
    coded_block(s, &literals, &distances);
}

tersor_status tersor_inflate(const uint8_t *in, size_t in_size, uint8_t *out, size_t out_size)
{
    stream s = {0};
    unsigned last = 0;
    s.in = in;
    s.in_size = in_size;
    s.out = out;
    s.out_size = out_size;
    while (!last && !s.bad) {
        last = take(&s, 1);
        switch (take(&s, 2)) {
        case 0: stored_block(&s); break;
        case 1: fixed_block(&s); break;
        case 2: dynamic_block(&s); break;
        default: s.bad = 1;
        }
    }
    return s.bad || s.used != in_size || s.made != out_size ? TERSOR_DEFLATE : TERSOR_OK;
}
