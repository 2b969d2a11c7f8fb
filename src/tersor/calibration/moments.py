# SPDX-License-Identifier: Apache-2.0
"""Second moments of what weights are multiplied by, summed in bounded memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

Layer = nn.Linear | Convolution
"""Modules whose output is their weight, as a matrix, times vectors that are seen in their input."""


def inputs_first(module: nn.Module) -> bool:
    """Return whether the inputs of a layer run along the first axis of its weight.

    So they do in Hugging Face's Conv1D, a linear layer with a transposed weight.
    """
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(module).forward is library.Conv1D.forward


def inputs_of_layer(module: nn.Module, weight_shape: Sequence[int]) -> int:
    """Return the length of the vectors that a weight of a module is multiplied by."""
    return weight_shape[0] if inputs_first(module) else math.prod(weight_shape[1:])


_ROWS = 2**16
_ROWS_PER_INPUT = 64
"""Approximate largest number of vectors over which moments in two models are taken: the first, and
the second for each element of a vector."""

_SAMPLED = 64
"""Approximate largest number of positions of a sample over which moments in one model are taken, or
half the number of elements of a vector, if that is more."""

_BLOCK = 2**22
"""Largest number of elements that are copied and multiplied at once: 16 MB."""


class Moment:
    """Running sum of ``x xᵀ`` over input vectors.

    Parameters
    ----------
    groups
        Number of groups of channels, each of which has its own sum.
    inputs
        Number of elements of a vector.
    """

    def __init__(self, groups: int, inputs: int) -> None:
        self.groups, self.inputs, self.rows = groups, inputs, 0
        self._total: Tensor | None = None

    def add(self, layer: nn.Module, x: Tensor) -> None:
        """Count in all vectors that the weight of a layer is multiplied by when it is given x.

        Of layers that are no convolutions the vectors are along the last axis.
        """
        if self._total is None:
            self._total = torch.zeros(self.groups, self.inputs, self.inputs, device=x.device)
        vectors, positions = input_vectors(layer, x)
        most = max(_SAMPLED, self.inputs // 2) * vectors.shape[1]
        vectors, positions = _thinned(vectors, positions, most)
        with torch.autocast(x.device.type, enabled=False):  # a caller's autocast sums in 16 bits
            for block in _blocks(vectors, positions):
                columns = _columns(block, positions)
                if len(columns) != self.groups:  # all groups share one sum
                    columns = columns.movedim(0, 1).flatten(1)[None]
                self._total.baddbmm_(columns, columns.mT)
                self.rows += columns.shape[2]

    def mean(self) -> Tensor:
        """Return the mean on the CPU: (groups, inputs, inputs), or a matrix for one group."""
        assert self._total is not None
        mean = (self._total / self.rows).cpu()
        return mean[0] if self.groups == 1 else mean


@dataclass(frozen=True)
class Joint:
    """Moments of the inputs of a layer in two models: x in one model, y in the other.

    Parameters
    ----------
    own, crossed
        Means of ``x xᵀ`` and ``y xᵀ``, (groups, m, m), on the CPU.
    rows
        Number of vectors.
    """

    own: Tensor
    crossed: Tensor
    rows: int

    def __add__(self, other: Joint) -> Joint:
        """Return the moments over the vectors of both."""
        rows = self.rows + other.rows
        a, b = self.rows / rows, other.rows / rows
        return Joint(a * self.own + b * other.own, a * self.crossed + b * other.crossed, rows)


def mean_vector(layer: Layer, batches: Sequence[Tensor]) -> Tensor:
    """Return the mean of the vectors that a weight is multiplied by, (groups, m), on the CPU."""
    total, rows = torch.zeros((), dtype=torch.float64), 0
    inputs = inputs_of_layer(layer, layer.weight.shape)
    for x in batches:
        samples = 1
        if isinstance(layer, Convolution) and x.ndim == len(layer.kernel_size) + 2:
            # The mean of the patches is the patches' mean of one mean sample.
            samples, x = len(x), x.float().mean(0, keepdim=True)
        vectors, _ = input_vectors(layer, x)
        vectors = vectors.reshape(len(vectors), -1, inputs).float()
        total = total + samples * vectors.sum(1).cpu().double()
        rows += samples * vectors.shape[1]
    return (total / rows).to(torch.float32)


def joint_moments(
    layer: Layer,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    shifts: tuple[Tensor, Tensor] | None = None,
) -> Joint:
    """Return the moments over the vectors that a weight is multiplied by in two models.

    Parameters
    ----------
    layer
        Layer that holds the weight.
    first, second
        Inputs of the layer in the two models: the same number in both, of the same shapes.
    shifts
        Vectors that are first subtracted from those of either model, (groups, m); by default none.

    Returns
    -------
    Joint
        Means of ``x xᵀ`` and ``y xᵀ``, with x from ``first`` and y from ``second``.
    """
    inputs = inputs_of_layer(layer, layer.weight.shape)
    groups = getattr(layer, "groups", 1)
    own = torch.zeros(groups, inputs, inputs, device=first[0].device)
    crossed, rows = torch.zeros_like(own), 0
    with torch.autocast(own.device.type, enabled=False):
        for x, y in _paired_blocks(layer, inputs, first, second):
            if shifts is not None:
                x, y = (v - s.to(v)[..., None] for v, s in zip((x, y), shifts, strict=True))
            own.baddbmm_(x, x.mT)
            crossed.baddbmm_(y, x.mT)
            rows += x.shape[2]
    count = max(rows, 1)
    return Joint((own / count).cpu(), (crossed / count).cpu(), rows)


def _paired_blocks(
    layer: Layer, inputs: int, first: Sequence[Tensor], second: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Yield blocks of the vectors of two inputs, (groups, m, rows) each."""
    most = (_ROWS + _ROWS_PER_INPUT * inputs) // len(first)
    for x, y in zip(first, second, strict=True):
        a, positions = _thinned(*input_vectors(layer, x), most)
        b, _ = _thinned(*input_vectors(layer, y), most)
        for pair in zip(_blocks(a, positions), _blocks(b, positions), strict=True):
            yield [_columns(block, positions) for block in pair]


