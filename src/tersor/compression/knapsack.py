# SPDX-License-Identifier: Apache-2.0
"""Choose one version of each weight with the least total error within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_UNITS = 1 << 14
"""Number of parts into which the budget beyond the smallest versions is divided."""

_CORE = 128
"""Largest number of groups whose choice is left to dynamic programming. With more of them less of
the budget is used, since the bytes of each are rounded up."""

Options = Sequence[tuple[int, float]]
"""Pairs of bytes and error."""


def choose(options: Sequence[Options], budget: int) -> list[int] | None:
    """Choose one option of each group so that the total error is least and the bytes fit.

    This is the multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger, *Knapsack Problems*,
    2004, chapter 11). Of many groups, most get the option that one λ of a byte for all chooses;
    only the `_CORE` groups that are nearest to another choice are left to `_exact`.

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
    least = sum(min(size for size, _ in group) for group in options)
    if least > budget:
        return None
    if len(options) <= _CORE:
        return _exact(options, budget)
    picked, doubts = _priced(options, budget)
    core = sorted(np.argsort(doubts, kind="stable")[:_CORE].tolist())
    used = sum(group[i][0] for group, i in zip(options, picked, strict=True))
    spared = sum(options[place][picked[place]][0] for place in core)
    best = _exact([options[place] for place in core], budget - used + spared)
    for place, index in zip(core, best or [], strict=True):
        picked[place] = index
    return picked


def _priced(options: Sequence[Options], budget: int) -> tuple[list[int], NDArray[np.float64]]:
    """Return the choice at the lowest λ of a byte at which it fits.

    Returns
    -------
    tuple
        Index of the chosen option in each group; and how far λ is from one at which the
        choice would be another, as the absolute logarithm of their ratio.
    """
    steps: list[tuple[float, int, int, int]] = []  # error saved by a byte, group, option, bytes
    picked: list[int] = []
    for place, group in enumerate(options):
        order = sorted(range(len(group)), key=lambda i: group[i])
        at = order[0]
        picked.append(at)
        while True:
            now, error = group[at]
            finer = [i for i in order if group[i][0] > now and group[i][1] < error]
            if not finer:
                break
            gains = [(error - group[i][1]) / (group[i][0] - now) for i in finer]
            best = max(range(len(finer)), key=gains.__getitem__)
            steps.append((gains[best], place, finer[best], group[finer[best]][0] - group[at][0]))
            at = finer[best]
    steps.sort(key=lambda step_size: -step_size[0])
    left = budget - sum(group[i][0] for group, i in zip(options, picked, strict=True))
    lagrangian = 0.0
    for gain, place, index, size in steps:
        if size > left:
            lagrangian = gain
            break
        left -= size
        picked[place] = index
    doubts = np.full(len(options), np.inf)
    for gain, place, _, _ in steps:
        distance = abs(np.log(gain / lagrangian)) if lagrangian > 0 else np.inf
        doubts[place] = min(doubts[place], distance)
    return picked, doubts


def _exact(options: Sequence[Options], budget: int) -> list[int] | None:
    """Choose by dynamic programming over the bytes beyond the smallest options.

    The solution is exact if up to 16384 bytes remain (section 11.5 of the book). Otherwise the
    bytes of each option are rounded up to a multiple of a unit, 1/16384 of the remaining bytes.
    """
    least = [min(size for size, _ in group) for group in options]
    left = budget - sum(least)
    if left < 0:
        return None
    unit = max(1, -(-left // _UNITS))
    errors = np.zeros(left // unit + 1)  # least error of the groups so far, by units available
    taken: list[list[int]] = []
    choices: list[NDArray[np.int16]] = []
    for group, smallest in zip(options, least, strict=True):
        units = [min(-(-(size - smallest) // unit), len(errors)) for size, _ in group]
        shifted = np.full((len(group), len(errors)), np.inf)
        for row, used, (_, error) in zip(shifted, units, group, strict=True):
            row[used:] = errors[: len(errors) - used] + error
        choices.append(shifted.argmin(axis=0).astype(np.int16))
        taken.append(units)
        errors = shifted.min(axis=0)
    picked, at = [], len(errors) - 1
    for choice, units in zip(reversed(choices), reversed(taken), strict=True):
        picked.append(int(choice[at]))
        at -= units[picked[-1]]
    return picked[::-1]
