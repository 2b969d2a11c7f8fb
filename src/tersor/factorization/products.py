"""Compute matrix products whose result does not depend on the number of threads.

Float32 products add terms in an order that changes with the number of threads and the machine, and
a difference in the last digit can change the rounding of a latent. Sums in float64 that are rounded
once to float32 are the same for any order, except for a chance of about 1 in 10**8 that the last
digit differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK, _ELEMENTS = 4096, 1 << 19
"""The columns of a block are a multiple of the first number, and its elements are about the second,
so that the working memory fits the cache."""


def inner(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``a.T @ b``, summed in float64.

    Parameters
    ----------
    a, b
        Matrices (m, k) and (m, n).
    dtype
        Data type of the result; by default that of b.

    Returns
    -------
    Tensor
        Shape (k, n).
    """
    if b.numel() <= _ELEMENTS and len(a) <= _BLOCK:
        return (a.T.double() @ b.double()).to(dtype or b.dtype)
    result = b.new_empty(a.shape[1], b.shape[1], dtype=dtype or b.dtype)
    for columns in blocks(*b.shape):
        total = result.new_zeros(len(result), columns.stop - columns.start, dtype=torch.float64)
        for rows in blocks(total.shape[1], len(a)):
            total += a[rows].T.double() @ b[rows, columns].double()
        result[:, columns] = total
    return result


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of the columns of a matrix, so that work on one of them takes little memory."""
    size = _BLOCK * max(1, _ELEMENTS // (_BLOCK * max(1, rows)))
    for start in range(0, columns, size):
        yield slice(start, min(start + size, columns))
