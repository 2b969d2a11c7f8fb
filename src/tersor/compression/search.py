"""Find the finest step at which everything fits the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from tersor.errors import BudgetError

T = TypeVar("T")

FILL = 0.997
"""Share of the budget that is enough to stop the search."""

MAX_TRIALS = 12

_LEVEL = 1.001
"""Sizes that differ by less than this factor count as the same."""

_JUMP_WIDTH, _JUMP = 0.02, 0.9
"""Steps this close whose sizes differ by more than this factor: the size jumps over the target."""

_NARROWEST = 1e-4
"""Steps that differ by less are the same."""

_SMALLEST_MOVE, _LARGEST_MOVE = 0.05, 2.0
"""Smallest and largest moves away from the trials so far, in the logarithm of the step."""

_DISTORTION = 0.23
"""Squared error per weight in units of the step squared, about, at rates from 0.5 to 3 bits."""


class Trial(NamedTuple):
    """What was tried, and the size that it took."""

    position: float
    """Logarithm of the step."""
    size: int


def guess_step(weights: Iterable[tuple[int, float]], bits: float) -> float:
    """Step at which independent Gaussian weights, (numbers, variance), take so many bits."""
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
    """Smallest step found whose size is at most ``target``, with what the attempt made of it.

    Parameters
    ----------
    attempt
        Gives the size at a step, and the thing of that size. The size must fall, nearly always,
        as the step grows.
    target
        Bytes that may be used.
    guess
        Step to begin with.
    least
        Size at the coarsest steps. That finer ones do not change it yet is no reason to give up.
    most
        Attempts at most.

    Raises
    ------
    BudgetError
        If no attempt fits.

    Notes
    -----
    Sizes are nearly linear in the logarithm of the step (a bit for each halving), so that the
    secant through two trials lands close. They can also jump: all of a weight may become zero at
    once. Where secants do not halve the bracket, its middle is tried.
    """
    trials: list[Trial] = []
    best: tuple[float, T] | None = None
    position: float | None = math.log(guess)
    while position is not None and len(trials) < most:
        step = math.exp(position)
        size, made = attempt(step)
        trials.append(Trial(position, size))
        if size <= target and (best is None or step < best[0]):
            best = (step, made)
        position = _next_position(trials, target, least)
    if best is None:
        raise BudgetError(f"{target} bytes were not reached in {len(trials)} attempts")
    return best


def _next_position(trials: list[Trial], target: int, least: int) -> float | None:
    """Where to try next; None if it is not worth while."""
    if FILL * target <= trials[-1].size <= target:
        return None
    under = min((t for t in trials if t.size <= target), default=None)
    over = max((t for t in trials if t.size > target and (not under or t < under)), default=None)
    if under and over:
        return _between(over, under, trials, target)
    outwards = sorted(trials, reverse=under is not None)[-3:]
    if under and len(outwards) == 3 and least < outwards[-1].size < outwards[0].size * _LEVEL:
        return None  # finer steps gain nothing: they have reached their limit
    return _beyond(outwards, target)


def _between(over: Trial, under: Trial, trials: list[Trial], target: int) -> float | None:
    """Next position within a bracket: the secant's, or its middle if that does not shrink it."""
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
    """Next position beyond all trials, of which these are the last ones outwards."""
    *_, last = outwards
    if len(outwards) == 1:
        move = min(max(abs(math.log((target + 1) / (last.size + 1))), _SMALLEST_MOVE), 1.0)
        return last.position + math.copysign(move, last.size - target)
    before = outwards[-2]
    gap = last.position - before.position
    move = _secant(before, last, target) - last.position if before.size != last.size else math.inf
    # A little more than the secant says, to get across; no leap that a bend could make too far.
    limit = min(4 * abs(gap), _LARGEST_MOVE)
    return last.position + math.copysign(min(max(1.1 * abs(move), _SMALLEST_MOVE), limit), gap)


def _secant(a: Trial, b: Trial, aim: float) -> float:
    """Where the line through two trials reaches ``aim``; their middle if it is level."""
    if a.size == b.size:
        return (a.position + b.position) / 2
    return a.position + (aim - a.size) * (b.position - a.position) / (b.size - a.size)
