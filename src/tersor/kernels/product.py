"""Multiply by packed matrices: ``tersor::linear`` is one operator for all ways of packing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError
from tersor.kernels import integers, lookup, panels

try:
    from tersor import _kernels
except ImportError:  # tersor was built without a C++ compiler
    _kernels = None  # type: ignore[assignment]

Packed = integers.Packed | lookup.Packed | panels.Packed
Layout = integers.Layout | lookup.Layout | panels.Layout

_WAYS = {len(way.Layout._fields): way for way in (integers, lookup, panels)}
"""Modules of the ways of packing, by the number of sizes in their layouts, which all differ."""

_NOWHERE = 1 << 40
"""A row number that no matrix has, so that indexing with it fails."""

_REAL = torch.float32

_TENSORS = (torch.nn.Parameter, Tensor)


def private(name: str) -> Callable[[], Any]:
    """Return a private function of torch that tells whether operators are being observed."""
    # Where this version of torch has no such function, assume that they are.
    try:
        found: Callable[[], Any] = attrgetter(name)(torch._C)
    except AttributeError:
        return lambda: True
    return found


_gradients_wanted = torch.is_grad_enabled
_is_compiling = torch.compiler.is_dynamo_compiling  # `is_plain` sees others by the tensor's type
_modes = private("_len_torch_dispatch_stack")
_tracing = private("_get_tracing_state")
_transforms = private("_functorch.peek_interpreter_stack")
_duals = torch.autograd.forward_ad
_types = torch.is_autocast_enabled
_threads = torch.get_num_threads
_address = Tensor.data_ptr

torch.library.define(
    "tersor::linear", "(Tensor x, Tensor[] packed, Tensor? bias, int[] layout) -> Tensor"
)
torch.library.define("tersor::rows", "(Tensor index, Tensor[] packed, int[] layout) -> Tensor")


def instructions() -> str:
    """Return the instruction set of the native kernels; empty if the reference runs instead."""
    return "" if _kernels is None else _kernels.target


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


def module() -> Any:
    """Return the module of the native kernels; None if `instructions` is empty."""
    return _kernels


def linear(x: Tensor, packed: Packed, bias: Tensor | None, layout: Layout) -> Tensor:
    """Return ``x @ W.T + bias`` with a packed matrix W, without recomposing W.

    Native kernels compute in float32, and round inputs or sums of them: to 8 bits for fewer vectors
    than ``MANY`` of the way of packing, else to about 12 bits. For inputs without outliers the
    relative error of the output, in the Frobenius norm, is below 1 % with 8 bits and below 0.1 %
    with 12 bits, or 0.2 % if the integers are spread evenly over their 4 bits. Inputs are not
    rounded for a dense matrix, nor for 3 vectors or more if some integers take 6 or 8 bits. The
    kernels use as many threads as torch. On a GPU, Triton's kernels compute in the type of the
    input, see `tersor.kernels.gpu`. Where there are no kernels the reference runs, which is exact
    except for rounding in float32.

    Parameters
    ----------
    x
        Input vectors of a floating-point type, shape (..., inputs), with any strides; may be empty.
    packed, layout
        Packed matrix and its sizes, from ``pack`` of `tersor.kernels.integers`,
        `tersor.kernels.lookup` or `tersor.kernels.panels`; on the device of x. They have no
        gradient.
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
        return autocast(reference(x, packed, bias, layout))
    result: Tensor = torch.ops.tersor.linear(x, list(packed), bias, list(layout))
    return autocast(result)


def rows(index: Tensor, packed: Packed, layout: Layout) -> Tensor:
    """Return some rows of a packed matrix, without recomposing the others.

    Parameters
    ----------
    index
        Row numbers, int64, shape (n,), from 0 to rows - 1.
    packed, layout
        Packed matrix and its sizes, as for `linear`; on the device of the index.

    Returns
    -------
    Tensor
        Rows, float32, shape (n, inputs). They have no gradient.
    """
    result: Tensor = torch.ops.tersor.rows(index, list(packed), list(layout))
    return result


def reference(x: Tensor, packed: Packed, bias: Tensor | None, layout: Layout) -> Tensor:
    """Return the result that defines `linear`, computed in plain torch with the dense matrix."""
    bias = None if bias is None else bias.to(torch.float32)
    return F.linear(x.to(torch.float32), recompose(packed, layout), bias).to(x.dtype)


def recompose(packed: Packed, layout: Layout) -> Tensor:
    """Return the dense matrix, float32, shape (rows, inputs)."""
    every = torch.arange(layout.rows, device=packed[0].device)
    matrix: Tensor = _WAYS[len(layout)].rows_of(packed, layout, every)
    return matrix


