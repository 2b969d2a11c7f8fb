# SPDX-License-Identifier: Apache-2.0
"""What the coder's bits are estimated to be, and the rate-distortion bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import specified
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import KINDS, onto_trellis, structured

from tersor import _native
from tersor.coding.rate import (
    LARGEST,
    TRELLISES,
    analyse,
    distortion_bound,
    row_bits,
    starting_level,
)

STATES = (1, *sorted(TRELLISES))


def coded_bits(integers, outer, states, start):
    """Bits of the matrix alone, behind a codebook of zeros."""
    codebook = np.zeros((len(integers), 1), np.int16)
    both = _native.encode(codebook, 0, integers, outer, states, start)
    alone = _native.encode(codebook, 0, np.zeros((len(integers), 0), np.int16), 1, 1, 128)
    return 8 * (len(both) - len(alone))


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("outer", [1, 7, 400, 2800])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_that_are_coded(kind, outer, states):
    integers = onto_trellis(structured(kind, 3, 2800), states)
    tensor = torch.from_numpy(integers)
    start = starting_level(tensor, states)
    bits = analyse(tensor, outer, states).bits
    assert len(bits) == 3 and min(bits) >= 0
    assert sum(bits) == pytest.approx(coded_bits(integers, outer, states, start), rel=0.005, abs=32)


@settings(max_examples=30)
@given(st.sampled_from(STATES), st.sampled_from(KINDS), st.integers(1, 5), st.integers(0, 255))
def test_bits_of_each_row_are_those_of_the_specification(states, kind, outer, start):
    integers = onto_trellis(structured(kind, 3, 30 * outer, start), states, start)
    model, expected = specified.Model(outer, 30, start, states), []
    for row in integers.tolist():
        counter = specified.Counter()
        model.code_row(counter, row)
        expected.append(counter.bits)
    bits = _native.analyse(integers.astype(np.float32), [outer], states, start, 0).bits
    # Costs are tabulated for probabilities of 12 bits, which is coarse for rare decisions.
    np.testing.assert_allclose(bits, expected, rtol=0.02, atol=2)


def test_it_changes_nothing():
    integers = torch.arange(-6, 6).reshape(2, 6)
    before = integers.clone()
    row_bits(integers)
    row_bits(integers.float())
    assert torch.equal(integers, before)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_integers_cost_nothing(shape):
    assert row_bits(torch.zeros(shape)).tolist() == [0.0] * shape[0]


def test_zeros_cost_next_to_nothing():
    assert row_bits(torch.zeros(2, 1000)).sum() < 30
    rare = torch.zeros(1, 100_000)
    rare[0, 0] = 1
    assert row_bits(rare)[0] < 100


def test_bits_are_the_same_each_time():
    integers = torch.from_numpy(onto_trellis(structured("rows", 5, 1000), 16))
    assert analyse(integers, 10, 16).bits == analyse(integers, 10, 16).bits


@pytest.mark.parametrize("deviation", [0.4, 0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("source", ["normal", "laplace"])
def test_the_model_costs_little_over_the_empirical_entropy(source, deviation):
    draw = getattr(np.random.default_rng(0), source)
    integers = torch.from_numpy(np.rint(draw(0, deviation, 200_000)))[None]
    _, counts = integers.unique(return_counts=True)
    p = counts.double() / counts.sum()
    entropy = float(-(p * p.log2()).sum()) * integers.numel()
    assert 0.999 * entropy <= row_bits(integers, 100)[0] <= 1.01 * entropy + 512


def test_a_starting_level_is_the_mean_of_the_first_row():
    rows = torch.tensor([[0, 2, -4, 2], [1000, 1000, 1000, 1000]])
    assert starting_level(rows) == 128 + 16
    assert starting_level(rows, 8) == 128  # of indices
    assert starting_level(torch.full((1, 3), LARGEST)) == 255
    assert starting_level(torch.zeros(2, 3)) == 0
    assert starting_level(torch.zeros(0, 3)) == starting_level(torch.zeros(3, 0)) == 128


@pytest.mark.parametrize("states", STATES)
def test_what_a_trellis_reaches(states):
    """Exactly the integers that some path of the specification's trellis has."""
    trellis, found = specified.Trellis(states), set()
    for path in trellis.paths(4):
        choices = [[v for v in range(4) if states == 1 or _is_on(v, *point)] for point in path]
        found.update(itertools.product(*choices))
    for values in itertools.product(range(4), repeat=4):
        z = np.array([values], np.int16)
        assert _native.reachable(z, 1, states) == (values in found)
        assert _native.reachable(-z, 4, states) == (values in found)


