/* SPDX-License-Identifier: Apache-2.0 */
/* Print the metadata of a file, and its content hash. */
#include <stdio.h>

#include "tersor_decoder.h"

int main(int count, char **arguments)
{
    static uint8_t data[1 << 18], bytes[1 << 18];
    static tersor_tensor tensors[64];
    static tersor_section sections[64];
    tersor_file file = {0};
    tersor_text key, value;
    FILE *source = count == 2 ? fopen(arguments[1], "rb") : 0;
    const size_t size = source ? fread(data, 1, sizeof data, source) : 0;
    size_t i;
    file.bytes = bytes;
    file.bytes_size = sizeof bytes;
    file.tensors = tensors;
    file.tensors_size = file.sections_size = 64;
    file.sections = sections;
    if (tersor_open(&file, data, size, 1 << 20))
        return 2;
    for (i = 0; tersor_metadata(&file, i, &key, &value); i++) {
        fwrite(key.data, 1, key.size, stdout);
        putchar('=');
        fwrite(value.data, 1, value.size, stdout);
        putchar('\n');
    }
    for (i = 0; file.content_hash && i < 32; i++)
        printf("%02x", file.content_hash[i]);
    return 0;
}
