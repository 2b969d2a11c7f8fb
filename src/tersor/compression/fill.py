# SPDX-License-Identifier: Apache-2.0
"""Fill a budget by passes over all weights at one step size, and a choice among their versions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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

_SHARES = (0.4, 0.7, 0.88, 0.97)
"""Shares of all elements that are done when the step size of a first pass is corrected, besides the
correction after the weights that show how far the models are off."""

_SHOWING, _FEWEST = 8, 3
"""Every so manieth weight is one of those, or every so manieth that there are `_FEWEST` of them."""

_FARTHEST = 0.03
"""Largest correction of the logarithm of the step size within a pass, but for the first one."""

_FINISH = 0.02
"""Share of the budget that a pass over all weights would add or save whose versions finish the
budget; so about as many weights are factored again as the gap has shares of this."""

_BEYOND = 1.3
"""How far such a pass goes at least, as a multiple of the gap."""

_LARGE = 1 / 16
"""Share of all elements beyond which a weight is factored again only after the others."""

_STIFFEST = 8
"""Largest change of the logarithm of the step size per change of the logarithm of the bytes, which
occurs for weights of 12 bits."""

_BLIND = 1.5
"""Largest factor between the step sizes of a pass that took no bytes and of the next, because no
bytes do not say how far the step size is off. The square of it is the largest factor between the
guessed step size and that of the first pass, because samples may also take no bytes."""

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
    farthest: float = _BLIND**2
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
        self.farthest = math.inf
        if aim > 0:
            self.farthest = max(taken / aim, aim / taken) ** _STIFFEST if taken else _BLIND


class _Doubt(Generic[Content]):
    """Says when a mix of versions may fill a budget, so that a search for it is worth its time."""

    def __init__(
        self,
        versions: Callable[[str], list[Version[Content]]],
        names: Iterable[str],
        budget: int,
    ) -> None:
        self._versions, self._budget = versions, budget
        self._ranges = {name: self._range(name) for name in names}
        self._least = sum(least for least, _ in self._ranges.values())
        self._most = sum(most for _, most in self._ranges.values())
        self._done, self._next = 0, 1

    def _range(self, name: str) -> tuple[int, int]:
        sizes = [version.nbytes for version in self._versions(name)[1:]]
        return min(sizes), max(sizes)

    def may_fill(self, name: str) -> bool:
        """Return whether mixes below and above the budget exist, now that a weight has a version.

        After each time that they did, but did not fill the budget, a quarter more weights must have
        got versions.
        """
        (least, most), self._ranges[name] = self._ranges[name], self._range(name)
        self._least += self._ranges[name][0] - least
        self._most += self._ranges[name][1] - most
        self._done += 1
        if not (self._least <= self._budget and self._most >= FILL * self._budget):
            return False
        if self._done < self._next:
            return False
        self._next = self._done + self._done // 4 + 1
        return True


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
    _steps: dict[str, float] = field(init=False, default_factory=dict)

    def within(self, target: int, step_size: float) -> Mapping[str, Version[Content]]:
        """Return the best choice of versions found whose file has at most ``target`` bytes.

        Each pass makes one version of every weight, and the knapsack finds the best mix of all
        versions. The first pass corrects its step size on the way. A pass that comes close to the
        budget is followed by one on the other side of the budget, so far from it that the budget is
        full when some of the weights are done. From then on earlier passes do not count, because
        their versions are much finer or coarser than the others. If the expected sizes lead to the
        budget too slowly, step sizes are bisected.

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
        gap_left = math.inf
        for number in range(MOST_PASSES):
            expected = step_size_for([m.bytes for m in self.models.values()], aim, step_size)
            step_size = trusted.nearest(expected, step_size)
            latest: dict[str, Version[Content]] = {}
            self.passes.append(latest)
            near = gap < _CLOSE * budget
            finishing = [self._finishing(step_size, gap_left)] if near else None
            parts = finishing or self._parts(first=not number)
            doubt = _Doubt(self._versions, self.nothing, budget) if near else None
            for place, part in enumerate(parts):
                if place:
                    last, step_size = step_size, self._corrected(step_size, latest, aim)
                    if place == 1 and abs(math.log(step_size / last)) > _FARTHEST:
                        latest.clear()  # what showed this is done again, at the end
                        parts[-1].extend(parts[0])
                    elif place > 1:
                        farthest = math.exp(_FARTHEST)
                        step_size = min(max(step_size, last / farthest), last * farthest)
                for weight, version in self.solve(part, step_size, f"pass {number + 1}"):
                    self.models[weight.name].learn(step_size, version.nbytes)
                    latest[weight.name] = version
                    self._steps[weight.name] = step_size
                    if doubt and doubt.may_fill(weight.name):
                        best, full = self._best(target)
                        if full:
                            return best
            best, full = self._best(target)
            taken = sum(version.nbytes for version in latest.values())
            budget = target - (self.size(latest) - taken)  # now the bytes of the header are known
            gap_left = budget - taken
            before, gap = gap, abs(gap_left)
            barren = 0 if gap < 0.9 * before else barren + 1
            if taken <= budget and gap < _CLOSE * budget <= before:
                self.passes = [latest]
                best, full = self._best(target)
            if (full and gap < _CLOSE * budget) or barren == _BARREN:
                break
            aim = _next_aim(budget, taken, len(self.weights))
            trusted.learn(step_size, taken, aim, slow=gap > max(before / 2, _CLOSE * budget))
        return best

    def _parts(self, *, first: bool) -> list[list[W]]:
        """Return all weights in parts, between which the step size is corrected."""
        if not first or len(self.weights) < _SEVERAL:
            return [list(self.weights)]
        stride = min(_SHOWING, len(self.weights) // _FEWEST)
        showing = list(self.weights[stride - 1 :: stride])
        names = {weight.name for weight in showing}
        parts, done, whole = [showing], 0, sum(w.numel for w in self.weights)
        done = sum(w.numel for w in showing)
        bounds = [share * whole for share in _SHARES]
        parts.append([])
        for weight in self.weights:
            if weight.name in names:
                continue
            if parts[-1] and bounds and done >= bounds[0]:
                parts.append([])
                bounds = [bound for bound in bounds if bound > done]
            parts[-1].append(weight)
            done += weight.numel
        return parts

    def _corrected(
        self, step_size: float, latest: Mapping[str, Version[Content]], aim: float
    ) -> float:
        """Return the step size at which all weights take what is aimed at.

        Weights that are done have taken what they took, unless few are: then they would have been
        done at this step size too. Models of the others are taken to be off by as much as those of
        finished weights with tiles of the same size were before they learnt; `SizeModel` keeps what
        it said then.
        """
        sums: dict[int, list[float]] = {}
        for name, version in latest.items():
            both = sums.setdefault(self.models[name].tile, [0.0, 0.0])
            both[0] += version.nbytes
            both[1] += self.models[name].said
        ratio = {tile: taken / said if said else 1.0 for tile, (taken, said) in sums.items()}
        few = 2 * sum(w.numel for w in self.weights if w.name in latest) < _SHARES[0] * sum(
            w.numel for w in self.weights
        )
        models = [self.models[w.name] for w in self.weights if few or w.name not in latest]
        left = aim - (0 if few else sum(version.nbytes for version in latest.values()))
        sizes = [
            model.bytes if model.said else partial(_scaled, model.bytes, ratio.get(model.tile, 1.0))
            for model in models
        ]
        return step_size_for(sizes, left, step_size) if sizes and left > 0 else step_size

    def _finishing(self, step_size: float, gap: float) -> list[W]:
        """Return the weights in the order in which they finish a budget.

        First those whose last step size is farthest from the new one, on the side that brings them
        closer to the budget; large ones that are not far after all others.
        """
        limit = _LARGE * sum(w.numel for w in self.weights)

        def nearness(weight: W) -> tuple[bool, float]:
            far = math.log(self._steps[weight.name] / step_size) * math.copysign(1, gap)
            return weight.numel > limit and far < _FINISH, -far

        return sorted(self.weights, key=nearness)

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


def _scaled(size: Callable[[float], float], ratio: float, step_size: float) -> float:
    return ratio * size(step_size)


def _next_aim(budget: int, taken: int, weights: int) -> float:
    gap = budget - taken
    if weights >= _SEVERAL and 0 < abs(gap) < _CLOSE * budget:
        return taken + math.copysign(max(_BEYOND * abs(gap), _FINISH * budget), gap)
    return _AIM * budget
