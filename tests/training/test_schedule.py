# SPDX-License-Identifier: Apache-2.0
"""What changes during a run."""

import pytest

from tersor.training.schedule import Schedule


@pytest.mark.parametrize("steps", [1, 2, 40, 1000])
def test_rates_rise_then_fall(steps):
    plan = Schedule(steps, 100, 100)
    rates = [plan.rate(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[0] > 0
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= 0.06 * steps and rates[-1] <= max(0.1, 2 / steps) * 10


def test_the_budget_shrinks_evenly_then_holds():
    plan = Schedule(100, 4000, 1000)
    sizes = [plan.size(step) for step in range(100)]
    assert sizes[0] == 4000 and sizes[25] == pytest.approx(2000)
    assert sizes[50:] == [1000] * 50


def test_latents_rest_in_the_end():
    plan = Schedule(100, 10, 10)
    moving = [plan.latents_move(step) for step in range(100)]
    assert moving == [True] * 85 + [False] * 15
    assert not Schedule(1, 10, 10).latents_move(1)