def energy(weight: Tensor, moments: Tensor | None) -> float:
    """Return the sum of squares of a weight, or ``tr(W H Wᵀ)`` with second moments H."""
    if moments is None:
        return float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
    rows = weight.reshape(len(weight), -1)
    return float(((rows @ moments) * rows).sum(dtype=torch.float64))


def input_vectors(layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """View (groups, *positions, *row) of what a weight is multiplied by; the axes of positions.

    The last axes, together, are the inputs in the order of a flattened row of the weight. In a
    convolution elements overlap: a copy would be as many times larger as the window has elements.
    """
    if not isinstance(layer, Convolution):
        return x.reshape(1, -1, x.shape[-1]), 1
    axes = len(layer.kernel_size)
    if x.ndim == axes + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, _padding(layer), mode=mode)
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(geometry, start=2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    channels = (layer.groups, x.shape[1] // layer.groups)
    grouped = x.unflatten(1, channels)  # type: ignore[no-untyped-call]
    # (batch, groups, channels, *positions, *window)
    return grouped.movedim(1, 0).movedim(2, 2 + axes), 1 + axes


def _thinned(vectors: Tensor, positions: int, most: int) -> tuple[Tensor, int]:
    """Drop every other vector along the longest axis until about ``most`` vectors remain.

    The first axis of positions, the samples, stays whole, because neighbours in an image are
    similar, while samples are not.
    """
    while math.prod(vectors.shape[1 : 1 + positions]) > most and positions > 1:
        longest = max(range(2, positions + 1), key=lambda axis: vectors.shape[axis])
        if vectors.shape[longest] < 4:
            break
        vectors = vectors[(slice(None),) * longest + (slice(None, None, 2),)]
    return vectors, positions


def _padding(layer: Convolution) -> list[int]:
    """Padding as `F.pad` takes it, which is what the module's own forward does or amounts to."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return [width for width in reversed(layer.padding) for _ in range(2)]
    return list(layer._reversed_padding_repeated_twice)


def _blocks(vectors: Tensor, positions: int) -> Iterator[Tensor]:
    """Yield parts of at most `_BLOCK` elements, which come from halving axes of positions."""
    longest = max(range(1, positions + 1), key=lambda axis: vectors.shape[axis])
    if vectors.numel() <= _BLOCK or vectors.shape[longest] < 2:
        yield vectors
        return
    for half in vectors.tensor_split(2, longest):
        yield from _blocks(half, positions)


def _columns(block: Tensor, positions: int) -> Tensor:
    """Return vectors as columns in float32, (groups, inputs, vectors).

    Of a convolution, one element of the window is copied after the other, for all vectors at once:
    that is several times faster than to copy one vector after the other.
    """
    window = block.shape[2 + positions :]
    moved = block.movedim(1 + positions, 1)
    if not window:
        return moved.flatten(2).float()
    shape = (*moved.shape[:2], *window, *moved.shape[2 : 2 + positions])
    columns = torch.empty(shape, device=block.device)
    places: Iterator[Any] = product(*map(range, window))
    for at in places:
        columns[(slice(None), slice(None), *at)] = moved[(..., *at)]
    return columns.flatten(1, 1 + len(window)).flatten(2)
