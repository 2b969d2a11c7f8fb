"""Which of several versions of each weight: the least error that fits a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_NODES = 2000
"""Of branch and bound, at most: a limit of time would make results depend on the machine."""

_GAP = 1e-4
"""Relative difference to the optimum that is good enough."""


def choose(options: Sequence[Sequence[tuple[int, float]]], budget: int) -> list[int] | None:
    """One option of each group, of least total error among those that fit.

    This is the multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger, *Knapsack Problems*,
    2004, chapter 11), given to HiGHS as an integer program.

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
    smallest = [min(range(len(group)), key=lambda i: group[i]) for group in options]
    if sum(group[i][0] for group, i in zip(options, smallest, strict=True)) > budget:
        return None
    best = [min(range(len(group)), key=lambda i: group[i][::-1]) for group in options]
    if sum(group[i][0] for group, i in zip(options, best, strict=True)) <= budget:
        return best
    return _solve(options, budget) or smallest


def _solve(options: Sequence[Sequence[tuple[int, float]]], budget: int) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(group) for group in options]
    starts = np.cumsum([0, *sizes])
    nbytes = np.array([size for group in options for size, _ in group], np.float64)
    errors = np.array([error for group in options for _, error in group], np.float64)
    one_each = csr_array((np.ones(starts[-1]), np.arange(starts[-1]), starts))
    result = milp(
        errors / max(errors.max(), 1e-300),
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(nbytes[None, :] / max(budget, 1), -np.inf, budget > 0),
        ],
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    if result.x is None:
        return None
    chosen = [int(np.argmax(result.x[a:b])) for a, b in pairwise(starts)]
    fits = sum(group[i][0] for group, i in zip(options, chosen, strict=True)) <= budget
    return chosen if fits else None
