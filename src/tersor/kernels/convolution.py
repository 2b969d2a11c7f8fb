# SPDX-License-Identifier: Apache-2.0
"""Convolve with packed weights: ``tersor::conv2d`` is one operator for all packings.

There are two: factors as lists of multiples (`tersor.kernels.listed`), and dense weights
(`tersor.kernels.direct`), for weights that are faster when recomposed. Native kernels compute in
float32, on images that are contiguous or channels last. Each packing needs one of these memory
formats: other inputs are copied into it, and outputs have it. A convolution in one dimension
is a convolution of images of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from tersor.errors import InputError
from tersor.kernels.arguments import (
    autocast,
    check_bias,
    check_device,
    forward_derivatives_wanted,
)
from tersor.kernels.cpu import instructions, module
from tersor.kernels.packing import Filters, buffers
from tersor.kernels.padding import pad
from tersor.kernels.registry import PACKINGS, packing_of

torch.library.define(
    "tersor::conv2d",
    "(Tensor x, Tensor[] tensors, Tensor? bias, str packing, int[] layout, int[] place) -> Tensor",
)
torch.library.define(
    "tersor::conv2d_weight", "(Tensor[] tensors, str packing, int[] layout) -> Tensor"
)


class Place(NamedTuple):
    """The places of the windows of a convolution: stride, padding and dilation."""

    stride_h: int
    stride_w: int
    top: int
    bottom: int
    left: int
    right: int
    dilation_h: int
    dilation_w: int

    def output(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the output; below 1 if the kernel does not fit into images."""
        height = size[0] + self.top + self.bottom - self.dilation_h * (kernel[0] - 1) - 1
        width = size[1] + self.left + self.right - self.dilation_w * (kernel[1] - 1) - 1
        return height // self.stride_h + 1, width // self.stride_w + 1


def conv2d(x: Tensor, weight: Filters, bias: Tensor | None, place: Place) -> Tensor:
    """Return the convolution of images with a packed weight, padded with zeros.

    Parameters
    ----------
    x
        Images of a floating-point type, shape (n, channels, height, width), with any strides; n may
        be 0.
    weight
        Packed weight, from `Listed.pack` or `Direct.pack`, on the device of x. It has no gradient.
        With lists the inputs are rounded to about 12 bits: the relative error of the output, in the
        Frobenius norm, is below 0.1 %.
    bias
        Bias, shape (rows,), or None.
    place
        Stride, padding and dilation.

    Returns
    -------
    Tensor
        Shape (n, rows, ...), of the type of x, or of the type of an enclosing autocast region;
        contiguous or channels last.

    Raises
    ------
    InputError
        If shapes, types or devices do not fit together.
    """
    # Custom operators lose derivatives in forward mode; the reference does not.
    if forward_derivatives_wanted():
        return autocast(reference(x, weight, bias, place))
    result: Tensor = torch.ops.tersor.conv2d(
        x, list(weight.tensors), bias, weight.name, list(weight.layout), list(place)
    )
    return autocast(result)


def reference(x: Tensor, weight: Filters, bias: Tensor | None, place: Place) -> Tensor:
    """Return the result that defines `conv2d`, computed in plain torch with the dense weight."""
    bias = None if bias is None else bias.to(torch.float32)
    padded = pad(x.to(torch.float32), place[4:6] + place[2:4])
    y = F.conv2d(padded, weight.recompose(), bias, place[:2], 0, place[6:], weight.sizes[4])
    return y.to(x.dtype).contiguous(memory_format=weight.order)


class Plan(NamedTuple):
    """A prepared call of a native kernel: all arguments except input, bias and output."""

    kernel: Callable[..., None]
    shape: tuple[int, ...]
    """Shape of the output."""
    order: torch.memory_format
    sizes: tuple[Any, ...]
    tensors: tuple[Tensor, ...]
    """The tensors whose addresses are in ``sizes``, which must not be freed."""


def plan(shape: Sequence[int], weight: Filters, place: Place, result: tuple[int, ...]) -> Plan:
    """Return the call for images of a shape, (n, channels, height, width).

    Parameters
    ----------
    shape
        Shape of the images.
    weight
        Packed weight, on the CPU.
    place
        Stride, padding and dilation.
    result
        Shape of the output.
    """
    check_device(torch.device("cpu"), *weight.tensors)
    _, _, *kernel, _ = weight.sizes
    ends = place.output(shape[2:], kernel)
    window = (*shape, *kernel, *place[:2], place.top, place.left, *place[6:], *ends)
    arguments = (window, *weight.arguments())
    return Plan(getattr(module(), weight.kernel), result, weight.order, arguments, weight.tensors)


