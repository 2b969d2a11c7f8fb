# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.compression.sizes import SizeModel, SizeOfBinary, step_size_for


def test_a_halved_step_costs_a_bit_at_high_rates():
    model = SizeModel(np.ones(16), 1000)
    assert model.bytes(1e-4) - model.bytes(2e-4) == pytest.approx(16 * 1000 / 8, rel=1e-3)


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e6)), min_size=1, max_size=5))
def test_what_was_measured_is_given_back(measured):
    model = SizeModel(np.array([1.0, 0.1, 0.0]), 500)
    known = dict(measured)
    for step, size in known.items():
        model.learn(step, size)
    if len({math.log(step) for step in known}) == len(known):
        for step, size in known.items():
            assert model.bytes(step) == pytest.approx(size, rel=1e-6, abs=1e-3)


@given(st.floats(1.0, 5e4), st.floats(1e-3, 1e3))
def test_the_step_of_a_size_is_found(total, around):
    models = [SizeModel(np.array([4.0, 1.0]), 3000), SizeModel(np.array([0.01]), 10_000)]
    step = step_size_for([m.bytes for m in models], total, around)
    assert sum(m.bytes(step) for m in models) == pytest.approx(total, rel=1e-6)


def test_the_error_is_that_of_reverse_water_filling():
    model = SizeModel(np.array([4.0, 1.0]), 1000)
    assert model.error(1e3) == pytest.approx(5 * 1000, rel=1e-4)  # nothing is left of the weight
    assert model.error(2e-4) == pytest.approx(4 * model.error(1e-4), rel=1e-3)


def test_errors_that_were_measured_are_given_back():
    model = SizeModel(np.array([4.0, 1.0]), 1000)
    model.learn(0.1, 2000, 30.0)
    model.learn(1.0, 500, 900.0)
    assert [model.error(s) for s in (0.1, 1.0)] == [pytest.approx(30.0), pytest.approx(900.0)]
    assert 30 < model.error(0.3) < 900


def test_signs_take_a_bit_each_whatever_was_measured():
    model = SizeOfBinary((100, 50), 1.0)
    sizes = [model.bytes(step) for step in np.geomspace(0.01, 100, 200)]
    assert sizes == sorted(sizes, reverse=True)
    # tiles of 2 to 17 elements, 16 signs each, and codebooks of 16 columns
    assert sizes[0] == 2 * 100 * 25 + 16 * 2 and sizes[-1] == 2 * 100 * 3 + 16 * 17
    model.learn(0.1, 1e6)
    assert [model.bytes(step) for step in np.geomspace(0.01, 100, 200)] == sizes
    model.learn(0.1, 1e6, 7.0)
    assert model.error(0.1) == pytest.approx(7)
