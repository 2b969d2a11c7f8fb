"""Fill a budget by passes over all weights at one step size, and a choice among their versions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tersor.compression.knapsack import choose
from tersor.compression.search import FILL
from tersor.compression.sizes import SizeModel, step_size_for

MOST_PASSES = 12
"""Largest number of passes over all weights."""

_AIM = (1 + FILL) / 2
"""Share of the budget that a pass usually aims at."""

_CLOSE, _SEVERAL = 0.05, 8
"""A pass of at least `_SEVERAL` weights whose bytes differ from the budget by a share of less than
`_CLOSE` is followed by one on the other side of the budget, and versions of both are mixed."""

_STIFFEST = 8
"""Largest change of the logarithm of the step size per change of the logarithm of the bytes, which
occurs for weights of 12 bits."""

_BARREN = 3
"""The search stops after this many passes in a row that come hardly closer to the budget."""


class Sized(Protocol):
    """A weight that will be factored."""

    @property
    def name(self) -> str:
        """Name of the weight."""

    @property
    def numel(self) -> int:
        """Number of its elements."""


Content = TypeVar("Content")
W = TypeVar("W", bound=Sized)


@dataclass(frozen=True)
class Version(Generic[Content]):
    """A weight at one step size.

    Parameters
    ----------
    nbytes
        Bytes in the file.
    error
        Squared error, scaled so that errors of different weights can be added.
    content
        The factors.
    """

    nbytes: int
    error: float
    content: Content


Solve = Callable[[Sequence[W], float, str], Iterable[tuple[W, Version[Content]]]]
"""Given weights, a step size and a message for the progress: yields weights and their versions."""


@dataclass
class _Trusted:
    """Limits of the next step size, because the expected sizes may lead too far, or nowhere."""

    below: float = 0.0
    above: float = math.inf
    farthest: float = math.inf
    slow: bool = False

    def nearest(self, expected: float, last: float) -> float:
        """Return the step size to try, given the one whose size is expected to be the target."""
        if self.slow and 0 < self.below < self.above < math.inf:
            return math.sqrt(self.below * self.above)
        return min(max(expected, last / self.farthest), last * self.farthest)

    def learn(self, step_size: float, taken: float, aim: float, *, slow: bool) -> None:
        """Record the bytes at a step size, and whether they came only slowly closer to the aim."""
        self.slow = slow
        if taken > aim:
            self.below = max(self.below, step_size)
        else:
            self.above = min(self.above, step_size)
        known = taken > 0 and aim > 0
        self.farthest = max(taken / aim, aim / taken) ** _STIFFEST if known else math.inf


@dataclass
class Filling(Generic[W, Content]):
    """Searches for the versions of least error that fit a budget.

    Parameters
    ----------
    weights
        Weights to factor, with different names.
    models
        Models of the bytes of each weight, by name. They learn from the measured bytes.
    solve
        Function that yields the versions of weights at a step size.
    nothing
        Version of each weight that takes no bytes, by name.
    size
        Function that returns the bytes of the whole file for versions by name.

    Attributes
    ----------
    passes
        Versions by name of each pass that still counts.
    """

    weights: Sequence[W]
    models: Mapping[str, SizeModel]
    solve: Solve[W, Content]
    nothing: Mapping[str, Version[Content]]
    size: Callable[[Mapping[str, Version[Content]]], int]
    passes: list[dict[str, Version[Content]]] = field(init=False, default_factory=list)

    def within(self, target: int, step_size: float) -> Mapping[str, Version[Content]]:
        """Return the best choice of versions found whose file has at most ``target`` bytes.

        Each pass makes one version of every weight, and the knapsack finds the best mix of all
        versions. A pass that comes close to the budget is followed by one that aims as far on the
        other side of the budget, so that the budget is full when half of the weights are done. From
        then on earlier passes do not count, because their versions are much finer or coarser than
        the others. If the expected sizes lead to the budget too slowly, step sizes are bisected.

        Parameters
        ----------
        target
            Bytes of the file, at most.
        step_size
            Step size of about the right order, to start from.

        Returns
        -------
        mapping
            Chosen version of each weight, by name.
        """
        budget, best = target - self.size(self.nothing), self.nothing
        aim, barren, gap, trusted = _AIM * budget, 0, math.inf, _Trusted()
        for number in range(MOST_PASSES):
            expected = step_size_for([m.bytes for m in self.models.values()], aim, step_size)
            step_size = trusted.nearest(expected, step_size)
            latest: dict[str, Version[Content]] = {}
            self.passes.append(latest)
            for weight, version in self.solve(self.weights, step_size, f"pass {number + 1}"):
                self.models[weight.name].learn(step_size, version.nbytes)
                latest[weight.name] = version
                if gap < _CLOSE * budget and self._may_fill(budget):
                    best, full = self._best(target)
                    if full:
                        return best
            best, full = self._best(target)
            taken = sum(version.nbytes for version in latest.values())
            budget = target - (self.size(latest) - taken)  # now the bytes of the header are known
            before, gap = gap, abs(budget - taken)
            barren = 0 if gap < 0.9 * before else barren + 1
            if taken <= budget and gap < _CLOSE * budget <= before:
                self.passes = [latest]
                best, full = self._best(target)
            if (full and gap < _CLOSE * budget) or barren == _BARREN:
                break
            aim = _next_aim(budget, taken, len(self.weights))
            trusted.learn(step_size, taken, aim, slow=gap > max(before / 2, _CLOSE * budget))
        return best

    def _may_fill(self, budget: int) -> bool:
        """Return whether mixes of the versions with factors exist below and above the budget.

        Otherwise a search for the best mix is not worth its time.
        """
        groups = [[v.nbytes for v in self._versions(name)[1:]] for name in self.nothing]
        return sum(map(min, groups)) <= budget and sum(map(max, groups)) >= FILL * budget

    def _best(self, target: int) -> tuple[Mapping[str, Version[Content]], bool]:
        """Return the versions of least error whose file fits, and whether they fill the target.

        The file has a few bytes besides the versions, which depend on the choice. Weights are left
        out altogether only if nothing else fits, because errors no longer add up when a weight has
        no bytes at all.
        """
        budget, all_of_them = target - self.size(self.nothing), False
        while True:
            groups = [self._candidates(name, all_of_them) for name in self.nothing]
            picked = choose([[(v.nbytes, v.error) for v in group] for group in groups], budget)
            if picked is None and not all_of_them:
                all_of_them = True
                continue
            chosen = zip(groups, picked or [0] * len(groups), strict=True)
            best = dict(zip(self.nothing, (g[i] for g, i in chosen), strict=True))
            size = self.size(best)
            if size <= target:
                return best, not all_of_them and size >= FILL * target
            budget -= size - target

    def _candidates(self, name: str, all_of_them: bool) -> list[Version[Content]]:
        versions = self._versions(name)
        return versions if all_of_them else [v for v in versions if v.nbytes] or versions[:1]

    def _versions(self, name: str) -> list[Version[Content]]:
        """Return all versions of a weight, the one without bytes first."""
        return [self.nothing[name], *(done[name] for done in self.passes if name in done)]


def _next_aim(budget: int, taken: int, weights: int) -> float:
    gap = budget - taken
    if weights >= _SEVERAL and 0 < abs(gap) < _CLOSE * budget:
        return taken + math.copysign(max(2 * abs(gap), 0.004 * budget), gap)
    return _AIM * budget