def run(x: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Return the result of `conv2d` by a native kernel, on the CPU.

    The tensors must fit the plan; this is not checked.
    """
    real = x if x.dtype is torch.float32 else x.to(torch.float32)
    if not real.is_contiguous(memory_format=plan.order):
        real = real.contiguous(memory_format=plan.order)
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    y = torch.empty(plan.shape, dtype=torch.float32, device=real.device, memory_format=plan.order)
    plan.kernel(
        *buffers(real),
        *((0, 0) if bias is None else buffers(bias)),
        *buffers(y),
        torch.get_num_threads(),
        *plan.sizes,
    )
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def native(x: Tensor, weight: Filters, bias: Tensor | None, place: Place) -> Tensor:
    """Return the result of `conv2d` by the native kernels, on the CPU.

    The tensors must fit each other; this is not checked.
    """
    rows, _, *kernel, _ = weight.sizes
    shape = (x.shape[0], rows, *place.output(x.shape[2:], kernel))
    return run(x, bias, plan(x.shape, weight, place, shape))


def _check(x: Tensor, weight: Filters, bias: Tensor | None, place: Place) -> None:
    rows, channels, *kernel, _ = weight.sizes
    if x.dim() != 4 or x.shape[1] != channels or not x.is_floating_point():
        raise InputError(
            f"a convolution of {channels} channels got an input of shape {tuple(x.shape)} and type "
            f"{x.dtype}; give real numbers of shape (n, {channels}, height, width)"
        )
    if min(place.output(x.shape[2:], kernel)) < 1:
        raise InputError(
            f"a kernel of {kernel[0]} x {kernel[1]} does not fit into images of "
            f"{x.shape[2]} x {x.shape[3]}, at {place}"
        )
    check_bias(bias, rows, x)
    check_device(x.device, *weight.tensors)
    weight.check_place(place)


@torch.library.impl("tersor::conv2d", ("CPU", "CUDA"))
def _conv2d(
    x: Tensor,
    tensors: list[Tensor],
    bias: Tensor | None,
    packing: str,
    layout: Sequence[int],
    place: Sequence[int],
) -> Tensor:
    weight, windows = cast(Filters, packing_of(packing, tensors, layout)), Place(*place)
    _check(x, weight, bias, windows)
    compute = native if instructions() and x.device.type == "cpu" else reference
    return compute(x, weight, bias, windows)


@torch.library.register_fake("tersor::conv2d")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor,
    tensors: list[Tensor],
    bias: Tensor | None,
    packing: str,
    layout: Sequence[int],
    place: Sequence[int],
) -> Tensor:
    check_device(x.device, *tensors, bias)
    weight = _unchecked(packing, tensors, layout)
    rows, _, *kernel, _ = weight.sizes
    shape = (x.shape[0], rows, *Place(*place).output(x.shape[2:], kernel))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=weight.order)


@torch.library.impl("tersor::conv2d_weight", ("CPU", "CUDA"))
def _weight(tensors: list[Tensor], packing: str, layout: Sequence[int]) -> Tensor:
    return packing_of(packing, tensors, layout).recompose().clone()


@torch.library.register_fake("tersor::conv2d_weight")  # type: ignore[untyped-decorator]
def _fake_weight(tensors: list[Tensor], packing: str, layout: Sequence[int]) -> Tensor:
    rows, channels, *kernel, groups = _unchecked(packing, tensors, layout).sizes
    return tensors[0].new_empty((rows, channels // groups, *kernel), dtype=torch.float32)


def _unchecked(packing: str, tensors: Sequence[Tensor], layout: Sequence[int]) -> Filters:
    return cast(Filters, PACKINGS[packing].of(tensors, layout))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, tensors, bias, packing, layout, place = inputs
    ctx.save_for_backward(*tensors)
    ctx.packing, ctx.layout, ctx.place, ctx.shape = packing, layout, place, x.shape
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, list[None], Tensor | None, None, None, None]:
    of_x = of_bias = None
    tensors, place = list(ctx.saved_tensors), Place(*ctx.place)
    if ctx.needs_input_grad[0]:
        weight = torch.ops.tersor.conv2d_weight(tensors, ctx.packing, list(ctx.layout))
        n, c, h, w = ctx.shape
        shape = (n, c, h + place.top + place.bottom, w + place.left + place.right)
        groups = _unchecked(ctx.packing, tensors, ctx.layout).sizes[4]
        real = grad.to(torch.float32)
        of_padded = conv2d_input(  # type: ignore[no-untyped-call]
            shape, weight, real, place[:2], 0, place[6:], groups
        )
        of_x = pad(of_padded, [-p for p in (*place[4:6], *place[2:4])]).to(grad.dtype)
    if ctx.bias_type is not None and ctx.needs_input_grad[2]:
        of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type)
    return of_x, [None] * len(tensors), of_bias, None, None, None


torch.library.register_autograd("tersor::conv2d", _gradients, setup_context=_save)
