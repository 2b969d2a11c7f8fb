/* SPDX-License-Identifier: Apache-2.0 */
/* Where a kernel or a window lies on one axis of the input. */
#ifndef TERSOR_WINDOW_H
#define TERSOR_WINDOW_H

#include <stdint.h>

/* Elements `first` to `end` of the kernel are within the input. */
typedef struct {
    uint32_t first, end, start, before, dilation;
} tersor_window;

/* Position in the input of an element of the kernel that is within it. */
static inline uint32_t tersor_at(const tersor_window *window, uint32_t element)
{
    return window->start + element * window->dilation - window->before;
}

static inline tersor_window tersor_window_at(uint32_t start, uint32_t before, uint32_t size,
                                             uint32_t dilation, uint32_t length)
{
    tersor_window window;
    window.start = start, window.before = before, window.dilation = dilation;
    window.first = 0, window.end = size;
    while (window.first < size && start + window.first * dilation < before)
        window.first++;
    while (window.end > window.first && start + (window.end - 1) * dilation >= length + before)
        window.end--;
    return window;
}

#endif
