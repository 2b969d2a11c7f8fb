# SPDX-License-Identifier: Apache-2.0
"""Find the step size at which everything fills the budget best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from tersor.errors import BudgetError

T = TypeVar("T")

FILL = 0.997
"""Share of the budget at which the search stops."""

MAX_TRIALS = 12
"""Default of the largest number of attempts."""

_ENOUGH, _PATIENCE = 0.99, 8
"""After `_PATIENCE` attempts this share of the budget ends the search too."""

_LEVEL = 1.001
"""Sizes that differ by less than this factor count as equal."""

_JUMP_WIDTH, _JUMP = 0.0005, 0.9
"""The size jumps over the target if the logarithms of two step sizes differ by less than
`_JUMP_WIDTH`, while the ratio of the sizes is below `_JUMP`."""

_NARROWEST = 1e-4
"""Step sizes whose logarithms differ by less than this count as equal."""

_SMALLEST_MOVE, _LARGEST_MOVE = 0.05, 2.0
"""Smallest and largest moves away from all trials, in the natural logarithm of the step size."""

_DISTORTION = 0.23
"""Approximate squared error per weight, in units of the step size squared, at rates from 0.5 to 3
bits per weight."""


class Trial(NamedTuple):
    """A step size that was tried, and the resulting bytes."""

    position: float
    """Natural logarithm of the step size."""
    size: int


def guess_step_size(weights: Iterable[tuple[int, float]], bits: float) -> float:
    """Return the step size at which independent Gaussian weights take a number of bits.

    Parameters
    ----------
    weights
        Number of elements and their variance, for each weight.
    bits
        Total bits of all weights.

    Returns
    -------
    float
        Step size in units of the weights; 1 if no weight has a positive variance.
    """
    known = [(number, variance) for number, variance in weights if variance > 0]
    if not known:
        return 1.0
    low, high = 1e-12, max(variance for _, variance in known)
    low *= high
    for _ in range(60):
        level = math.sqrt(low) * math.sqrt(high)
        spent = sum(n * max(0.0, 0.5 * math.log2(v / level)) for n, v in known)
        low, high = (level, high) if spent > bits else (low, level)
    return math.sqrt(high / _DISTORTION)


def finest_fit(
    attempt: Callable[[float], tuple[int, T]],
    target: int,
    guess: float,
    *,
    least: int = 0,
    most: int = MAX_TRIALS,
) -> tuple[float, T]:
    """Find a step size whose bytes are at most ``target``, and hardly less.

    Parameters
    ----------
    attempt
        Function of the step size that returns the bytes and the result of that many bytes. The
        bytes must almost always fall as the step size grows.
    target
        Largest allowed number of bytes.
    guess
        Step size to start from.
    least
        Bytes at the coarsest step sizes; 0 by default. The search does not give up if finer step
        sizes still have this number of bytes.
    most
        Largest number of attempts; 12 by default.

    Returns
    -------
    tuple
        Of the step sizes that fit, the one of the most bytes, the smallest of several, and the
        result of its attempt. A slightly smaller step size may take fewer bytes.

    Raises
    ------
    BudgetError
        If no attempt fits.

    Notes
    -----
    Bytes are nearly linear in the logarithm of the step size (each halving adds a bit), so that the
    secant through two trials comes close to the target. They can also jump, because all elements of
    a weight may become zero at once. If secants do not shrink the bracket from both sides, its
    middle is tried.
    """
    trials: list[Trial] = []
    best: tuple[float, T] | None = None
    fullest = -1
    position: float | None = math.log(guess)
    while position is not None and len(trials) < most:
        step_size = math.exp(position)
        size, made = attempt(step_size)
        trials.append(Trial(position, size))
        finer = size == fullest and best is not None and step_size < best[0]
        if fullest < size <= target or finer:
            best, fullest = (step_size, made), size
        position = _next_position(trials, target, least)
    if best is None:
        raise BudgetError(f"{target} bytes were not reached in {len(trials)} attempts")
    return best


def _next_position(trials: list[Trial], target: int, least: int) -> float | None:
    """Return the next position to try, or None if another trial is not worthwhile."""
    share = FILL if len(trials) < _PATIENCE else _ENOUGH
    if any(share * target <= t.size <= target for t in trials):
        return None
    under = min((t for t in trials if t.size <= target), default=None)
    over = max((t for t in trials if t.size > target and (not under or t < under)), default=None)
    if under and over:
        return _between(over, under, trials, target)
    outwards = sorted(trials, reverse=under is not None)[-3:]
    if under and len(outwards) == 3 and least < outwards[-1].size < outwards[0].size * _LEVEL:
        return None  # finer steps do not add bytes: the size has reached its limit
    return _beyond(outwards, target)


def _between(over: Trial, under: Trial, trials: list[Trial], target: int) -> float | None:
    """Return the next position within a bracket, or None if it is narrow or the size jumps.

    The secant gives the position. If the last two trials moved the same end of the bracket, its
    middle is used instead.
    """
    width = under.position - over.position
    jumps = width < _JUMP_WIDTH and under.size < _JUMP * over.size
    if jumps or width < _NARROWEST:
        return None
    if (trials[-1].size > target) == (trials[-2].size > target):
        return over.position + width / 2
    margin = 0.05 * width
    found = _secant(over, under, target * (1 + FILL) / 2)
    return min(max(found, over.position + margin), under.position - margin)


def _beyond(outwards: list[Trial], target: int) -> float:
    """Return the next position beyond all trials, given the outermost trials, the last one last."""
    *_, last = outwards
    if len(outwards) == 1:
        distance = math.log((max(target, 0) + 1) / (last.size + 1))
        move = min(max(abs(distance), _SMALLEST_MOVE), 1.0)
        return last.position + math.copysign(move, last.size - target)
    before = outwards[-2]
    gap = last.position - before.position
    move = _secant(before, last, target) - last.position if before.size != last.size else math.inf
    # Go a little farther than the secant to cross the target. Limit the move, because the secant
    # may be far off where the curve bends.
    limit = min(4 * abs(gap), _LARGEST_MOVE)
    return last.position + math.copysign(min(max(1.1 * abs(move), _SMALLEST_MOVE), limit), gap)


def _secant(a: Trial, b: Trial, aim: float) -> float:
    """Return the position where the line through two trials reaches ``aim``.

    If the line is level, return the middle of the two positions.
    """
    if a.size == b.size:
        return (a.position + b.position) / 2
    return a.position + (aim - a.size) * (b.position - a.position) / (b.size - a.size)
