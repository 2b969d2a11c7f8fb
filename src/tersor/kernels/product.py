# SPDX-License-Identifier: Apache-2.0
"""Multiply by packed matrices: ``tersor::linear`` is one operator for all packings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.kernels.arguments import (
    autocast,
    check_bias,
    check_device,
    forward_derivatives_wanted,
    unfit,
)
from tersor.kernels.cpu import instructions, known, native, native_rows
from tersor.kernels.packing import Matrix
from tersor.kernels.registry import PACKINGS, packing_of

_NOWHERE = 1 << 40
"""A row number that no matrix has, so that indexing with it fails."""

torch.library.define(
    "tersor::linear",
    "(Tensor x, Tensor[] tensors, Tensor? bias, str packing, int[] layout) -> Tensor",
)
torch.library.define(
    "tersor::rows", "(Tensor index, Tensor[] tensors, str packing, int[] layout) -> Tensor"
)


@cache
def missing_on(device: torch.device) -> str:
    """Return the reason why the reference runs on this GPU; empty if Triton's kernels run."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    if not is_nvidia or torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton's kernels are for NVIDIA GPUs of compute capability 8.0 or more"
    try:
        import_module("tersor.kernels.gpu")
    except ImportError as error:
        return f"{error}: pip install 'tersor[gpu]'"
    return ""


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """Return ``x @ W.T + bias`` with a packed matrix W, without recomposing W.

    Native kernels compute in float32, and round inputs or sums of them: to 8 bits for fewer vectors
    than ``many`` of the packing, else to about 12 bits. For inputs without outliers the relative
    error of the output, in the Frobenius norm, is below 1 % with 8 bits and below 0.1 % with 12
    bits, or 0.2 % if the integers are spread evenly over their 4 bits. Inputs are not rounded for a
    dense matrix, nor for 3 vectors or more if some integers take 6 or 8 bits. The kernels use as
    many threads as torch. On a GPU, Triton's kernels compute in the type of the input, see
    `tersor.kernels.gpu`. Where there are no kernels the reference runs, which is exact except for
    rounding in float32.

    Parameters
    ----------
    x
        Input vectors of a floating-point type, shape (..., inputs), with any strides; may be empty.
    matrix
        Packed matrix, from ``pack`` of one of the subclasses of `Matrix`; on the device of x. Its
        tensors have no gradient.
    bias
        Bias, shape (rows,), or None.

    Returns
    -------
    Tensor
        Shape (..., rows), of the type of x, or of the type of an enclosing autocast region.

    Raises
    ------
    InputError
        If shapes, types or devices do not fit together.
    """
    # Custom operators lose derivatives in forward mode; the reference does not.
    if forward_derivatives_wanted():
        return autocast(reference(x, matrix, bias))
    result: Tensor = torch.ops.tersor.linear(
        x, list(matrix.tensors), bias, matrix.name, list(matrix.layout)
    )
    return autocast(result)


def rows(index: Tensor, matrix: Matrix) -> Tensor:
    """Return some rows of a packed matrix, without recomposing the others.

    Parameters
    ----------
    index
        Row numbers, int64, shape (n,), from 0 to rows - 1.
    matrix
        Packed matrix, as for `linear`; on the device of the index.

    Returns
    -------
    Tensor
        Rows, float32, shape (n, inputs). They have no gradient.
    """
    result: Tensor = torch.ops.tersor.rows(
        index, list(matrix.tensors), matrix.name, list(matrix.layout)
    )
    return result


def reference(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """Return the result that defines `linear`, computed in plain torch with the dense matrix."""
    bias = None if bias is None else bias.to(torch.float32)
    return F.linear(x.to(torch.float32), matrix.recompose(), bias).to(x.dtype)


@torch.library.impl("tersor::linear", ("CPU", "CUDA"))
def _linear(
    x: Tensor, tensors: list[Tensor], bias: Tensor | None, packing: str, layout: Sequence[int]
) -> Tensor:
    matrix = cast(Matrix, packing_of(packing, tensors, layout))
    sizes = matrix.layout
    if x.dim() == 0 or x.shape[-1] != sizes.inputs or not x.is_floating_point():
        raise unfit(x, sizes.rows, sizes.inputs)
    check_bias(bias, sizes.rows, x)
    check_device(x.device, *tensors)
    return _kernel_of(x.device, type(matrix))(x, matrix, bias)


def _kernel_of(
    device: torch.device, kind: type[Matrix]
) -> Callable[[Tensor, Matrix, Tensor | None], Tensor]:
    if device.type == "cpu":
        return _native if instructions() else reference
    if missing_on(device):
        return reference
    from tersor.kernels import gpu

    return gpu.linear if kind in gpu.KERNELS else reference


def _native(x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    return native(x, bias, known(matrix))


def _check_index(index: Tensor) -> None:
    if index.dtype is not torch.int64 or index.dim() != 1:
        raise InputError(
            f"rows are asked for by a tensor of shape {tuple(index.shape)} and type {index.dtype}; "
            "give int64, one axis"
        )


@torch.library.impl("tersor::rows", ("CPU", "CUDA"))
def _rows(index: Tensor, tensors: list[Tensor], packing: str, layout: Sequence[int]) -> Tensor:
    matrix = cast(Matrix, packing_of(packing, tensors, layout))
    _check_index(index)
    check_device(index.device, *tensors)
    if instructions() and matrix.picks and index.device.type == "cpu":
        return native_rows(index, known(matrix))
    # Else negative numbers would count from the end, and numbers of padding rows give zeros.
    wanted = torch.where((index < 0) | (index >= matrix.layout.rows), _NOWHERE, index)
    return matrix.rows_of(wanted).contiguous()


@torch.library.register_fake("tersor::rows")  # type: ignore[untyped-decorator]
def _fake_rows(index: Tensor, tensors: list[Tensor], packing: str, layout: Sequence[int]) -> Tensor:
    _check_index(index)
    check_device(index.device, *tensors)
    shape = (index.shape[0], PACKINGS[packing].Layout(*layout).inputs)
    return tensors[0].new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("tersor::linear")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor, tensors: list[Tensor], bias: Tensor | None, packing: str, layout: Sequence[int]
) -> Tensor:
    # Else the result for a CPU input and a matrix on the meta device would be uninitialized memory.
    check_device(x.device, *tensors, bias)
    return x.new_empty((*x.shape[:-1], PACKINGS[packing].Layout(*layout).rows))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, bias, packing, layout = inputs
    ctx.save_for_backward(*tensors)
    ctx.packing, ctx.layout = packing, list(layout)
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, list[None], Tensor | None, None, None]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        count = PACKINGS[ctx.packing].Layout(*ctx.layout).rows
        all_rows = torch.arange(count, device=grad.device)
        weight = torch.ops.tersor.rows(all_rows, list(ctx.saved_tensors), ctx.packing, ctx.layout)
        of_x = (grad.to(torch.float32) @ weight).to(grad.dtype)
    if ctx.bias_type is not None and ctx.needs_input_grad[2]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_type)
    return of_x, [None] * len(ctx.saved_tensors), of_bias, None, None


torch.library.register_autograd("tersor::linear", _gradients, setup_context=_save)
