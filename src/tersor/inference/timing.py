"""How long a forward takes with the forms of a weight, on this machine."""

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
"""Vectors that the forms of a matrix are compared with, if it is not known what it gets."""

PIXELS = 14
"""Height and width of the image that those of a convolution are compared with, if none is known;
larger where the window needs it."""

RUNS = 9
"""Times that each form is measured, if it is not `FAR` slower than another."""

FAR = 1.5
"""Times the least time beyond which a form is not measured again."""


def forward_of(use: Use, frozen: FrozenWeight, order: torch.memory_format) -> Callable[[], Tensor]:
    """What a forward does with a weight: as far as the forms differ in it."""
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
    """Size of an image that the window of a convolution, and its padding, fit into."""
    axes = zip(module.kernel_size, module.dilation, strict=True)
    windows = [dilation * (kernel - 1) + 1 for kernel, dilation in axes]
    around = windows if isinstance(module.padding, str) else module.padding
    return [max(PIXELS, window, 1 + p) for window, p in zip(windows, around, strict=True)]


def times(functions: Sequence[Callable[[], object]], use: Use) -> list[float]:
    """Least time of each, after a first call, in turns: what disturbs them only adds to it.

    That of what fails is infinite.
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
    """What one thread spends, where that is all and can be told; else what passes."""
    exact = time.get_clock_info("thread_time").resolution < 1e-6
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone and exact else time.perf_counter


def _finish(device: torch.device) -> None:
    """Wait for what a GPU has been asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