def autocast(y: Tensor) -> Tensor:
    """Return an output in the type that torch's operators give in an enclosing autocast region."""
    kind = y.device.type
    if y.dtype is torch.float64 or not torch.is_autocast_enabled(kind):
        return y
    return y.to(torch.get_autocast_dtype(kind))


class Known(NamedTuple):
    """A packed matrix in the form that `native` takes."""

    compute: Any
    """Native function of the buffers of input, bias and output, the vectors and the threads."""

    inputs: int
    rows: int
    kept: Packed
    """The tensors whose addresses ``compute`` has; kept here so that they are not freed."""


def buffers(*tensors: Tensor) -> list[int]:
    """Return address and bytes of each tensor for native kernels, which check the bytes."""
    return [number for tensor in tensors for number in (tensor.data_ptr(), tensor.nbytes)]


def places(tensors: Iterable[Tensor]) -> list[int]:
    """Return the addresses of tensors, to detect a move by `set_` or by sharing with a process."""
    return list(map(_address, tensors))


def known(packed: Packed, layout: Layout) -> Known:
    """Return a packed matrix for `native`; its tensors must not move in memory afterwards."""
    way = _WAYS[len(layout)]
    check_place(torch.device("cpu"), *packed)
    way.check(packed, layout)
    compute = getattr(_kernels, way.KERNEL)(way.MANY, *layout, *buffers(*packed))
    return Known(compute, layout.inputs, layout.rows, packed)


def native(x: Tensor, bias: Tensor | None, matrix: Known) -> Tensor:
    """Return the result of `linear` by the native kernels, for inputs that are `is_plain`.

    It does little, since for a small layer the Python code takes as long as the product.
    """
    compute, needed, rows, _ = matrix
    *batch, inputs = x.shape or (0,)
    if inputs != needed:
        raise _unfit(x, rows, needed)
    real = x
    if x.dtype is not _REAL:
        if not x.is_floating_point():
            raise _unfit(x, rows, needed)
        real = x.to(_REAL)
    if not real.is_contiguous():
        real = real.contiguous()
    if bias is not None and (bias.dtype is not _REAL or not bias.is_contiguous()):
        bias = bias.to(_REAL).contiguous()
    # Single numbers, since the native module parses them faster than tuples.
    y = real.new_empty(*batch, rows)
    compute(
        real.data_ptr(),
        real.nbytes,
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else bias.nbytes,
        y.data_ptr(),
        y.nbytes,
        real.numel() // inputs,
        _threads(),
    )
    return y if x.dtype is _REAL else y.to(x.dtype)


def native_rows(index: Tensor, matrix: Known) -> Tensor:
    """Return the result of `rows` by the native kernel, on the CPU, of a matrix of integers."""
    index = index.to(torch.int64).contiguous()
    result = index.new_empty((len(index), matrix.inputs), dtype=_REAL)
    matrix.compute.rows(*buffers(index, result), len(index), _threads())
    return result


def is_plain(x: Tensor, bias: Tensor | None = None, rows: int = 0) -> bool:
    """Return whether `native` may be called without the operator, which takes longer.

    It may if no gradient, tracing, compilation, mode or autocast is active, x is a plain tensor on
    the CPU, and the bias, if any, is one number for each row. The operator goes through Python
    twice, which takes several times as long as a small layer. The functions are global names here,
    since looking them up in torch takes long too when torch is not in the processor's caches.
    """
    return (
        type(x) is Tensor
        and not _is_compiling()
        and x.is_cpu
        and not _modes()
        and not _tracing()
        and not _transforms()
        and not forward_derivatives_wanted()
        and not _types("cpu")
        and not (
            (x.requires_grad or (bias is not None and bias.requires_grad)) and _gradients_wanted()
        )
        and (bias is None or (type(bias) in _TENSORS and fits(bias, rows, x)))
        and bool(instructions())
    )


def forward_derivatives_wanted() -> bool:
    """Return whether `torch.autograd.forward_ad` or `torch.func.jvp` may be active."""
    # The level is private to torch; if a version has none, assume that they are active.
    return getattr(_duals, "_current_level", 0) >= 0


def fits(bias: Tensor | None, rows: int, x: Tensor) -> bool:
    """Return whether a bias is None, or one real number for each row on the device of the input."""
    return bias is None or (
        bias.shape == (rows,) and bias.is_floating_point() and bias.device == x.device
    )


def _given(packed: Sequence[Tensor], layout: Sequence[int]) -> tuple[Any, Any, Any]:
    """Return the module of the way of packing, and the tensors and sizes, checked, in its types."""
    way = _WAYS.get(len(layout))
    if way is None or len(packed) != len(way.Packed._fields):
        raise InputError(
            f"{len(packed)} packed tensors and {len(layout)} sizes are of no packed matrix; take "
            "both from `pack`"
        )
    given = way, way.Packed(*packed), way.Layout(*layout)
    way.check(*given[1:])
    return given


