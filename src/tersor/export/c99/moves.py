# SPDX-License-Identifier: Apache-2.0
"""Write operations that only move elements."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from tersor.export.c99.plan import Grid, Move, Shape, Value
from tersor.export.c99.walk import Unsupported, Walk, shape_of


def pair(numbers: Any, missing: int = 1) -> tuple[int, int]:
    """Return numbers for height and width, from those of one or two axes, or one for both."""
    if isinstance(numbers, int):
        return numbers, numbers
    if len(numbers) == 1:
        return missing, int(numbers[0])
    return int(numbers[0]), int(numbers[1])


def axis_of(dim: int, value: Value) -> int:
    """Return the position in a shape (height, width, channels) of an axis of torch.

    Raises
    ------
    Unsupported
        If it is the axis of samples, or of a flattened image.
    """
    dim %= value.rank
    if dim == 0 or (value.rank == 2 and not value.is_vector):
        raise Unsupported("an axis of samples, or of a flattened image")
    return 2 if dim == 1 else dim + 2 - value.rank


def _grid(block: Shape, source: Shape, start: Shape, step: Shape, to: Shape, at: Shape) -> Grid:
    """Return the grid of a block of an input at ``start``, to ``at`` in the output."""
    (height, width, channels), (_, in_width, in_channels) = block, source
    first = (start[0] * in_width + start[1]) * in_channels + start[2]
    target = (at[0] * to[1] + at[1]) * to[2] + at[2]
    steps = (step[0] * in_width * in_channels, step[1] * in_channels, to[1] * to[2], to[2])
    return Grid(height, width, channels, first, target, steps)


def _with(shape: Shape, axis: int, number: int) -> Shape:
    height, width, channels = (number if i == axis else n for i, n in enumerate(shape))
    return height, width, channels


def reshape(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write flatten and what only adds or drops axes: memory stays as it is."""
    value = walk.value(given.get("self", given.get("input")))
    result = node.meta["val"]
    if result.ndim == 2 and len(result) == 1:
        shape = value.shape
    else:
        shape = shape_of(result)
        if shape != value.shape:
            raise Unsupported(f"a change of shape to {tuple(result.shape)}")
    return Value(shape, result.ndim, value)


def pad(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write constant padding."""
    value = walk.value(given["self"])
    if given.get("mode", "constant") != "constant" or min(given["pad"]) < 0:
        raise Unsupported("padding other than with a constant")
    before: Shape = (0, 0, 0)
    for i, number in enumerate(given["pad"][::2]):
        if number or given["pad"][2 * i + 1]:
            before = _with(before, axis_of(value.rank - 1 - i, value), number)
    output = Value(shape_of(node.meta["val"]), value.rank)
    grid = _grid(value.shape, value.shape, (0, 0, 0), (1, 1, 1), output.shape, before)
    plain = output.shape[2] == value.shape[2]
    after = [o - n - b for o, n, b in zip(output.shape, value.shape, before, strict=True)]
    padding = (before[0], before[1], after[0], after[1]) if plain else None
    return walk.emit(Move([value], output, [grid], float(given["value"] or 0), padding))


def take(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write a slice of one axis."""
    value = walk.value(given["self"])
    length = node.args[0].meta["val"].shape[given["dim"]]  # type: ignore[union-attr]
    start, stop, step = slice(given["start"], given["end"], given["step"]).indices(length)
    if (start, step) == (0, 1) and stop >= length:
        return value
    axis = axis_of(given["dim"], value)
    if axis == 2 and step != 1:
        raise Unsupported("every other channel")
    output = Value(shape_of(node.meta["val"]), value.rank)
    steps = _with((1, 1, 1), axis, step)
    first = _with((0, 0, 0), axis, start)
    grid = _grid(output.shape, value.shape, first, steps, output.shape, (0, 0, 0))
    return walk.emit(Move([value], output, [grid]))


def concatenate(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write a concatenation."""
    values = [walk.value(part) for part in given["tensors"]]
    output = Value(shape_of(node.meta["val"]), values[0].rank)
    axis = max(axis_of(given["dim"], value) for value in values)
    grids, at = [], 0
    for value in values:
        place = _with((0, 0, 0), axis, at)
        grids.append(_grid(value.shape, value.shape, (0, 0, 0), (1, 1, 1), output.shape, place))
        at += value.shape[axis]
    return walk.emit(Move(values, output, grids))
