"""Which tensors are factored, and how the others are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.archive import Entry, Kept, Plain
from tersor.tiling import is_tileable

FEWEST_WEIGHTS = 256
"""Tensors with fewer weights are kept: their codebook and header would cost more than is saved."""

_SMALLEST = 2.0**-60
"""Weights that are all smaller, or some of which are larger than its inverse, are kept."""

_ROUNDABLE = ("weight", "bias", "running_mean", "running_var", "gamma", "beta")
"""Last parts of the names of parameters and normalisation statistics. Rounding those to bfloat16
changes them by at most 1/256; other tensors, such as tables of positions, may not bear that."""


def reason_to_keep(name: str, tensor: Tensor) -> Kept | None:
    """Why a tensor is not factored; None if it is.

    Raises
    ------
    InputError
        If it cannot be stored, has NaN elements, or is a matrix or kernel with infinite ones.
        Vectors and single numbers may be infinite: observers start like that.
    """
    dtypes.check(name, tensor)
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        return Kept.NOT_FLOAT
    if tensor.numel() == 0:
        return Kept.EMPTY
    if not is_tileable(tuple(tensor.shape)):
        if bool(tensor.isnan().any()):
            check_finite(name, tensor)
        return Kept.VECTOR
    check_finite(name, tensor)
    if tensor.numel() < FEWEST_WEIGHTS:
        return Kept.SMALL
    return None if _is_moderate(tensor) else Kept.RANGE


def _is_moderate(tensor: Tensor) -> bool:
    """Whether squares of the weights fit float32, and somewhat larger weights their own type."""
    largest = float(tensor.detach().abs().amax())
    return largest == 0 or _SMALLEST <= largest <= min(
        1 / _SMALLEST, torch.finfo(tensor.dtype).max / 4
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a weight with NaN or infinite elements."""
    if not bool(tensor.isfinite().all()):
        bad = int((~tensor.isfinite()).sum())
        raise InputError(
            f"tensor {name!r} has {bad} elements that are NaN or infinite, of {tensor.numel()}; "
            "repair the checkpoint first"
        )


def keep_exactly(name: str, tensor: Tensor) -> Entry:
    """Entry of a tensor of which every bit is asked for, NaN and infinity included.

    Raises
    ------
    InputError
        If it cannot be stored.
    """
    dtypes.check(name, tensor)
    values = tensor.detach().cpu()
    return Entry(tuple(tensor.shape), tensor.dtype, Plain(values, Kept.LOSSLESS))


def keep(name: str, tensor: Tensor, reason: Kept) -> Entry:
    """Entry of a tensor that is kept: at 16 bits where that is harmless, else exactly."""
    tensor = tensor.detach().cpu()
    values = tensor.to(torch.bfloat16) if _is_roundable(name, tensor, reason) else tensor
    return Entry(tuple(tensor.shape), tensor.dtype, Plain(values, reason))


def _is_roundable(name: str, tensor: Tensor, reason: Kept) -> bool:
    return (
        reason in (Kept.VECTOR, Kept.SMALL)
        and tensor.dtype in (torch.float32, torch.float64)
        and (name.rpartition(".")[2].startswith(_ROUNDABLE))
        and bool((tensor.abs() < torch.finfo(torch.bfloat16).max).all())
    )
