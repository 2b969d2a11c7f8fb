# SPDX-License-Identifier: Apache-2.0
"""Quantize a weight by sums of columns, with the largest codebook that fits a budget of bytes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor

from tersor.errors import BudgetError
from tersor.factorization.decompose import Solution, check, decompose
from tersor.factorization.methods import additive_vector_quantization
from tersor.tiling import Tiling

_INDEX_COUNTS = (1, 2, 3, 4)
_CODEBOOK_BITS = 16


def additive_bits(columns: int, count: int, d: int, n: int) -> int:
    """Return the bits of n tiles of d elements, each the sum of ``count`` of ``columns`` columns.

    Each tile takes ``log2`` of the number of its choices, each element of the codebook 16 bits.
    """
    return math.ceil(n * math.log2(math.comb(columns, count))) + _CODEBOOK_BITS * columns * d


def quantize_within(
    weight: Tensor, nbytes: int, *, tile: int, counts: Sequence[int] = _INDEX_COUNTS, seed: int = 0
) -> Solution:
    """Return the best additive vector quantization of a weight within a budget.

    Each count of columns per tile gets the largest codebook that fits (`additive_bits`). If 1 is
    among the counts the result is never worse than `vector_quantization` in as many bytes.

    Parameters
    ----------
    weight, tile, seed
        Weight, tile size and seed as for `decompose`.
    nbytes
        Budget in bytes.
    counts
        Numbers of columns per tile to try; default 1 to 4.

    Raises
    ------
    BudgetError
        If no codebook fits.
    """
    check(weight, tile)
    n = Tiling(tuple(weight.shape), tile).count
    methods = [
        additive_vector_quantization(columns, count)
        for count in counts
        if (columns := _most_columns(count, tile, n, nbytes)) >= count
    ]
    if not methods:
        raise BudgetError(
            f"{nbytes} bytes are too few for a codebook: a column of {tile} elements takes "
            f"{_CODEBOOK_BITS * tile // 8}"
        )
    solutions = [decompose(weight, method, tile=tile, seed=seed) for method in methods]
    return min(solutions, key=lambda solution: min(solution.history))


def _most_columns(count: int, d: int, n: int, nbytes: int) -> int:
    """Return the number of columns of the largest codebook that fits; below ``count`` if none."""
    possible = range(count, n + 1)
    fitting = bisect_right(possible, 8 * nbytes, key=lambda k: additive_bits(k, count, d, n))
    return count - 1 + fitting
