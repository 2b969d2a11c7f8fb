# SPDX-License-Identifier: Apache-2.0
"""Compute matrix products whose result does not depend on threads or machine.

Float32 products of a library add terms in an order that changes with the number of threads and the
machine, and a difference in the last digit can change the rounding of a latent. The native sums
have one order (``csrc/solver``): a sum over few terms is in the order of the terms, a long one in
pieces whose sums are added in float64. Sums of other types or devices are in float64 and rounded
once, which leaves a chance of about 1 in 10**8 that the last digit differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tersor import _native

_BLOCK, _ELEMENTS = 4096, 1 << 19
"""The columns of a block are a multiple of the first number, and its elements are about the second,
so that the working memory fits the cache."""


def inner(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``a.T @ b``.

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
    dtype = dtype or b.dtype
    if all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (a, b)):
        if a.stride(0) == 1 == b.stride(0) or dtype != torch.float32:  # transposed: long rows
            sums = torch.empty(a.shape[1], b.shape[1], dtype=torch.float64)
            rows = a.T.contiguous().numpy(), b.T.contiguous().numpy()
            _native.inner(*rows, sums.numpy(), torch.get_num_threads())
            return sums.to(dtype)
        result = torch.empty(a.shape[1], b.shape[1])
        columns = b if b.stride(1) == 1 else b.contiguous()
        threads = torch.get_num_threads()
        _native.product(a.contiguous().numpy(), columns.numpy(), result.numpy(), threads)
        return result
    if b.numel() <= _ELEMENTS and len(a) <= _BLOCK:
        return (a.T.double() @ b.double()).to(dtype)
    result = b.new_empty(a.shape[1], b.shape[1], dtype=dtype)
    for columns_of_b in blocks(*b.shape):
        width = columns_of_b.stop - columns_of_b.start
        total = result.new_zeros(len(result), width, dtype=torch.float64)
        for rows_of_b in blocks(width, len(a)):
            total += a[rows_of_b].T.double() @ b[rows_of_b, columns_of_b].double()
        result[:, columns_of_b] = total
    return result


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of the columns of a matrix, so that work on one of them takes little memory."""
    size = _BLOCK * max(1, _ELEMENTS // (_BLOCK * max(1, rows)))
    for start in range(0, columns, size):
        yield slice(start, min(start + size, columns))
