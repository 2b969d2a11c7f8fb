# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.compression.search import FILL, MAX_TRIALS, finest_fit
from tersor.errors import BudgetError


class Curve:
    """A size that depends on the step, and what was asked of it."""

    def __init__(self, size):
        self.size, self.steps = size, []

    def __call__(self, step_size):
        self.steps.append(step_size)
        return int(self.size(step_size)), step_size


def high_rate(step_size):
    """A bit less for each doubling of the step, between a floor and a ceiling."""
    return 500 + 100 * min(max(10 - math.log2(step_size), 0), 11)


def low_rate(step_size):
    return 500 + 10_000 * math.exp(-step_size)


@given(
    st.sampled_from([high_rate, low_rate]),
    st.floats(0.05, 0.95),
    st.floats(0.3, 3),
)
def test_the_budget_is_filled_in_a_few_trials(size, share, guess):
    curve = Curve(size)
    target = int(520 + share * (size(1.0) - 520))
    step_size, made = finest_fit(curve, target, guess, least=500)
    share = FILL if len(curve.steps) < 8 else 0.99
    assert made == step_size and share * target <= int(size(step_size)) <= target
    assert len(curve.steps) <= MAX_TRIALS


def test_a_good_guess_needs_one_trial():
    curve = Curve(high_rate)
    finest_fit(curve, int(high_rate(8.0)), 8.0)
    assert curve.steps == [pytest.approx(8)]


@given(st.floats(0.01, 100), st.floats(1e-3, 1e3), st.integers(200, 900))
def test_jumps_end_the_search(edge, guess, target):
    """All of a weight becomes zero at once: no step fills the budget."""
    curve = Curve(lambda step_size: 1000 if step_size < edge else 100)
    step_size, _ = finest_fit(curve, target, guess)
    assert edge <= step_size
    assert len(curve.steps) <= MAX_TRIALS


@given(st.floats(1e-6, 1e6))
def test_a_limit_of_the_steps_ends_the_search(guess):
    """More bytes than the finest step can use."""
    curve = Curve(lambda step_size: min(1000, high_rate(step_size)))
    step_size, _ = finest_fit(curve, 5000, guess)
    assert high_rate(step_size) >= 1000 or len(curve.steps) <= MAX_TRIALS


def test_what_cannot_fit_is_reported():
    curve = Curve(lambda step_size: 100)
    with pytest.raises(BudgetError, match="99 bytes were not reached in 12 attempts"):
        finest_fit(curve, 99, 1.0)
    assert len(curve.steps) == MAX_TRIALS


@given(st.lists(st.integers(0, 2000), min_size=MAX_TRIALS), st.integers(0, 2000))
def test_sizes_without_any_order_end_the_search(sizes, target):
    answers = iter(sizes)
    curve = Curve(lambda step_size: next(answers))
    try:
        step_size, _ = finest_fit(curve, target, 1.0)
    except BudgetError:
        assert min(sizes[: len(curve.steps)]) > target
    else:
        fitting = [(n, -s) for s, n in zip(curve.steps, sizes, strict=False) if n <= target]
        assert step_size == -max(fitting)[1]


def test_fewer_trials_can_be_asked_for():
    curve = Curve(low_rate)
    finest_fit(curve, 5000, 3.0, most=2)
    assert len(curve.steps) == 2