def _is_on(value, grid, parity):
    """Whether a magnitude is on a grid, at an index of this parity."""
    return (value == 0 or value % 2 == grid) and (value + grid) // 2 % 2 == parity


def test_the_trellis_starts_anew_in_each_row_and_after_4096_columns():
    """There odd numbers are out of reach, whatever went before."""
    trellis = specified.Trellis(8)
    integers = onto_trellis(structured("5", 2, 9000), 8)
    assert _native.reachable(integers, 1, 8)
    for row, column in itertools.product(range(2), (0, 4096, 8192)):
        odd = integers.copy()
        odd[row, column] = 1
        assert not _native.reachable(odd, 1, 8)
    states = []
    for row in integers.tolist():
        for start in (0, 4096):
            states.append(0)
            for z in row[start : start + 4096]:
                states[-1] = trellis.next(states[-1], (abs(z) + trellis.grid(states[-1])) // 2)
    assert any(states)  # so some were set back


def test_the_bound_is_that_of_water_filling():
    spectrum = np.array([4.0, 1.0, 0.25, 0.01, 0.0])
    for rate in (0.0, 0.1, 0.5, 1.0, 3.0):
        level = np.geomspace(1e-9, 4, 400_000)
        spent = sum(np.maximum(0, 0.5 * np.log2(v / level)) for v in spectrum[:4]) / 5
        water = level[np.abs(spent - rate).argmin()]
        expected = np.minimum(spectrum, water).sum() / 5
        assert distortion_bound(spectrum, rate) == pytest.approx(expected, rel=1e-3)


def water_filling(spectrum: list[float], rate: float) -> float:
    """Distortion at the water level that spends the rate, found by bisection."""
    values = np.array([v for v in spectrum if v > 0])
    low, high = 0.0, float(values.max()) * 2
    for _ in range(200):
        level = (low + high) / 2
        spent = 0.5 * np.log2(values / np.minimum(values, max(level, 1e-300))).sum()
        low, high = (level, high) if spent > rate * len(spectrum) else (low, level)
    return float(np.minimum(values, high).sum() / len(spectrum))


@given(
    spectrum=st.lists(st.floats(1e-6, 1e3) | st.just(0.0), min_size=1, max_size=12),
    rate=st.floats(0, 6),
)
def test_bound_is_reverse_water_filling(spectrum: list[float], rate: float) -> None:
    bound = distortion_bound(np.array(spectrum), rate)
    if not any(spectrum):
        assert bound == 0
    else:
        assert bound == pytest.approx(water_filling(spectrum, rate), rel=1e-6)


def test_the_bound_of_white_noise_is_6_db_a_bit():
    assert distortion_bound(np.full(8, 3.0), 2.0) == pytest.approx(3.0 / 16)
    assert distortion_bound(np.zeros(8), 2.0) == 0


@pytest.mark.parametrize(
    "row, states, level",
    [
        ([4, -4, 4, -4], 1, 128 + 16 * 2),
        ([1, 0, 0, 0], 1, 128 - 16 * 2),
        ([3, 0], 1, 128 + 9),  # 16 log2 1.5 = 9.36
        ([4, -4], 8, 128 + 16 * 1),  # the index of 3 and 4 on a grid of a trellis is 2
        ([3, -3], 8, 128 + 16 * 1),
        ([1, 1], 8, 128),
        ([0, 0], 1, 0),
        ([LARGEST], 1, 255),
        ([], 1, 128),
    ],
)
def test_coding_starts_at_the_mean_magnitude_of_the_first_row(row, states, level):
    rows = torch.tensor([row, [LARGEST] * len(row)], dtype=torch.int16)
    assert starting_level(rows, states) == level
