# SPDX-License-Identifier: Apache-2.0
"""Call the native kernels of this processor, where possible without the operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tersor.kernels.arguments import check_device, fits, forward_derivatives_wanted, unfit
from tersor.kernels.packing import Matrix, buffers

try:
    from tersor import _kernels
except ImportError:  # tersor was built without a C++ compiler
    _kernels = None  # type: ignore[assignment]

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
_types = torch.is_autocast_enabled
_threads = torch.get_num_threads
_address = Tensor.data_ptr


def instructions() -> str:
    """Return the instruction set of the native kernels; empty if the reference runs instead."""
    return "" if _kernels is None else _kernels.target


def module() -> Any:
    """Return the module of the native kernels; None if `instructions` is empty."""
    return _kernels


class Known(NamedTuple):
    """A packed matrix in the form that `native` takes."""

    compute: Any
    """Native function of the buffers of input, bias and output, the vectors and the threads."""

    inputs: int
    rows: int
    tensors: tuple[Tensor, ...]
    """The tensors whose addresses ``compute`` has, which must not be freed."""


def places(tensors: Iterable[Tensor]) -> list[int]:
    """Return the addresses of tensors, to detect a move by `set_` or by sharing with a process."""
    return list(map(_address, tensors))


def known(matrix: Matrix) -> Known:
    """Return a packed matrix for `native`; its tensors must not move in memory afterwards."""
    check_device(torch.device("cpu"), *matrix.tensors)
    matrix.check()
    make = getattr(_kernels, matrix.kernel)
    compute = make(matrix.many, *matrix.layout, *buffers(*matrix.tensors))
    return Known(compute, matrix.layout.inputs, matrix.layout.rows, matrix.tensors)


def native(x: Tensor, bias: Tensor | None, matrix: Known) -> Tensor:
    """Return the result of `linear` by the native kernels, for inputs that are `is_plain`.

    It does little, since for a small layer the Python code takes as long as the product.
    """
    compute, needed, rows, _ = matrix
    *batch, inputs = x.shape or (0,)
    if inputs != needed:
        raise unfit(x, rows, needed)
    real = x
    if x.dtype is not _REAL:
        if not x.is_floating_point():
            raise unfit(x, rows, needed)
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
    """Return the result of `rows` by the native kernel, on the CPU, of a matrix that ``picks``."""
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
