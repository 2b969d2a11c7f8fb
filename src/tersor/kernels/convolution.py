"""Convolve with packed weights: ``tersor::conv2d`` is one operator for all ways of packing.

There are two: factors as lists of multiples (`tersor.kernels.listed`), and dense weights
(`tersor.kernels.direct`), for weights that are faster when recomposed. Native kernels compute in
float32, on images that are contiguous or channels last. Each way of packing needs one of these
memory formats: other inputs are copied into it, and outputs have it. A convolution in one dimension
is a convolution of images of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from tersor.errors import InputError
from tersor.kernels import direct, listed, product

LISTED, DIRECT = 0, 1
"""First number of a layout, which says how the weight is packed."""

torch.library.define(
    "tersor::conv2d",
    "(Tensor x, Tensor[] packed, Tensor? bias, int[] layout, int[] place) -> Tensor",
)
torch.library.define("tersor::conv2d_weight", "(Tensor[] packed, int[] layout) -> Tensor")


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


PLAIN = Place(1, 1, 0, 0, 0, 0, 1, 1)
"""Stride and dilation 1, without padding."""

Weight = tuple[int, Sequence[Tensor], Sequence[int]]
"""A packed weight: `LISTED` or `DIRECT`, the tensors, and their sizes."""


def conv2d(x: Tensor, weight: Weight, bias: Tensor | None, place: Place) -> Tensor:
    """Return the convolution of images with a packed weight, padded with zeros.

    Parameters
    ----------
    x
        Images of a floating-point type, shape (n, channels, height, width), with any strides; n may
        be 0.
    weight
        Packed weight, from `listed.pack` or `direct.pack`, on the device of x. It has no gradient.
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
    way, packed, layout = weight
    # Custom operators lose derivatives in forward mode; the reference does not.
    if product.forward_derivatives_wanted():
        return product.autocast(reference(x, weight, bias, place))
    result: Tensor = torch.ops.tersor.conv2d(x, list(packed), bias, [way, *layout], list(place))
    return product.autocast(result)


def dense(weight: Weight) -> Tensor:
    """Return the dense weight, float32, shape (rows, channels of a group, height, width)."""
    way, packed, layout = weight
    if way == LISTED:
        return listed.recompose(listed.Packed(*packed), listed.Layout(*layout))
    return direct.weight_of(packed, direct.Layout(*layout))


def order(weight: Weight) -> torch.memory_format:
    """Return the memory format of the images that a packed weight needs."""
    is_last = weight[0] == DIRECT and direct.Layout(*weight[2]).is_last
    return torch.channels_last if is_last else torch.contiguous_format


def reference(x: Tensor, weight: Weight, bias: Tensor | None, place: Place) -> Tensor:
    """Return the result that defines `conv2d`, computed in plain torch with the dense weight."""
    bias = None if bias is None else bias.to(torch.float32)
    padded = F.pad(x.to(torch.float32), place[4:6] + place[2:4])
    y = F.conv2d(padded, dense(weight), bias, place[:2], 0, place[6:], _sizes(weight)[4])
    return y.to(x.dtype).contiguous(memory_format=order(weight))


class Plan(NamedTuple):
    """A prepared call of a native kernel: all arguments except input, bias and output."""

    kernel: Callable[..., None]
    shape: tuple[int, ...]
    """Shape of the output."""
    order: torch.memory_format
    sizes: tuple[Any, ...]
    kept: tuple[Tensor, ...]
    """The tensors whose addresses are in ``sizes``; kept here so that they are not freed."""


def plan(shape: Sequence[int], weight: Weight, place: Place, result: tuple[int, ...]) -> Plan:
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
    way, packed, layout = weight
    product.check_place(torch.device("cpu"), *packed)
    rows, _, *kernel, _ = _sizes(weight)
    ends = place.output(shape[2:], kernel)
    window = (*shape, *kernel, *place[:2], place.top, place.left, *place[6:], *ends)
    if way == LISTED:
        sizes = (rows, *layout[4:], *product.buffers(*packed))
        return Plan(
            product.module().convolve_listed, result, order(weight), (window, *sizes), tuple(packed)
        )
    sizes = (rows, direct.Layout(*layout).size, *product.buffers(packed[-1]))
    return Plan(
        product.module().convolve_direct, result, order(weight), (window, *sizes), tuple(packed)
    )


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
        *product.buffers(real),
        *((0, 0) if bias is None else product.buffers(bias)),
        *product.buffers(y),
        torch.get_num_threads(),
        *plan.sizes,
    )
    return y if x.dtype is torch.float32 else y.to(x.dtype)


