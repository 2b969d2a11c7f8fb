# SPDX-License-Identifier: Apache-2.0
"""Check the arguments of operators, which kernels do not check."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InputError

_duals = torch.autograd.forward_ad


def forward_derivatives_wanted() -> bool:
    """Return whether `torch.autograd.forward_ad` or `torch.func.jvp` may be active."""
    # The level is private to torch; if a version has none, assume that they are active.
    return getattr(_duals, "_current_level", 0) >= 0


def autocast(y: Tensor) -> Tensor:
    """Return an output in the type that torch's operators give in an enclosing autocast region."""
    kind = y.device.type
    if y.dtype is torch.float64 or not torch.is_autocast_enabled(kind):
        return y
    return y.to(torch.get_autocast_dtype(kind))


def fits(bias: Tensor | None, rows: int, x: Tensor) -> bool:
    """Return whether a bias is None, or one real number for each row on the device of the input."""
    return bias is None or (
        bias.shape == (rows,) and bias.is_floating_point() and bias.device == x.device
    )


def check_bias(bias: Tensor | None, rows: int, x: Tensor) -> None:
    """Raise an `InputError` if a bias does not fit."""
    if bias is not None and not fits(bias, rows, x):
        raise InputError(
            f"the bias has shape {tuple(bias.shape)}, type {bias.dtype} and device {bias.device}, "
            f"needed are {rows} real numbers on {x.device}"
        )


def check_device(device: torch.device, *others: Tensor | None) -> None:
    """Raise an `InputError` if tensors are on different devices."""
    for other in others:
        if other is not None and other.device != device:
            raise InputError(
                f"the matrix or bias is on {other.device} and the input on {device}; move one of "
                "them"
            )


def unfit(x: Tensor, rows: int, inputs: int) -> InputError:
    """Return the error for an input that a matrix cannot be multiplied by."""
    return InputError(
        f"a matrix of shape {(rows, inputs)} got an input of shape {tuple(x.shape)} and type "
        f"{x.dtype}; give real numbers, {inputs} in the last axis"
    )
