/* SPDX-License-Identifier: Apache-2.0 */
/* An arena that is too small, and two models at a time whose arenas are not aligned. */
#include <stdio.h>

#include "check_data.h"
#include "model.h"

static uint8_t arenas[2][MODEL_ARENA_BYTES];
static float outputs[2][MODEL_OUTPUT_ELEMENTS];

int main(void)
{
    model states[2];
    size_t i;
    tersor_status status = TERSOR_SPACE;
    for (i = 0; i < MODEL_ARENA_BYTES - 7 && status == TERSOR_SPACE; i += 999)
        status = model_init(states, arenas[0], i);
    printf("the arena is too small: %s\n", tersor_message(status));
    for (i = 0, status = TERSOR_OK; i < 2 && status == TERSOR_OK; i++)
        status = model_init(states + i, arenas[i], sizeof arenas[i]);
    for (i = 0; i < 2 && status == TERSOR_OK; i++)
        status = model_invoke(states + i, check_inputs, outputs[i]);
    for (i = 0; i < MODEL_OUTPUT_ELEMENTS; i++)
        if (!(outputs[0][i] == outputs[1][i]))
            return 1;
    printf("two at a time, in odd places: %s\n", tersor_message(status));
    return 0;
}
