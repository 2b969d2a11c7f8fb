"""The entropy model: its tables, its fit, and the rate-distortion bound."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.factorization.rate import (
    CURVATURES,
    LARGEST,
    EntropyModel,
    count_magnitudes,
    distortion_bound,
    fit,
    row_bits,
)

BYTES = st.integers(0, 255)


def model(zero: int, decay: int, curvature: int, largest: int) -> EntropyModel:
    return EntropyModel(np.array([zero]), np.array([decay]), curvature, largest)


@given(BYTES, BYTES, st.integers(0, CURVATURES - 1), st.integers(1, LARGEST))
@settings(deadline=None, max_examples=60)
def test_tables_are_positive_symmetric_and_total_2_to_the_24(zero, decay, curvature, largest):
    (table,) = model(zero, decay, curvature, largest).frequencies()
    assert table.sum() == 1 << 24
    assert table.min() >= 1
    assert (table == table[::-1]).all()
    assert (np.diff(table[largest + 1 :]) <= 0).all()


def test_tables_never_change():
    """Files depend on them: every byte and curvature, in one digest."""
    grid = np.arange(256)
    digest = hashlib.sha256()
    for curvature in range(CURVATURES):
        table = EntropyModel(grid, grid[::-1].copy(), curvature, 20).frequencies()
        digest.update(table.astype("<u4").tobytes())
    assert digest.hexdigest() == DIGEST


# Files are read with these tables: a change of any of them is a change of the format.
GOLDEN = {
    (20, 30, 0, 3): [910598, 1101720, 1514656, 9723268, 1514656, 1101720, 910598],
    (16, 20, 4, 3): [735491, 1269069, 2189742, 8388612, 2189742, 1269069, 735491],
    (0, 0, 11, 2): [1, 8388606, 2, 8388606, 1],
    (255, 255, 0, 5): [26, 26, 26, 26, 26, 16776956, 26, 26, 26, 26, 26],
    (33, 64, 8, 4): [
        *(425206, 483286, 532135, 567610),
        12760742,
        *(567610, 532135, 483286, 425206),
    ],
    (8, 40, 4, 7): [
        *(438798, 533025, 647485, 786524, 955419, 1160583, 1409804),
        4913940,
        *(1409804, 1160583, 955419, 786524, 647485, 533025, 438798),
    ],
}


@pytest.mark.parametrize("model", GOLDEN)
def test_golden_frequencies(model: tuple[int, int, int, int]) -> None:
    zero, decay, curvature, largest = model
    built = EntropyModel(np.array([zero]), np.array([decay]), curvature, largest)
    assert built.frequencies().tolist() == [GOLDEN[model]]


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 100, LARGEST])
@pytest.mark.parametrize("curvature", range(CURVATURES))
def test_frequencies_of_every_byte(curvature: int, largest: int) -> None:
    """With every zero byte, and with every decay byte; with all pairs for short tables."""
    all_bytes = np.arange(256)
    if largest <= 3:
        zero, decay = (pairs.ravel() for pairs in np.meshgrid(all_bytes, all_bytes))
    else:
        zero, decay = (
            np.concatenate([all_bytes, all_bytes]),
            np.concatenate([all_bytes[::-1], 0 * all_bytes]),
        )
    frequencies = EntropyModel(zero, decay, curvature, largest).frequencies()
    assert frequencies.shape == (len(zero), 2 * largest + 1)
    assert (frequencies.sum(axis=1) == 1 << 24).all()
    assert frequencies.min() >= 1
    assert np.array_equal(frequencies, frequencies[:, ::-1])
    falling = np.diff(frequencies[:, largest + 1 :], axis=1)
    assert (falling <= 0).all()


def test_bits_are_those_of_the_tables():
    m = model(20, 10, 9, 5)
    probabilities = m.frequencies()[0] / 2**24
    np.testing.assert_allclose(m.bits()[0], -np.log2(probabilities[5:]))


@pytest.mark.parametrize("deviation", [0.4, 0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("source", ["gaussian", "laplacian"])
def test_the_model_costs_little_over_the_empirical_entropy(source, deviation):
    generator = np.random.default_rng(0)
    draw = generator.normal if source == "gaussian" else generator.laplace
    integers = torch.from_numpy(np.rint(draw(0, deviation, 200_000)))[None]
    _, counts = integers.unique(return_counts=True)
    p = counts.double() / counts.sum()
    entropy = float(-(p * p.log2()).sum()) * integers.numel()
    assert entropy <= row_bits(integers)[0] * 1.0001
    assert row_bits(integers)[0] <= 1.01 * entropy


def test_each_row_is_fitted_to_itself():
    rows = torch.tensor([[0.0] * 60 + [1.0] * 4, [3.0, -3.0, 2.0, -1.0] * 16])
    alone = [row_bits(row[None])[0] for row in rows]
    assert row_bits(rows).sum() <= 1.05 * sum(alone)


def test_zeros_cost_next_to_nothing():
    assert row_bits(torch.zeros(2, 1000)).tolist() == [0, 0]
    rare = torch.zeros(1, 100_000)
    rare[0, 0] = 1
    assert row_bits(rare)[0] < 30


def test_magnitudes_are_counted():
    counts = count_magnitudes(torch.tensor([[0, 1, -1, 2], [0, 0, 0, -3]]))
    assert counts.tolist() == [[1, 2, 1, 0], [3, 0, 0, 1]]
    assert fit(counts).largest == 3
    assert count_magnitudes(torch.zeros(0, 4)).shape == (0, 1)


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


DIGEST = "f51a3ff4cd6a318712995963d723d369f1a8dba18f142ce469737a0832f0cf16"