def check_place(device: torch.device, *others: Tensor | None) -> None:
    """Raise an `InputError` if tensors are on different devices, which kernels do not check."""
    for other in others:
        if other is not None and other.device != device:
            raise InputError(
                f"the matrix or bias is on {other.device} and the input on {device}; move one of "
                "them"
            )


def _unfit(x: Tensor, rows: int, inputs: int) -> InputError:
    return InputError(
        f"a matrix of shape {(rows, inputs)} got an input of shape {tuple(x.shape)} and type "
        f"{x.dtype}; give real numbers, {inputs} in the last axis"
    )


def check_bias(bias: Tensor | None, rows: int, x: Tensor) -> None:
    """Raise an `InputError` if a bias does not fit, which kernels do not check."""
    if bias is not None and not fits(bias, rows, x):
        raise InputError(
            f"the bias has shape {tuple(bias.shape)}, type {bias.dtype} and device {bias.device}, "
            f"needed are {rows} real numbers on {x.device}"
        )


def _check(x: Tensor, bias: Tensor | None, layout: Layout) -> None:
    if x.dim() == 0 or x.shape[-1] != layout.inputs or not x.is_floating_point():
        raise _unfit(x, layout.rows, layout.inputs)
    check_bias(bias, layout.rows, x)


@torch.library.impl("tersor::linear", ("CPU", "CUDA"))
def _linear(x: Tensor, packed: list[Tensor], bias: Tensor | None, layout: Sequence[int]) -> Tensor:
    way, given, sizes = _given(packed, layout)
    _check(x, bias, sizes)
    check_place(x.device, *given)
    return _kernel_of(x.device, way)(x, given, bias, sizes)


def _kernel_of(
    device: torch.device, way: Any
) -> Callable[[Tensor, Any, Tensor | None, Any], Tensor]:
    if device.type == "cpu":
        return _native if instructions() else reference
    if way is panels or missing_on(device):
        return reference
    from tersor.kernels import gpu

    return gpu.linear


def _native(x: Tensor, packed: Packed, bias: Tensor | None, layout: Layout) -> Tensor:
    return native(x, bias, known(packed, layout))


def _check_index(index: Tensor) -> None:
    if index.dtype is not torch.int64 or index.dim() != 1:
        raise InputError(
            f"rows are asked for by a tensor of shape {tuple(index.shape)} and type {index.dtype}; "
            "give int64, one axis"
        )


@torch.library.impl("tersor::rows", ("CPU", "CUDA"))
def _rows(index: Tensor, packed: list[Tensor], layout: Sequence[int]) -> Tensor:
    way, given, sizes = _given(packed, layout)
    _check_index(index)
    check_place(index.device, *given)
    if instructions() and way is integers and index.device.type == "cpu":
        return native_rows(index, known(given, sizes))
    # Else negative numbers would count from the end, and numbers of padding rows give zeros.
    wanted = torch.where((index < 0) | (index >= sizes.rows), _NOWHERE, index)
    result: Tensor = way.rows_of(given, sizes, wanted)
    return result.contiguous()


@torch.library.register_fake("tersor::rows")  # type: ignore[untyped-decorator]
def _fake_rows(index: Tensor, packed: list[Tensor], layout: Sequence[int]) -> Tensor:
    _check_index(index)
    check_place(index.device, *packed)
    return packed[0].new_empty((index.shape[0], layout[1]), dtype=torch.float32)


@torch.library.register_fake("tersor::linear")  # type: ignore[untyped-decorator]
def _fake(x: Tensor, packed: list[Tensor], bias: Tensor | None, layout: Sequence[int]) -> Tensor:
    # Else the result for a CPU input and a matrix on the meta device would be uninitialized memory.
    check_place(x.device, *packed, bias)
    return x.new_empty((*x.shape[:-1], layout[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed, bias, layout = inputs
    ctx.save_for_backward(*packed)
    ctx.layout, ctx.bias_type = list(layout), None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[None], Tensor | None, None]:
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        all_rows = torch.arange(ctx.layout[0], device=grad.device)
        weight = torch.ops.tersor.rows(all_rows, list(ctx.saved_tensors), ctx.layout)
        of_x = (grad.to(torch.float32) @ weight).to(grad.dtype)
    if ctx.bias_type is not None and ctx.needs_input_grad[2]:
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_type)
    return of_x, [None] * len(ctx.saved_tensors), of_bias, None


torch.library.register_autograd("tersor::linear", _gradients, setup_context=_save)
