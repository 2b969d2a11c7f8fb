# SPDX-License-Identifier: Apache-2.0
"""Decide which tensors are factored, and how the others are stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.archive import Entry, Plain, Reason
from tersor.tiling import Rowwise, is_tileable, row_blocks

FEWEST_WEIGHTS = 256
"""Tensors with fewer weights stay unfactored: a codebook and a header entry would cost more
bytes than factors save."""

_SMALLEST = 2.0**-60
"""Lower bound of a tensor's largest magnitude; its inverse is the upper bound. Other tensors are
unfactored, because squares of their weights would not fit float32."""

_ROUNDABLE = ("weight", "bias", "running_mean", "running_var", "gamma", "beta")
"""Beginnings of the last part of the names of parameters and normalisation statistics. Rounding
these to bfloat16 changes them by at most 1/256. Other tensors, such as tables of positions, may not
tolerate that."""


def reason_to_keep(name: str, tensor: Rowwise) -> Reason | None:
    """Return the reason why a tensor is not factored, or None if it is factored.

    Parameters
    ----------
    name
        Name of the tensor, for error messages.
    tensor
        Any dense tensor; its elements are read in blocks of rows.

    Returns
    -------
    Reason or None
        The reason, or None for a tensor that is to be factored.

    Raises
    ------
    InputError
        If the tensor cannot be stored, has NaN elements, or is a matrix or kernel with infinite
        elements. Vectors and single numbers may be infinite, because observers start with infinite
        values.
    """
    if isinstance(tensor, Tensor):
        dtypes.check(name, tensor)
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
        return Reason.NOT_FLOAT
    if (numel := math.prod(tensor.shape)) == 0:
        return Reason.EMPTY
    if not is_tileable(tuple(tensor.shape)):
        if any(bool(block.isnan().any()) for block in row_blocks(tensor)):
            check_finite(name, tensor)
        return Reason.VECTOR
    check_finite(name, tensor)
    if numel < FEWEST_WEIGHTS:
        return Reason.SMALL
    return None if _is_moderate(tensor) else Reason.RANGE


def _is_moderate(tensor: Rowwise) -> bool:
    """Return whether squares of the weights fit float32, and their fourfold its own type."""
    largest = max(float(block.detach().abs().amax()) for block in row_blocks(tensor))
    return largest == 0 or _SMALLEST <= largest <= min(
        1 / _SMALLEST, torch.finfo(tensor.dtype).max / 4
    )


def check_finite(name: str, tensor: Rowwise) -> None:
    """Refuse a weight with NaN or infinite elements.

    Raises
    ------
    InputError
        If any element is NaN or infinite; the message counts them.
    """
    blocks = row_blocks(tensor)
    if bad := sum(block.numel() - int(block.isfinite().sum()) for block in blocks):
        raise InputError(
            f"tensor {name!r} has {bad} elements that are NaN or infinite, of "
            f"{math.prod(tensor.shape)}; repair the checkpoint first"
        )


def keep_exactly(name: str, tensor: Tensor) -> Entry:
    """Return the entry of a tensor that must be stored bit for bit, NaN and infinity included.

    Parameters
    ----------
    name
        Name of the tensor, for error messages.
    tensor
        Any dense tensor.

    Raises
    ------
    InputError
        If the tensor cannot be stored.
    """
    dtypes.check(name, tensor)
    values = tensor.detach().cpu()
    return Entry(tuple(tensor.shape), tensor.dtype, Plain(values, Reason.LOSSLESS))


def keep(name: str, tensor: Tensor, reason: Reason) -> Entry:
    """Return the entry of an unfactored tensor, rounded to bfloat16 where that is harmless.

    Parameters
    ----------
    name
        Name of the tensor; it tells which tensors may be rounded.
    tensor
        Any dense tensor.
    reason
        Why the tensor is not factored.
    """
    tensor = tensor.detach().cpu()
    values = tensor.to(torch.bfloat16) if _is_roundable(name, tensor, reason) else tensor
    return Entry(tuple(tensor.shape), tensor.dtype, Plain(values, reason))


def _is_roundable(name: str, tensor: Tensor, reason: Reason) -> bool:
    return (
        reason in (Reason.VECTOR, Reason.SMALL)
        and tensor.dtype in (torch.float32, torch.float64)
        and (name.rpartition(".")[2].startswith(_ROUNDABLE))
        and bool((tensor.abs() < torch.finfo(torch.bfloat16).max).all())
    )
