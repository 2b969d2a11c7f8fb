# SPDX-License-Identifier: Apache-2.0
"""Write each operation of torch as operations of the C runtime.

A new one is a function and a line in `HANDLERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tersor.export.c99 import moves, pools
from tersor.export.c99.plan import (
    Add,
    Apply,
    Clamp,
    Convolution,
    Move,
    Network,
    Softmax,
    Value,
    Weight,
)
from tersor.export.c99.walk import Handler, Unsupported, Walk, shape_of
from tersor.export.packages import quiet

Arguments = dict[str, Any]


def network_of(program: ExportedProgram) -> Network:
    """Return the operations of a traced model.

    Parameters
    ----------
    program
        The traced model.

    Raises
    ------
    InputError
        If an operation has no form in C.
    """
    with quiet():
        functional = program.run_decompositions({})
    return Walk(functional, HANDLERS).run()


def convolution(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write conv1d and conv2d; zeros that are padded before are part of it."""
    weight = _weight(walk, given["weight"])
    value = walk.value(given["input"])
    sizes = weight.rows.shape[2:]
    dilation = moves.pair(given["dilation"])
    before = _before(given["padding"], tuple(sizes), dilation)
    padded = walk.producer(given["input"])
    if isinstance(padded, Move) and padded.padding and padded.fill == 0:
        walk.network.operations.remove(padded)
        value = padded.inputs[0]
        before = before[0] + padded.padding[0], before[1] + padded.padding[1]
    return walk.emit(
        Convolution(
            [value],
            _output(node),
            weight,
            *_gain_and_bias(walk, given["bias"], len(weight.rows)),
            stride=moves.pair(given["stride"]),
            dilation=dilation,
            before=before,
            groups=given["groups"],
        )
    )


