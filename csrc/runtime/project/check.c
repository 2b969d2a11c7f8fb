/* SPDX-License-Identifier: Apache-2.0 */
/* Run the model, and compare its outputs with those of torch. */
#include <stdio.h>

#include "check_data.h"
#include "model.h"

#ifdef BOARD
#include "board.h"
#endif

static uint8_t arena[MODEL_ARENA_BYTES];
static float output[MODEL_OUTPUT_ELEMENTS];

static float magnitude(float x) { return x < 0.0f ? -x : x; }

/* Largest difference of the outputs, in parts of the largest one. */
static float error(const float *wanted)
{
    float most = 1e-30f, difference = 0.0f;
    size_t i;
    for (i = 0; i < MODEL_OUTPUT_ELEMENTS; i++) {
        const float gap = magnitude(output[i] - wanted[i]);
        if (!(gap <= difference)) /* NaN, too */
            difference = gap;
        if (magnitude(wanted[i]) > most)
            most = magnitude(wanted[i]);
    }
    return difference / most;
}

int main(void)
{
    model state;
    unsigned i, failed = 0;
    tersor_status status = model_init(&state, arena, sizeof arena);
    for (i = 0; status == TERSOR_OK && i < check_count; i++) {
        float found;
#ifdef BOARD
        board_start();
#endif
        status = model_invoke(&state, check_inputs + i * MODEL_INPUT_ELEMENTS, output);
#ifdef BOARD
        board_report();
#endif
        found = error(check_outputs + i * MODEL_OUTPUT_ELEMENTS);
        printf("input %u: relative error %.1e\n", i, (double)found);
        failed += !(found < 1e-3f);
    }
    if (status != TERSOR_OK)
        printf("%s\n", tersor_message(status));
    puts(status == TERSOR_OK && !failed ? "as torch" : "NOT as torch");
    return status == TERSOR_OK && !failed ? 0 : 1;
}
