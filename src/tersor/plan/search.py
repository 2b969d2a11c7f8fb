"""Find the finest step at which everything fits the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

FILL = 0.997
"""Share of the budget that is enough to stop the search."""

MAX_TRIALS = 12


def finest_fit(
    attempt: Callable[[float], tuple[int, T]], target: int, guess: float
) -> tuple[float, T]:
    """Smallest step found whose size is at most ``target``, with what the attempt made of it.

    Parameters
    ----------
    attempt
        Gives the size at a step, and the thing of that size. The size must fall, nearly always,
        as the step grows, and reach the target for some step.
    target
        Bytes that may be used.
    guess
        Step to begin with.

    Notes
    -----
    Sizes are nearly linear in the logarithm of the step (a bit for each halving), so that the
    secant through two trials lands close; a bracket keeps it safe.
    """
    trials: list[tuple[float, int]] = []
    best: tuple[float, T] | None = None
    for step in _proposals(guess, target, trials):
        size, made = attempt(step)
        trials.append((math.log(step), size))
        if size <= target and (best is None or step < best[0]):
            best = (step, made)
        if FILL * target <= size <= target or (best and len(trials) >= MAX_TRIALS):
            break
        if len(trials) > 1 and _is_level(trials) and size <= target:
            break
    assert best is not None
    return best


def _is_level(trials: list[tuple[float, int]]) -> bool:
    """Whether the two finest trials have the same size: steps have reached their limit."""
    (_, first), (_, second) = sorted(trials)[:2]
    return first <= second * 1.001


def _proposals(guess: float, target: int, trials: list[tuple[float, int]]) -> Iterator[float]:
    """Steps to try; ``trials`` grows (log step, size) between them."""
    aim = target * (1 + FILL) / 2
    yield guess
    while True:
        over = max((t for t in trials if t[1] > target), default=None)
        under = min((t for t in trials if t[1] <= target), default=None)
        if over and under:
            middle = _secant(over, under, aim)
            # Keep off the ends of the bracket, so that it always shrinks.
            margin = 0.05 * (under[0] - over[0])
            if under[0] - over[0] < 1e-6:
                return
            yield math.exp(min(max(middle, over[0] + margin), under[0] - margin))
        elif len(trials) < 2:
            yield math.exp(trials[-1][0] + (0.2 if over else -0.2))
        else:
            a, b = sorted(trials)[:2] if under else sorted(trials)[-2:]
            outer = _secant(a, b, aim)
            last = trials[-1][0]
            jump = min(max(abs(outer - last) * 1.1, 0.05), 2.0)
            yield math.exp(last + jump if over else last - jump)


def _secant(a: tuple[float, int], b: tuple[float, int], aim: float) -> float:
    """Where the line through two trials reaches ``aim``; their middle if it is level."""
    if a[1] == b[1]:
        return (a[0] + b[0]) / 2
    return a[0] + (aim - a[1]) * (b[0] - a[0]) / (b[1] - a[1])
