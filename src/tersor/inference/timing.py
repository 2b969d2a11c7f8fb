# SPDX-License-Identifier: Apache-2.0
"""Measure how long a forward pass takes on this machine with each form of a weight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tersor.inference.uses import CONVOLUTIONS, Use
from tersor.nn.frozen import FrozenWeight

BATCH = 16
"""Number of vectors with which the forms of a matrix are compared if its inputs are unknown."""

PIXELS = 14
"""Height and width of the image with which the forms of a convolution are compared if its inputs
are unknown. The image is larger if the window needs it."""

RUNS = 9
"""Number of measurements of each form that is at most `FAR` times slower than the fastest."""

FAR = 1.5
"""A form that takes longer than this multiple of the least time is not measured again."""


def forward_of(use: Use, frozen: FrozenWeight, order: torch.memory_format) -> Callable[[], Tensor]:
    """Return a function that does the part of a forward pass in which the forms differ.

    Parameters
    ----------
    use
        The weight, its sites, and a typical input if one is known.
    frozen
        The form to use.
    order
        Memory format of the images that a convolution takes and gives.

    Returns
    -------
    callable
        Function without arguments, which returns the output.
    """
    given = use.input
    if use.is_table:
        index = given
        if index is None:
            index = torch.arange(BATCH, device=frozen.device) % frozen.shape[0]
        return (lambda: frozen.embed(index)) if frozen.by_rows else (lambda: frozen()[index])
    if all(isinstance(site.module, nn.Linear) for site in use.sites):
        vectors = given
        if vectors is None:
            vectors = torch.randn(BATCH, frozen.shape[1]).to(frozen.device, frozen.dtype)
        return lambda: frozen.linear(vectors, None)
    modules = {site.module for site in use.sites}
    if len(modules) == 1 and isinstance(module := modules.pop(), CONVOLUTIONS):
        image = given
        if image is None:
            size = _size_for(module)
            image = torch.randn(1, module.in_channels, *size).to(frozen.device, frozen.dtype)
        if not isinstance(module, nn.Conv2d) or image.dim() != 4:
            order = torch.contiguous_format
        x, norm = image.contiguous(memory_format=order), None if frozen.is_dense else use.norm

        def convolve() -> Tensor:
            y = frozen.convolve(module, x).contiguous(memory_format=order)
            return y if norm is None else cast(Tensor, norm(y))

        return convolve
    return frozen


def _size_for(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return the size of an image that a convolution's window and padding fit into."""
    axes = zip(module.kernel_size, module.dilation, strict=True)
    windows = [dilation * (kernel - 1) + 1 for kernel, dilation in axes]
    around = windows if isinstance(module.padding, str) else module.padding
    return [max(PIXELS, window, 1 + p) for window, p in zip(windows, around, strict=True)]


def times(functions: Sequence[Callable[[], object]], use: Use) -> list[float]:
    """Return the least time of each function in seconds, or infinity for one that fails.

    Each function is called once without measurement. Then all are measured in turns. Disturbances
    by other work only add to a time, so that the least one is the best estimate.
    """
    least = [_first(function, use) for function in functions]
    for _ in range(RUNS - 1):
        for i, function in enumerate(functions):
            if least[i] <= FAR * min(least) < math.inf:
                least[i] = min(least[i], _timed(function, use))
    return least


def _first(function: Callable[[], object], use: Use) -> float:
    try:
        function()
        return _timed(function, use)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, MemoryError):
        return math.inf


def _timed(function: Callable[[], object], use: Use) -> float:
    device = use.holder.device
    if use.others is not None:
        use.others.sum()
    _finish(device)
    clock = _clock(device)
    start = clock()
    function()
    _finish(device)
    return clock() - start


def _clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of the thread's CPU time, or of the wall time.

    CPU time is used only if torch computes on the CPU in one thread, and if the clock has a
    resolution better than a microsecond.
    """
    exact = time.get_clock_info("thread_time").resolution < 1e-6
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone and exact else time.perf_counter


def _finish(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
