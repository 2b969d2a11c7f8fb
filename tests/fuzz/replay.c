/* SPDX-License-Identifier: Apache-2.0 */
/* Run the harness on files and on seeded random changes of them, where there is no fuzzer:
 *
 *     replay TIMES FILE... */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t draw(uint32_t below) /* xorshift of Marsaglia (2003) */
{
    static uint32_t state = 1;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}

static void try_copy(const uint8_t *data, size_t size, unsigned changes)
{
    uint8_t *copy = malloc(size + !size); /* of the exact size, so that reading beyond is seen */
    if (!copy)
        abort();
    memcpy(copy, data, size);
    for (; changes && size; changes--) {
        uint8_t *at = copy + draw((uint32_t)size);
        *at = (uint8_t)(draw(2) ? draw(256) : *at ^ 1u << draw(8));
    }
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

int main(int count, char **arguments)
{
    static uint8_t data[1 << 16];
    const int times = count > 1 ? atoi(arguments[1]) : 0;
    int i, n;
    for (i = 2; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        const size_t size = file ? fread(data, 1, sizeof data, file) : 0;
        if (!file)
            return 2;
        fclose(file);
        try_copy(data, size, 0);
        for (n = 0; n < times; n++) {
            const size_t shorter = draw(4) ? size : draw((uint32_t)size + 1);
            try_copy(data, shorter, 1 + draw(4));
        }
    }
    return 0;
}
