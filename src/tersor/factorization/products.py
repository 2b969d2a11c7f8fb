"""Matrix products that do not depend on the number of threads.

Float32 products add up in an order that changes with the number of threads and the machine, and
a last digit can turn the rounding of a latent. Summed in float64 and rounded once to float32 they
are the same whatever the order, but for a chance of about 1 in 10**8 for a last digit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK, _ELEMENTS = 4096, 1 << 19
"""Columns are converted and worked on in multiples of the former, of about the latter elements: the
working set stays in the cache."""


def inner(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``a.T @ b`` for a (m, k) and b (m, n), summed in float64; rounded to ``dtype``, or b's."""
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
    """Parts of a matrix with many columns, so that what is made of them takes little memory."""
    size = _BLOCK * max(1, _ELEMENTS // (_BLOCK * max(1, rows)))
    for start in range(0, columns, size):
        yield slice(start, min(start + size, columns))
