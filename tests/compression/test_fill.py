# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass

import numpy as np
import pytest

from tersor.compression.fill import FILL, MOST_PASSES, Filling, Version
from tersor.compression.sizes import SizeModel

HEADER = 11  # bytes of each weight that is not zero


@dataclass(frozen=True)
class Weight:
    name: str
    numel: int


class Solver:
    """Weights that take other sizes than their models say, and a record of what was asked."""

    def __init__(self, numbers, noise=0.0):
        self.weights = [Weight(str(i), n) for i, n in enumerate(numbers)]
        self.noise, self.asked = noise, []

    def __call__(self, weights, step_size, what):
        for weight in weights:
            self.asked.append(weight.name)
            exact = weight.numel * math.log1p(4.5 / step_size**2) / 11
            wobble = 1 + self.noise * math.sin(1e4 * step_size * (1 + int(weight.name)))
            yield weight, Version(int(exact * wobble), weight.numel * step_size**2, step_size)

    def filling(self):
        models = {w.name: SizeModel(np.ones(1), w.numel) for w in self.weights}
        nothing = {w.name: Version(0, 2.0 * w.numel, None) for w in self.weights}
        return Filling(self.weights, models, self, nothing, self.size)

    @staticmethod
    def size(versions):
        return 100 + sum(v.nbytes + HEADER * (v.nbytes > 0) for v in versions.values())


@pytest.mark.parametrize("noise, count", [(0, 1), (0, 3), (0.01, 12), (0.1, 60)])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_budget_is_filled(noise, count, share):
    solver = Solver([40_000 // (i + 1) for i in range(count)], noise)
    target = int(share * sum(w.numel for w in solver.weights))
    best = solver.filling().within(target, 1.0)
    assert FILL * target <= solver.size(best) <= target
    assert len(solver.asked) <= MOST_PASSES * count


def test_a_second_pass_ends_where_the_budget_is_full():
    solver = Solver([1000 + i for i in range(40)])
    solver.filling().within(20_000, 1.0)
    assert len(solver.asked) < 2 * 40


@pytest.mark.parametrize("spare", [0, 1, 30])
def test_budgets_too_small_for_any_weight_leave_zeros(spare):
    solver = Solver([5000, 5000])
    best = solver.filling().within(100 + spare, 1.0)
    assert solver.size(best) <= 100 + spare


def test_weights_that_cannot_use_the_budget_end_the_search():
    class Limited(Solver):
        def __call__(self, weights, step_size, what):
            for weight, version in super().__call__(weights, step_size, what):
                yield weight, Version(min(version.nbytes, 500), 1.0, step_size)

    solver = Limited([5000] * 10)
    best = solver.filling().within(20_000, 1.0)
    assert all(v.nbytes == 500 for v in best.values())
    assert len(solver.asked) < MOST_PASSES * 10


def test_passes_far_from_the_budget_do_not_count_once_one_is_close():
    class Surprising(Solver):
        def __call__(self, weights, step_size, what):
            first = what == "pass 1"  # far above the budget; the second is a little below
            for weight, version in super().__call__(weights, step_size, what):
                nbytes = version.nbytes * (150 if first else 147) // 100
                yield weight, Version(nbytes, version.error, step_size)

    solver = Surprising([2000 + 10 * i for i in range(20)])
    best = solver.filling().within(10_000, 1.0)
    steps = [version.content for version in best.values()]
    assert max(steps) < 1.1 * min(steps)
    assert FILL * 10_000 <= solver.size(best) <= 10_000


@pytest.mark.parametrize("bias", [0.8, 1.0, 1.3])
def test_each_weight_is_factored_about_once(bias):
    """The first pass finds out by how much the models are off, and a few weights fill the rest."""

    class Biased(Solver):
        def __call__(self, weights, step_size, what):
            for weight, version in super().__call__(weights, step_size, what):
                yield weight, Version(int(bias * version.nbytes), version.error, step_size)

    solver = Biased([3000 + 37 * i for i in range(60)][::-1], 0.01)
    target = sum(w.numel for w in solver.weights) // 4
    best = solver.filling().within(target, 1.0)
    assert FILL * target <= solver.size(best) <= target
    assert len(solver.asked) < 1.7 * len(solver.weights)
    steps = [version.content for version in best.values()]
    assert max(steps) < 1.1 * min(steps)
