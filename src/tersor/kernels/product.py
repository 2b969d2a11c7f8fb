"""``tersor::linear``: the product with a packed matrix, one operator for every way of packing."""

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
except ImportError:  # built without a compiler
    _kernels = None  # type: ignore[assignment]

Packed = integers.Packed | lookup.Packed | panels.Packed
Layout = integers.Layout | lookup.Layout | panels.Layout

_WAYS = {len(way.Layout._fields): way for way in (integers, lookup, panels)}
"""Modules of the ways of packing, told apart by the number of sizes that they need."""

_NOWHERE = 1 << 40
"""Number of a row that no matrix has."""

_REAL = torch.float32

_TENSORS = (torch.nn.Parameter, Tensor)


def private(name: str) -> Callable[[], Any]:
    """A function of torch that is not public, and tells whether somebody watches operators.

    Where a version of torch has no such function, somebody might.
    """
    try:
        found: Callable[[], Any] = attrgetter(name)(torch._C)
    except AttributeError:
        return lambda: True
    return found


_gradients_wanted = torch.is_grad_enabled
_is_compiling = torch.compiler.is_dynamo_compiling  # other compilers' tensors are not plain
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
    """Instruction set of the native kernels; empty if the reference runs in their place."""
    return "" if _kernels is None else _kernels.target


@cache
def missing_on(device: torch.device) -> str:
    """Why the reference runs on this GPU; empty if Triton's kernels do."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None
    if not is_nvidia or torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton's kernels are for NVIDIA GPUs of compute capability 8.0 or more"
    try:
        import_module("tersor.kernels.gpu")
    except ImportError as error:
        return f"{error}: pip install 'tersor[gpu]'"
    return ""


def module() -> Any:
    """The native kernels; only where there are `instructions`."""
    return _kernels


def linear(x: Tensor, packed: Packed, bias: Tensor | None, layout: Layout) -> Tensor:
    """``x @ W.T + bias`` with a packed matrix W, without ever making it.

    Native kernels compute in float32 with inputs, or sums of them, rounded to 8 bits (fewer than
    ``MANY`` vectors, which each way of packing has its own of) or to about 12 bits (more): for
    inputs without outliers the relative error of the output, in the Frobenius norm, is below 1 %
    and 0.1 %, or 0.2 % of integers that are spread evenly over their 4 bits. Where integers take 6
    or 8 bits, 3 vectors or more are not rounded; a dense matrix is not. Threads are as many as
    torch's. On a GPU, Triton's kernels compute in the type of the input; see `tersor.kernels.gpu`.
    The reference, which is exact but for rounding in float32, runs where there are no such kernels.

    Parameters
    ----------
    x
        Floating-point, shape (..., inputs); any strides, also empty.
    packed, layout
        From ``pack`` of `tersor.kernels.integers`, `tersor.kernels.lookup` or
        `tersor.kernels.panels`; on the device of x. They have no gradient.
    bias
        Shape (rows,), or None.

    Returns
    -------
    Tensor
        Shape (..., rows), of x's type, or of that of an enclosing autocast region.
    """
    if forward_derivatives_wanted():  # which operators of one's own lose
        return autocast(reference(x, packed, bias, layout))
    result: Tensor = torch.ops.tersor.linear(x, list(packed), bias, list(layout))
    return autocast(result)


def rows(index: Tensor, packed: Packed, layout: Layout) -> Tensor:
    """Some rows of a packed matrix, without making the others.

    Parameters
    ----------
    index
        int64, shape (n,), from 0 to rows - 1.

    Returns
    -------
    Tensor
        float32, shape (n, inputs). It has no gradient.
    """
    result: Tensor = torch.ops.tersor.rows(index, list(packed), list(layout))
    return result


def reference(x: Tensor, packed: Packed, bias: Tensor | None, layout: Layout) -> Tensor:
    """What `linear` is to compute, in plain torch: by the dense matrix."""
    bias = None if bias is None else bias.to(torch.float32)
    return F.linear(x.to(torch.float32), recompose(packed, layout), bias).to(x.dtype)


def recompose(packed: Packed, layout: Layout) -> Tensor:
    """The dense matrix, float32, shape (rows, inputs)."""
    every = torch.arange(layout.rows, device=packed[0].device)
    matrix: Tensor = _WAYS[len(layout)].rows_of(packed, layout, every)
    return matrix


def autocast(y: Tensor) -> Tensor:
    """An output in the type that an operator of torch gives in an enclosing autocast region."""
    kind = y.device.type
    if y.dtype is torch.float64 or not torch.is_autocast_enabled(kind):
        return y
    return y.to(torch.get_autocast_dtype(kind))


class Known(NamedTuple):
    """A packed matrix as `native` takes it."""

    compute: Any
    """Native: product with buffers of input, bias and output, batch and threads."""

    inputs: int
    rows: int
    kept: Packed
    """What it has the addresses of."""


def buffers(*tensors: Tensor) -> list[int]:
    """Address and bytes of each tensor, as native kernels take them: they check the sizes."""
    return [number for tensor in tensors for number in (tensor.data_ptr(), tensor.nbytes)]


def places(tensors: Iterable[Tensor]) -> list[int]:
    """Where tensors are in memory: sharing them with a process moves them, and so does `set_`."""
    return list(map(_address, tensors))


def known(packed: Packed, layout: Layout) -> Known:
    """What `native` needs to know of a packed matrix, whose tensors must stay where they are."""
    way = _WAYS[len(layout)]
    check_place(torch.device("cpu"), *packed)
    way.check(packed, layout)
    compute = getattr(_kernels, way.KERNEL)(way.MANY, *layout, *buffers(*packed))
    return Known(compute, layout.inputs, layout.rows, packed)


def native(x: Tensor, bias: Tensor | None, matrix: Known) -> Tensor:
    """`linear` by the native kernels, on the CPU, of what `is_plain`.

    Of a small layer what is done in Python takes as long as the product, so there is little.
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
    # Numbers are parsed faster than a tuple of them.
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
    """`rows` by the native kernel, on the CPU, of a matrix of integers."""
    index = index.to(torch.int64).contiguous()
    result = index.new_empty((len(index), matrix.inputs), dtype=_REAL)
    matrix.compute.rows(*buffers(index, result), len(index), _threads())
    return result


def is_plain(x: Tensor, bias: Tensor | None = None, rows: int = 0) -> bool:
    """Whether `native` may be called: no gradient, tracing, compilation or mode is wanted.

    And the bias, if there is one, is one number for each row.

    The operator itself costs several times what a small layer takes: twice through Python. Looking
    up the functions here costs, too, when nothing of torch is in the processor's caches.
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
    """Whether `torch.autograd.forward_ad` or `torch.func.jvp` may follow what is computed."""
    return getattr(_duals, "_current_level", 0) >= 0  # not public: where it is gone they might


def fits(bias: Tensor | None, rows: int, x: Tensor) -> bool:
    """Whether a bias is one real number for each row, beside the input.

    If not, torch may know what to do with it, or says what is wrong.
    """
    return bias is None or (
        bias.shape == (rows,) and bias.is_floating_point() and bias.device == x.device
    )


def _given(packed: Sequence[Tensor], layout: Sequence[int]) -> tuple[Any, Any, Any]:
    """The way of packing, and its tensors and sizes, which fit each other."""
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
    """Refuse tensors that are not all on one device: kernels do not look."""
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
    """Refuse a bias that does not fit: kernels do not look."""
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
    # Else negative ones would be taken, and padding.
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
    # Of an input on the CPU and a matrix that is nowhere the result would be what memory held.
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
