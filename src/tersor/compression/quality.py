# SPDX-License-Identifier: Apache-2.0
"""Measure the quality with a function of the user's, and find the smallest file that keeps it."""

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
"""Returns the quality of the model in an archive, or of the dense model for None."""

_NEEDED = "it is called with the model, and must return a finite number, higher for better models"


def evaluated(evaluate: Callable[[nn.Module], object], model: nn.Module, what: str) -> float:
    """Evaluate a model with a function of the user's, and return the quality.

    Parameters
    ----------
    evaluate
        Function that takes the model and returns a number, or a tensor or array of one element. It
        is called without gradients.
    model
        The model, which is put into evaluation mode.
    what
        Name of the function in errors.

    Returns
    -------
    float
        The quality, a finite number.

    Raises
    ------
    InputError
        If the function raises an error, or returns anything but one finite number.
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
    """Quality that a compressed model must keep.

    Parameters
    ----------
    max_drop
        Largest allowed drop of the quality from the dense model, in the units of the evaluation.
    measure
        Function that returns the quality of the model in an archive, or of the dense model for
        None.
    mend
        Function that takes an archive and returns a changed one, a little larger at most. The new
        archive is measured and kept in place of the old one. By default the archive is not changed.

    Raises
    ------
    InputError
        If ``max_drop`` is negative or not a finite number.
    """

    max_drop: float
    measure: Measure
    mend: Callable[[Archive], Archive] = lambda archive: archive

    def __post_init__(self) -> None:
        if not isinstance(self.max_drop, Real) or not 0 <= self.max_drop < math.inf:
            raise InputError(f"the drop must be a number from 0 on, got {self.max_drop!r}")


MOST_EVALUATIONS = 6
"""Largest number of evaluations, including that of the dense model."""

_FIRST, _LOWEST_RATIO = 12, 2
"""Compression ratio of the first trial, and of the last one if all others drop too much."""

_POWER, _POWERS = 3.0, (0.5, 10.0)
"""Assumed power of the size with which the drop falls, and limits of a power that follows from the
trials. The power determines moves beyond the sizes that were tried."""

_MOVES = (math.log(1.3), math.log(3))
"""Smallest and largest of these moves, in the natural logarithm of the size."""

_CLOSE = math.log(1.02)
"""No trial is made between sizes whose logarithms differ by less than this."""


class _Trial(NamedTuple):
    position: float
    """Natural logarithm of the size in bytes."""
    drop: float


def smallest(compressor: Compressor, source_bytes: int, quality: Quality) -> Archive:
    """Return the smallest archive found whose quality drops by no more than is allowed.

    The quality of the returned archive was measured. At most `MOST_EVALUATIONS` are made, including
    that of the dense model. Between a size that drops too much and one that does not, the logarithm
    of the drop is assumed to be linear in the logarithm of the size.

    Parameters
    ----------
    compressor
        Compressor of the source.
    source_bytes
        Bytes of the source.
    quality
        Quality that the archive must keep.

    Returns
    -------
    Archive
        The smallest archive that keeps the quality.

    Raises
    ------
    BudgetError
        If the smallest possible file is not smaller than the source, or if no file of up to half
        the source's size keeps the quality.
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
        archive = compressor.mended(size, quality.mend)
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
    """Return the next position to try, or None. No size above one that suffices is tried."""
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
    """Return the distance from the last position to the one where the allowed drop is expected."""
    drop = trials[-1].drop
    if drop <= 0 or allowed <= 0:
        return math.log(2)
    power = _POWER
    if len(trials) > 1 and trials[-2].drop > 0:
        (a, before), (b, _) = trials[-2:]
        power = min(max(math.log(drop / before) / (a - b), _POWERS[0]), _POWERS[1])
    return min(max(abs(math.log(drop / allowed)) / power, _MOVES[0]), _MOVES[1])


def _between(short: _Trial, enough: _Trial, trials: list[_Trial], allowed: float) -> float | None:
    """Return the next position in a bracket, or None if the bracket is narrow enough.

    The secant gives the position. If the last two trials moved the same end of the bracket, its
    middle is used instead.
    """
    width = enough.position - short.position
    if width < _CLOSE:
        return None
    share, ends = 0.5, [t.drop <= allowed for t in trials[-2:]]
    if enough.drop > 0 and allowed > 0 and ends[0] != ends[1]:
        share = math.log(short.drop / allowed) / math.log(short.drop / enough.drop)
    return short.position + width * min(max(share, 0.15), 0.85)