def _before(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    if padding == "same":
        above, left = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        return above, left
    return (0, 0) if padding == "valid" else moves.pair(padding, 0)


def _output(node: Node) -> Value:
    result = node.meta["val"]
    result = result[0] if isinstance(result, tuple | list) else result
    return Value(shape_of(result), result.ndim)


def _weight(walk: Walk, node: Any) -> Weight:
    rows = walk.constant(node)
    if rows is None:
        raise Unsupported("a weight that depends on the inputs")
    if rows.ndim == 3:
        rows = rows[:, :, None]
    return Weight(walk.names.get(node), rows.detach())


def _gain_and_bias(walk: Walk, bias: Any, channels: int) -> tuple[Tensor, Tensor]:
    gain = torch.ones(channels, dtype=torch.float64)
    if bias is None:
        return gain, torch.zeros_like(gain)
    added = walk.constant(bias)
    if added is None:
        raise Unsupported("a bias that depends on the inputs")
    return gain, added.double()


def linear(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write a linear layer as the convolution whose kernel is as large as its input."""
    value = walk.value(given["input"])
    if value.rank != 2:
        raise Unsupported(f"linear on a tensor of {value.rank} axes")
    weight = _weight(walk, given["weight"])
    height, width, channels = value.shape
    weight.rows = weight.rows.reshape(-1, channels, height, width)
    scaled = _gain_and_bias(walk, given["bias"], len(weight.rows))
    return walk.emit(Convolution([value], _output(node), weight, *scaled))


def batch_norm(walk: Walk, node: Node, given: Arguments) -> Value:
    """Fold batch normalisation into the layer before it, or write it as a layer of its own."""
    if given.get("training"):
        raise Unsupported("batch normalisation in training mode")
    mean, variance = (walk.constant(given[f"running_{name}"]) for name in ("mean", "var"))
    if mean is None or variance is None:
        raise Unsupported("batch normalisation without running statistics")
    gain = torch.rsqrt(variance.double() + given["eps"])
    if given["weight"] is not None:
        gain = gain * _known(walk, given["weight"])
    added = -mean.double() * gain
    if given["bias"] is not None:
        added = added + _known(walk, given["bias"])
    return _affine(walk, given["input"], gain, added)


def _known(walk: Walk, node: Any) -> Tensor:
    found = walk.constant(node)
    if found is None:
        raise Unsupported("a factor that depends on the inputs")
    return found.double()


def _affine(walk: Walk, node: Any, gain: Tensor, bias: Tensor) -> Value:
    """Multiply channels, and add to them."""
    value, before = walk.value(node), walk.producer(node)
    channels = value.shape[2]
    if value.rank == 2 and not value.is_vector:
        raise Unsupported("factors of the elements of a flattened image")
    gain, bias = gain.expand(channels), bias.expand(channels)
    if isinstance(before, Convolution) and before.limits == (-math.inf, math.inf):
        before.gain, before.bias = before.gain * gain, before.bias * gain + bias
        return value
    one = Weight(None, torch.ones(channels, 1, 1, 1))
    output = Value(value.shape, value.rank)
    return walk.emit(Convolution([value], output, one, gain, bias, groups=channels))


def _per_channel(constant: Tensor, value: Value) -> Tensor:
    """Return a constant that is broadcast to a tensor as one number for each channel."""
    shape = [1] * (value.rank - constant.ndim) + list(constant.shape)
    if len(shape) != value.rank or any(n != 1 for i, n in enumerate(shape) if i != 1):
        raise Unsupported(f"a constant of shape {tuple(constant.shape)}")
    return constant.double().flatten()


def _scaled(change: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Handler:
    """Return the handler of an operation with a constant: ``change`` gives factor and summand."""

    def handler(walk: Walk, node: Node, given: Arguments) -> Value:
        constant = walk.constant(given["other"])
        if constant is None or given.get("alpha", 1) != 1:
            raise Unsupported("two tensors of the run time")
        number = _per_channel(constant, walk.value(given["self"]))
        return _affine(walk, given["self"], *change(number))

    return handler


def add(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write the sum of two tensors, or of a tensor and a constant."""
    pair = given["self"], given["other"]
    constants = [walk.constant(part) for part in pair]
    if constants[0] is not None:
        pair = pair[::-1]
    if any(c is not None for c in constants):
        changed = {"self": pair[0], "other": pair[1], "alpha": given["alpha"]}
        return _scaled(lambda c: (torch.ones_like(c), c))(walk, node, changed)
    first, second = (walk.value(part) for part in pair)
    if first.shape != second.shape or first.rank != second.rank or given["alpha"] != 1:
        raise Unsupported("a sum of tensors of different shapes")
    return walk.emit(Add([first, second], Value(first.shape, first.rank)))


def _limited(low: float, high: float, walk: Walk, node: Any) -> Value:
    """Limit a tensor, in the layer before where that is possible."""
    value, before = walk.value(node), walk.producer(node)
    if isinstance(before, Convolution | Add) and before.limits == (-math.inf, math.inf):
        before.limits = low, high
        return value
    return walk.emit(Clamp([value], Value(value.shape, value.rank), (low, high)))


def relu(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write ReLU."""
    return _limited(0.0, math.inf, walk, given["self"])


def relu6(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write ReLU6."""
    return _limited(0.0, 6.0, walk, given["self"])


def clamp(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write hardtanh and clamp."""
    low = given.get("min_val", given.get("min"))
    high = given.get("max_val", given.get("max"))
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    return _limited(float(low), float(high), walk, given["self"])


def _function(name: str) -> Handler:
    def handler(walk: Walk, node: Node, given: Arguments) -> Value:
        value = walk.value(given["self"])
        return walk.emit(Apply([value], Value(value.shape, value.rank), name))

    return handler


def softmax(walk: Walk, node: Node, given: Arguments) -> Value:
    """Write softmax over the channels."""
    value = walk.value(given["self"])
    if given["dim"] % value.rank != 1:
        raise Unsupported(f"softmax over axis {given['dim']}")
    channels = value.numel if value.rank == 2 else value.shape[2]
    return walk.emit(Softmax([value], Value(value.shape, value.rank), channels))


def same(walk: Walk, node: Node, given: Arguments) -> Value:
    """Return the input: a copy, or dropout in evaluation mode."""
    if given.get("train"):
        raise Unsupported("dropout in training mode")
    return walk.value(given.get("self", given.get("input")))


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("conv1d.default", "conv2d.default"), convolution),
    **dict.fromkeys(("conv1d.padding", "conv2d.padding"), convolution),
    "linear.default": linear,
    "batch_norm.default": batch_norm,
    "_native_batch_norm_legit_no_training.default": batch_norm,
    "add.Tensor": add,
    "sub.Tensor": _scaled(lambda c: (torch.ones_like(c), -c)),
    "mul.Tensor": _scaled(lambda c: (c, torch.zeros_like(c))),
    "div.Tensor": _scaled(lambda c: (1 / c, torch.zeros_like(c))),
    "relu.default": relu,
    "relu6.default": relu6,
    **dict.fromkeys(("hardtanh.default", "clamp.default"), clamp),
    "sigmoid.default": _function("SIGMOID"),
    "tanh.default": _function("TANH"),
    "silu.default": _function("SILU"),
    "hardsigmoid.default": _function("HARD_SIGMOID"),
    "hardswish.default": _function("HARD_SWISH"),
    "softmax.int": softmax,
    **dict.fromkeys(
        ("clone.default", "contiguous.default", "dropout.default", "alias.default"), same
    ),
    **dict.fromkeys(("max_pool1d.default", "max_pool2d.default"), pools.maximum),
    **dict.fromkeys(("avg_pool1d.default", "avg_pool2d.default"), pools.mean),
    **dict.fromkeys(("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default"), pools.adaptive),
    "mean.dim": pools.mean_of_axes,
    **dict.fromkeys(
        (
            "flatten.using_ints",
            "view.default",
            "reshape.default",
            "squeeze.dim",
            "squeeze.dims",
            "squeeze.default",
            "unsqueeze.default",
        ),
        moves.reshape,
    ),
    "pad.default": moves.pad,
    "constant_pad_nd.default": moves.pad,
    "slice.Tensor": moves.take,
    "cat.default": moves.concatenate,
}