def native(x: Tensor, weight: Weight, bias: Tensor | None, place: Place) -> Tensor:
    """Return the result of `conv2d` by the native kernels, on the CPU.

    The tensors must fit each other; this is not checked.
    """
    rows, _, *kernel, _ = _sizes(weight)
    shape = (x.shape[0], rows, *place.output(x.shape[2:], kernel))
    return run(x, bias, plan(x.shape, weight, place, shape))


def _sizes(weight: Weight) -> tuple[int, int, int, int, int]:
    """Return rows, channels of all groups, height and width of the kernel, and groups."""
    way, _, layout = weight
    if way == LISTED:
        rows, channels, height, width = layout[:4]
        return rows, channels, height, width, 1
    sizes = direct.Layout(*layout)
    return sizes.rows, sizes.channels, sizes.kernel_h, sizes.kernel_w, sizes.groups


def _check(x: Tensor, weight: Weight, bias: Tensor | None, place: Place) -> None:
    rows, channels, *kernel, _ = _sizes(weight)
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
    product.check_bias(bias, rows, x)
    way, packed, layout = weight
    product.check_place(x.device, *packed)
    if way == LISTED:
        listed.check(listed.Packed(*packed), listed.Layout(*layout))
    else:
        direct.check(packed, direct.Layout(*layout), place)


def _given(packed: list[Tensor], layout: Sequence[int]) -> Weight:
    return layout[0], packed, tuple(layout[1:])


@torch.library.impl("tersor::conv2d", "CPU")
def _cpu(
    x: Tensor, packed: list[Tensor], bias: Tensor | None, layout: Sequence[int], place: list[int]
) -> Tensor:
    weight = _given(packed, layout)
    _check(x, weight, bias, Place(*place))
    compute = native if product.instructions() else reference
    return compute(x, weight, bias, Place(*place))


@torch.library.impl("tersor::conv2d", "CUDA")
def _cuda(
    x: Tensor, packed: list[Tensor], bias: Tensor | None, layout: Sequence[int], place: list[int]
) -> Tensor:
    weight = _given(packed, layout)
    _check(x, weight, bias, Place(*place))
    return reference(x, weight, bias, Place(*place))


@torch.library.register_fake("tersor::conv2d")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor, packed: list[Tensor], bias: Tensor | None, layout: Sequence[int], place: list[int]
) -> Tensor:
    product.check_place(x.device, *packed, bias)
    weight = _given(packed, layout)
    rows, _, *kernel, _ = _sizes(weight)
    shape = (x.shape[0], rows, *Place(*place).output(x.shape[2:], kernel))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order(weight))


@torch.library.impl("tersor::conv2d_weight", ("CPU", "CUDA"))
def _weight(packed: list[Tensor], layout: Sequence[int]) -> Tensor:
    return dense(_given(packed, layout)).clone()


@torch.library.register_fake("tersor::conv2d_weight")  # type: ignore[untyped-decorator]
def _fake_weight(packed: list[Tensor], layout: Sequence[int]) -> Tensor:
    rows, channels, *kernel, groups = _sizes(_given(packed, layout))
    return packed[0].new_empty((rows, channels // groups, *kernel), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, bias, layout, place = inputs
    ctx.save_for_backward(*packed)
    ctx.layout, ctx.place, ctx.shape = layout, place, x.shape
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, list[None], Tensor | None, None, None]:
    of_x = of_bias = None
    packed, place = list(ctx.saved_tensors), Place(*ctx.place)
    if ctx.needs_input_grad[0]:
        weight = torch.ops.tersor.conv2d_weight(packed, list(ctx.layout))
        n, c, h, w = ctx.shape
        shape = (n, c, h + place.top + place.bottom, w + place.left + place.right)
        groups = _sizes(_given(packed, ctx.layout))[4]
        real = grad.to(torch.float32)
        of_padded = conv2d_input(  # type: ignore[no-untyped-call]
            shape, weight, real, place[:2], 0, place[6:], groups
        )
        of_x = F.pad(of_padded, [-p for p in (*place[4:6], *place[2:4])]).to(grad.dtype)
    if ctx.bias_type is not None and ctx.needs_input_grad[2]:
        of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type)
    return of_x, [None] * len(packed), of_bias, None, None


torch.library.register_autograd("tersor::conv2d", _gradients, setup_context=_save)
