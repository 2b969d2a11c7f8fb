# SPDX-License-Identifier: Apache-2.0
"""Write pooling."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from tersor.export.c99.moves import pair
from tersor.export.c99.plan import Pool, Value
from tersor.export.c99.walk import Unsupported, Walk, shape_of


def _written(
    walk: Walk, node: Node, given: dict[str, Any], kind: str, whole_windows: bool = True
) -> Value:
    window = pair(given["kernel_size"])
    output = Value(shape_of(node.meta["val"]), node.meta["val"].ndim)
    stride = pair(given["stride"]) if given["stride"] else window
    before = pair(given["padding"], 0)
    value = walk.value(given["self"])
    return walk.emit(Pool([value], output, kind, window, stride, before, whole_windows))


def maximum(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write max_pool1d and max_pool2d."""
    if pair(given["dilation"]) != (1, 1):
        raise Unsupported("max pooling with gaps")
    return _written(walk, node, given, "MAXIMUM")


def mean(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write avg_pool1d and avg_pool2d."""
    if given.get("divisor_override") or given["ceil_mode"]:
        raise Unsupported("average pooling with ceil_mode or another divisor")
    return _written(walk, node, given, "MEAN", given["count_include_pad"])


def _even(walk: Walk, source: Any, output: Value) -> Value:
    """Write the means of windows that divide a tensor."""
    value = walk.value(source)
    (height, width, _), (rows, columns, _) = value.shape, output.shape
    if height % rows or width % columns:
        raise Unsupported("adaptive pooling to sizes that do not divide the input's")
    window = height // rows, width // columns
    return walk.emit(Pool([value], output, "MEAN", window, window))


def adaptive(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write adaptive average pooling."""
    result = node.meta["val"]
    return _even(walk, given["self"], Value(shape_of(result), result.ndim))


def mean_of_axes(walk: Walk, node: Node, given: dict[str, Any]) -> Value:
    """Write the mean over all places."""
    value = walk.value(given["self"])
    axes = sorted(dim % value.rank for dim in given["dim"])
    if value.rank == 2 or axes != list(range(2, value.rank)):
        raise Unsupported(f"a mean over the axes {given['dim']}")
    return _even(walk, given["self"], Value((1, 1, value.shape[2]), node.meta["val"].ndim))
