"""Quality as a user measures it, and the smallest file that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import nn

from tersor.compression.compressor import Compressor
from tersor.errors import BudgetError, InputError, explained
from tersor.storage.archive import Archive
from tersor.units import format_size

Measure = Callable[[Archive | None], float]
"""Gives the quality of what an archive holds, or of the dense model for None."""

_NEEDED = "it is called with the model, and must return a finite number, higher for better models"


def evaluated(evaluate: Callable[[nn.Module], object], model: nn.Module, what: str) -> float:
    """What a function of the user's says of a model, in evaluation mode and without gradients.

    Parameters
    ----------
    evaluate
        Takes the model and returns a number, or a tensor or array of one element.
    model
        The model.
    what
        What the function is called in errors.

    Raises
    ------
    InputError
        If the function raises, or returns anything but one finite number.
    """
    model.eval()
    with explained(what, _NEEDED), torch.no_grad():
        value = evaluate(model)
    shape = getattr(value, "shape", None)
    if shape is not None and math.prod(shape) != 1:
        raise InputError(
            f"{what} returned a {type(value).__name__} of shape {tuple(shape)}; {_NEEDED}"
        )
    number = value.item() if shape is not None and hasattr(value, "item") else value
    if not isinstance(number, Real) or isinstance(number, bool):
        raise InputError(f"{what} returned a {type(value).__name__}; {_NEEDED}")
    if not math.isfinite(number):
        raise InputError(f"{what} returned {number}; {_NEEDED}")
    return float(number)


@dataclass(frozen=True)
class Quality:
    """How much worse than the dense model a compressed one may be.

    Parameters
    ----------
    max_drop
        In units of the evaluation.
    measure
        Gives the evaluation of what an archive holds, or of the dense model for None.
    mend
        Given an archive, gives one that is no larger, and is measured and kept in its place.

    Raises
    ------
    InputError
        If ``max_drop`` is negative or no finite number.
    """

    max_drop: float
    measure: Measure
    mend: Callable[[Archive], Archive] = lambda archive: archive

    def __post_init__(self) -> None:
        if not isinstance(self.max_drop, Real) or not 0 <= self.max_drop < math.inf:
            raise InputError(f"the drop must be a number from 0 on, got {self.max_drop!r}")


MOST_EVALUATIONS = 6
"""The dense model's included."""

_FIRST, _LOWEST_RATIO = 12, 2
"""Ratio of the first trial, and of the last if everything else drops too much."""

_POWER, _POWERS = 3.0, (0.5, 10.0)
"""The drop falls about with this power of the size, or one within these limits that was seen: for
moves beyond what was tried."""

_MOVES = (math.log(1.3), math.log(3))
"""Smallest and largest of these moves, in the logarithm of the size."""

_CLOSE = math.log(1.02)
"""Sizes this close to each other need no trial between them."""


class _Trial(NamedTuple):
    position: float
    """Logarithm of the size in bytes."""
    drop: float


def smallest(compressor: Compressor, source_bytes: int, quality: Quality) -> Archive:
    """The smallest archive found of which the evaluation drops by no more than is allowed.

    It was measured, as were at most five of other sizes and the dense model. Between a size that
    drops too much and one that does not the logarithm of the drop is taken as linear in that of the
    size.

    Raises
    ------
    BudgetError
        If half of the source's size is not enough.
    """
    if compressor.least >= source_bytes:
        raise BudgetError(
            f"the smallest possible file has {format_size(compressor.least)}, the input only "
            f"{format_size(source_bytes)}"
        )
    dense, allowed = quality.measure(None), quality.max_drop
    low = math.log(compressor.least)
    high = max(low, math.log(source_bytes / _LOWEST_RATIO))
    position = min(max(math.log(source_bytes / _FIRST), low), high)
    best: Archive | None = None
    trials: list[_Trial] = []
    for left in range(MOST_EVALUATIONS - 2, -1, -1):
        size = max(round(math.exp(position)), compressor.least)
        archive = quality.mend(compressor.within(size))
        trials.append(_Trial(position, dense - quality.measure(archive)))
        if trials[-1].drop <= allowed:
            best = archive
        following = _next(trials, allowed, (low, high), last=left == 1)
        if following is None:
            break
        position = following
    if best is None:
        position, drop = max(trials)
        raise BudgetError(
            f"no file of up to {format_size(round(math.exp(position)))} keeps the quality: at that "
            f"size the evaluation drops by {drop:.4g}, from {dense:.6g} to {dense - drop:.6g}, and "
            f"only {allowed:g} is allowed; allow more"
        )
    return best


def _next(
    trials: list[_Trial], allowed: float, limits: tuple[float, float], *, last: bool
) -> float | None:
    """Where to try next, if anywhere; once a size is enough, trials are below it only."""
    enough = min((t for t in trials if t.drop <= allowed), default=None)
    short = max((t for t in trials if t.drop > allowed), default=None)
    if short and enough:
        return _between(short, enough, trials, allowed)
    position = trials[-1].position
    if enough:
        moved = max(position - _move(trials, allowed), limits[0])
    else:
        moved = limits[1] if last else min(position + _move(trials, allowed), limits[1])
    return moved if moved != position else None


def _move(trials: list[_Trial], allowed: float) -> float:
    """How far to go beyond all trials, on the way of which the drop will be the allowed one."""
    drop = trials[-1].drop
    if drop <= 0 or allowed <= 0:
        return math.log(2)
    power = _POWER
    if len(trials) > 1 and trials[-2].drop > 0:
        (a, before), (b, _) = trials[-2:]
        power = min(max(math.log(drop / before) / (a - b), _POWERS[0]), _POWERS[1])
    return min(max(abs(math.log(drop / allowed)) / power, _MOVES[0]), _MOVES[1])


def _between(short: _Trial, enough: _Trial, trials: list[_Trial], allowed: float) -> float | None:
    """Next size in a bracket: the secant's, or its middle if that moved the same end before."""
    width = enough.position - short.position
    if width < _CLOSE:
        return None
    share, ends = 0.5, [t.drop <= allowed for t in trials[-2:]]
    if enough.drop > 0 and allowed > 0 and ends[0] != ends[1]:
        share = math.log(short.drop / allowed) / math.log(short.drop / enough.drop)
    return short.position + width * min(max(share, 0.15), 0.85)
