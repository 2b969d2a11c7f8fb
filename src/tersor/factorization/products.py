"""Matrix products that do not depend on the number of threads.

Float32 products add up in an order that changes with the number of threads and the machine, and
a last digit can turn the rounding of a latent. Summed in float64 and rounded once to float32 they
are the same whatever the order, but for a chance of about 1 in 10**8 for a last digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 16384
"""Rows and columns that are converted at once: the working set stays in the cache."""


def inner(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``a.T @ b`` for a (m, k) and b (m, n), summed in float64; rounded to ``dtype``, or b's."""
    result = b.new_zeros(a.shape[1], b.shape[1], dtype=dtype or b.dtype)
    for start in range(0, b.shape[1], _BLOCK):
        columns = b[:, start : start + _BLOCK]
        blocks = zip(torch.split(a, _BLOCK), torch.split(columns, _BLOCK), strict=True)
        total = torch.zeros_like(result[:, start : start + _BLOCK], dtype=torch.float64)
        for x, y in blocks:
            total += x.T.double() @ y.double()
        result[:, start : start + _BLOCK] = total
    return result
