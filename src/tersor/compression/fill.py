"""Fill a budget: a step for all weights, then the best choice among the versions of each weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tersor.compression.knapsack import choose
from tersor.compression.sizes import SizeModel, step_of_size

FILL = 0.997
"""Share of the budget that is enough to stop."""

MOST_PASSES = 12
"""Passes over all weights."""

_AIM = (1 + FILL) / 2

_CLOSE, _SEVERAL = 0.05, 8
"""A pass this close to the budget, of so many weights, is mixed with one on its other side."""

_STIFFEST = 8
"""Most that the logarithm of a step changes for that of its bytes: weights of 12 bits do."""

_BARREN = 3
"""Passes that come no closer to the budget, after which no more are made."""


class Sized(Protocol):
    """What is known of a weight that is to be factored."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def numel(self) -> int:
        """Its number of elements."""


Content = TypeVar("Content")
W = TypeVar("W", bound=Sized)


@dataclass(frozen=True)
class Version(Generic[Content]):
    """A weight at one step.

    Parameters
    ----------
    nbytes
        Size in the file.
    error
        Squared error, weighed so that errors of different weights can be added.
    content
        The factors.
    """

    nbytes: int
    error: float
    content: Content


Solve = Callable[[Sequence[W], float, str], Iterable[tuple[W, Version[Content]]]]
"""Versions of some weights at a step, given what this is, for who looks at the progress."""


@dataclass
class _Trusted:
    """Steps that may be tried next; what sizes are expected may lead too far, or nowhere."""

    below: float = 0.0
    above: float = math.inf
    farthest: float = math.inf
    slow: bool = False

    def nearest(self, expected: float, last: float) -> float:
        """The step to try, where one is expected to have the size wanted."""
        if self.slow and 0 < self.below < self.above < math.inf:
            return math.sqrt(self.below * self.above)
        return min(max(expected, last / self.farthest), last * self.farthest)

    def learn(self, step: float, taken: float, aim: float, *, slow: bool) -> None:
        """A step took so many bytes; ``slow`` if that is hardly closer than the one before."""
        self.slow = slow
        if taken > aim:
            self.below = max(self.below, step)
        else:
            self.above = min(self.above, step)
        known = taken > 0 and aim > 0
        self.farthest = max(taken / aim, aim / taken) ** _STIFFEST if known else math.inf


@dataclass
class Filling(Generic[W, Content]):
    """The search for the versions of least error that fit a budget.

    Parameters
    ----------
    weights
        What is to be factored; no two have the same name.
    models
        Sizes to expect, by name; what is measured is added to them.
    solve
        Gives versions.
    nothing
        The version of no bytes of each weight, by name.
    size
        Bytes of the whole file with some choice of versions, by name.
    """

    weights: Sequence[W]
    models: Mapping[str, SizeModel]
    solve: Solve[W, Content]
    nothing: Mapping[str, Version[Content]]
    size: Callable[[Mapping[str, Version[Content]]], int]
    passes: list[dict[str, Version[Content]]] = field(init=False, default_factory=list)

    def within(self, target: int, step: float) -> Mapping[str, Version[Content]]:
        """The best choice found whose file has at most ``target`` bytes.

        Every pass brings a version of each weight, and the knapsack finds the best mix of them. A
        pass that comes close to the budget is followed by one that aims as far on its other side,
        so that the budget is full when half of the weights are done. From then on earlier passes
        do not count: what they could fill the budget with would be much finer, or coarser, than
        the rest. Where the expected sizes lead slowly to the budget, steps are bisected.
        """
        budget, best = target - self.size(self.nothing), self.nothing
        aim, barren, gap, trusted = _AIM * budget, 0, math.inf, _Trusted()
        for number in range(MOST_PASSES):
            expected = step_of_size([m.bytes for m in self.models.values()], aim, step)
            step = trusted.nearest(expected, step)
            latest: dict[str, Version[Content]] = {}
            self.passes.append(latest)
            for weight, version in self.solve(self.weights, step, f"pass {number + 1}"):
                self.models[weight.name].learn(step, version.nbytes)
                latest[weight.name] = version
                if gap < _CLOSE * budget and self._may_fill(budget):
                    best, full = self._best(target)
                    if full:
                        return best
            best, full = self._best(target)
            taken = sum(version.nbytes for version in latest.values())
            budget = target - (self.size(latest) - taken)  # what the header takes is known now
            before, gap = gap, abs(budget - taken)
            barren = 0 if gap < 0.9 * before else barren + 1
            if taken <= budget and gap < _CLOSE * budget <= before:
                self.passes = [latest]
                best, full = self._best(target)
            if (full and gap < _CLOSE * budget) or barren == _BARREN:
                break
            aim = _next_aim(budget, taken, len(self.weights))
            trusted.learn(step, taken, aim, slow=gap > max(before / 2, _CLOSE * budget))
        return best

    def _may_fill(self, budget: int) -> bool:
        """Whether some mix of the versions with factors has more bytes than the budget, some less.

        Only then is it worth while to look for the best.
        """
        groups = [[v.nbytes for v in self._versions(name)[1:]] for name in self.nothing]
        return sum(map(min, groups)) <= budget and sum(map(max, groups)) >= FILL * budget

    def _best(self, target: int) -> tuple[Mapping[str, Version[Content]], bool]:
        """Versions of least error whose file fits, and whether they fill it well.

        A file has a few bytes besides its versions, which depend on the choice. Weights are left
        out altogether only if nothing else fits: that little error can be added up no more.
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
        """That of no bytes first."""
        return [self.nothing[name], *(done[name] for done in self.passes if name in done)]


def _next_aim(budget: int, taken: int, weights: int) -> float:
    gap = budget - taken
    if weights >= _SEVERAL and 0 < abs(gap) < _CLOSE * budget:
        return taken + math.copysign(max(2 * abs(gap), 0.004 * budget), gap)
    return _AIM * budget
