"""Which of several versions of each weight: the least error that fits a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_UNITS = 1 << 14
"""Parts that what is left of the budget, beyond the smallest versions, is counted in."""


def choose(options: Sequence[Sequence[tuple[int, float]]], budget: int) -> list[int] | None:
    """One option of each group, of least total error among those that fit.

    The multiple-choice knapsack problem, by dynamic programming over the bytes that are left when
    each group has its smallest option (Kellerer, Pferschy, Pisinger, *Knapsack Problems*, 2004,
    section 11.5): exact up to 16384 bytes left, else up to a rounding of each option's bytes to one
    in 16384 of that.

    Parameters
    ----------
    options
        For each group pairs of bytes and error.
    budget
        Bytes in all.

    Returns
    -------
    list of int or None
        Position of the chosen option in each group; None if nothing fits.
    """
    least = [min(size for size, _ in group) for group in options]
    left = budget - sum(least)
    if left < 0:
        return None
    unit = max(1, -(-left // _UNITS))
    errors = np.zeros(left // unit + 1)  # of the groups so far, by units that they may take
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
