"""Choose one version of each weight with the least total error within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNITS = 1 << 14
"""Number of parts into which the budget beyond the smallest versions is divided."""


def choose(options: Sequence[Sequence[tuple[int, float]]], budget: int) -> list[int] | None:
    """Choose one option of each group so that the total error is least and the bytes fit.

    This is the multiple-choice knapsack problem. It is solved by dynamic programming over the bytes
    that remain when each group has its smallest option (Kellerer, Pferschy, Pisinger, *Knapsack
    Problems*, 2004, section 11.5). The solution is exact if up to 16384 bytes remain. Otherwise the
    bytes of each option are rounded up to a multiple of a unit, 1/16384 of the remaining bytes.

    Parameters
    ----------
    options
        Pairs of bytes and error for each group.
    budget
        Total bytes, at most.

    Returns
    -------
    list of int or None
        Index of the chosen option in each group, or None if nothing fits.
    """
    least = [min(size for size, _ in group) for group in options]
    left = budget - sum(least)
    if left < 0:
        return None
    unit = max(1, -(-left // _UNITS))
    errors = np.zeros(left // unit + 1)  # least error of the groups so far, by units available
    taken: list[list[int]] = []
    choices: list[np.ndarray[tuple[int], np.dtype[np.intp]]] = []
    for group, smallest in zip(options, least, strict=True):
        units = [min(-(-(size - smallest) // unit), len(errors)) for size, _ in group]
        shifted = np.full((len(group), len(errors)), np.inf)
        for row, used, (_, error) in zip(shifted, units, group, strict=True):
            row[used:] = errors[: len(errors) - used] + error
        choices.append(shifted.argmin(axis=0))
        taken.append(units)
        errors = shifted.min(axis=0)
    picked, at = [], len(errors) - 1
    for choice, units in zip(reversed(choices), reversed(taken), strict=True):
        picked.append(int(choice[at]))
        at -= units[picked[-1]]
    return picked[::-1]
