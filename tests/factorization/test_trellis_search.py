# SPDX-License-Identifier: Apache-2.0
"""The search for latents against searches in plain Python, at the same costs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import specified
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import onto_trellis, structured

from tersor import _native
from tersor.coding.rate import LARGEST, TRELLISES, analyse, starting_level

STATES = (1, *sorted(TRELLISES))
LAGRANGIAN = 0.3


class Costs:
    """Bits of an integer at a place, from the probabilities after the last one was coded."""

    def __init__(self, latent, outer, states):
        start = starting_level(torch.from_numpy(latent), states)
        self.model = specified.Model(outer, latent.shape[1] // outer, start, states)
        for row in latent.tolist():
            self.model.code_row(specified.Counter(), row)
        self.levels = self.model.levels

    def bits(self, level, grid, index):
        lowest = (level - 20) // 2 if level >= 22 else 0
        bins, total = self.model.bins[level][grid], float(lowest + (index > 0))
        for decision in range(min((index >> lowest) + 1, specified.ESCAPE)):
            p = min(max(bins[min(decision, specified.BINS - 1)].p / 2**22, 2**-12), 1 - 2**-12)
            total -= math.log2(p if index >> lowest > decision else 1 - p)
        return total

    def of(self, latent):
        """Bits of a whole latent."""
        trellis, total = self.model.trellis, 0.0
        for levels, row in zip(self.levels, latent.tolist(), strict=True):
            state = 0
            for column, (level, z) in enumerate(zip(levels, row, strict=True)):
                if column % specified.RESTART == 0:
                    state = 0
                grid = trellis.grid(state)
                index = int(abs(z)) if trellis.states == 1 else (int(abs(z)) + grid) // 2
                total += self.bits(level, grid, index)
                state = trellis.next(state, index)
        return total


def search(codebook, tiles, latent, outer, states, *, lagrangian=LAGRANGIAN, threads=1):
    """The native search, at the costs of the latent."""
    target = (codebook.T @ tiles).astype(np.float32)
    gram = (codebook.T @ codebook).astype(np.float32)
    result = latent.astype(np.float32)
    analysis = analyse(torch.from_numpy(latent), outer, states)
    _native.search(target, gram, result, analysis, 0, states, lagrangian, None, threads)
    return result


def problem(rows, d, k, n, states, spread, seed=0):
    """Tiles (d, n), a codebook that is not orthogonal, and a latent that the trellis reaches."""
    rng = np.random.default_rng(seed)
    codebook = np.linalg.qr(rng.normal(size=(d, d)))[0][:, :k] + 0.2 * rng.normal(size=(d, k))
    codebook = codebook.astype(np.float32)
    tiles = (codebook @ rng.laplace(0, spread, (k, n))).astype(np.float32)
    magnitudes = np.abs(codebook.T @ tiles)
    latent = onto_trellis(magnitudes, states, seed)
    return codebook, tiles, np.asarray(np.abs(latent) * np.sign(codebook.T @ tiles), np.int16)


def cost(codebook, tiles, latent, costs, lagrangian=LAGRANGIAN):
    error = ((tiles.astype(np.float64) - codebook.astype(np.float64) @ latent) ** 2).sum()
    return error + lagrangian * costs.of(latent)


def cheapest(wanted, curvature, costs, trellis, lagrangian=LAGRANGIAN, most=6):
    """Least cost of one row over all paths, and over all magnitudes on them."""
    best = math.inf
    for path in trellis.paths(len(wanted)):
        total = 0.0
        for column, (grid, parity) in enumerate(path):
            level, a = costs.levels[0][column], abs(float(wanted[column]))
            indices = range(2 * most) if trellis.states == 1 else range(parity, 2 * most, 2)
            total += min(
                curvature * (a - trellis.value(grid, i)) ** 2
                + lagrangian * costs.bits(level, grid, i)
                for i in indices
            )
        best = min(best, total)
    return best


@pytest.mark.parametrize("states", STATES)
@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([0.02, 0.3, 0.6]),
)
@settings(max_examples=12)
def test_it_finds_the_cheapest_of_all_paths(states, seed, n, spread, lagrangian):
    rng = np.random.default_rng(seed)
    tiles = rng.laplace(0, spread, (1, n)).astype(np.float32)
    codebook = np.array([[rng.uniform(0.7, 1.5)]], np.float32)
    latent = onto_trellis(np.abs(tiles), states, seed)
    costs = Costs(latent, n, states)
    found = search(codebook, tiles, latent, n, states, lagrangian=lagrangian)
    assert _native.reachable(found.astype(np.int16), n, states)
    curvature = float(codebook[0, 0]) ** 2
    wanted = tiles[0] / codebook[0, 0]
    least = cheapest(wanted, curvature, costs, costs.model.trellis, lagrangian)
    found_cost = cost(codebook, tiles, found, costs, lagrangian)
    assert found_cost == pytest.approx(least, rel=1e-3, abs=2e-3)


def viterbi(wanted, curvature, levels, costs, trellis):
    """Least cost of a row of any length."""
    totals = {0: 0.0}
    for a, level in zip(np.abs(wanted).tolist(), levels, strict=True):
        reached = {}
        for state, total in totals.items():
            grid, near = trellis.grid(state), int(a) // (1 if trellis.states == 1 else 2)
            for index in {0, 1, *range(max(near - 3, 0), near + 5)}:
                gap = a - trellis.value(grid, index)
                after = total + curvature * gap**2 + LAGRANGIAN * costs.bits(level, grid, index)
                successor = trellis.next(state, index)
                reached[successor] = min(after, reached.get(successor, math.inf))
        totals = reached
    return min(totals.values())


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_long_rows_are_as_cheap_as_by_a_plain_viterbi_algorithm(states, spread):
    rng = np.random.default_rng(states)
    tiles = rng.laplace(0, spread, (1, 200)).astype(np.float32)
    latent = onto_trellis(np.abs(tiles), states)
    costs = Costs(latent, 20, states)
    found = search(np.ones((1, 1), np.float32), tiles, latent, 20, states)
    least = viterbi(tiles[0], 1.0, costs.levels[0], costs, costs.model.trellis)
    found_cost = cost(np.ones((1, 1), np.float32), tiles, found, costs)
    assert found_cost == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("states", STATES)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.3, 1.0, 4.0, 20.0]))
@settings(max_examples=10)
def test_it_never_raises_the_cost_at_its_prices(states, seed, k, spread):
    outer, n = 6, 60
    codebook, tiles, latent = problem(outer, 4, k, n, states, spread, seed)
    costs = Costs(latent, outer, states)
    found = search(codebook, tiles, latent, outer, states)
    assert _native.reachable(found.astype(np.int16), outer, states)
    before, after = (cost(codebook, tiles, z, costs) for z in (latent, found))
    assert after <= before * (1 + 1e-3) + 1e-2


@pytest.mark.parametrize("states", STATES)
def test_the_same_for_any_number_of_threads(states):
    codebook, tiles, latent = problem(100, 3, 3, 13_000, states, 2.0)
    results = [
        search(codebook, tiles, latent, 100, states, threads=threads) for threads in (1, 2, 3, 9)
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert _native.reachable(results[0].astype(np.int16), 100, states)
    assert not np.array_equal(results[0], latent)


@pytest.mark.parametrize("states", STATES)
def test_blocks_of_a_long_row_are_apart(states):
    """The search of 4096 columns does not see the others."""
    codebook, tiles, latent = problem(1, 2, 2, 9000, states, 2.0)
    found = search(codebook, tiles, latent, 1, states)
    changed = tiles.copy()
    changed[:, 5000:5010] += 50
    other = search(codebook, changed, latent, 1, states)
    differs = (found != other).any(axis=0)
    assert differs[4096:8192].any()
    assert not differs[:4096].any() and not differs[8192:].any()


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("value", [LARGEST - 1, LARGEST, LARGEST + 0.9, 5000, 1e9, math.inf])
def test_it_keeps_to_what_can_be_coded(states, value):
    tiles = np.array([[value, -value, 0.3, value]], np.float32)
    latent = np.zeros((1, 4), np.int16)
    found = search(np.ones((1, 1), np.float32), tiles, latent, 2, states)
    assert np.abs(found).max() <= LARGEST
    assert _native.reachable(found.astype(np.int16), 2, states)
    if value < math.inf:
        expected = min(value, LARGEST)
        assert abs(found[0, 0] - expected) <= 4 and abs(found[0, 1] + expected) <= 4


def test_a_free_bit_means_the_nearest_integer():
    tiles = np.random.default_rng(0).normal(0, 5, (1, 500)).astype(np.float32)
    found = search(
        np.ones((1, 1), np.float32), tiles, np.zeros((1, 500), np.int16), 5, 1, lagrangian=0
    )
    assert np.array_equal(found, np.rint(tiles))


def test_more_states_are_better():
    rng = np.random.default_rng(0)
    tiles = rng.normal(0, 20, (1, 20_000)).astype(np.float32)
    one = np.ones((1, 1), np.float32)
    errors = []
    for states in STATES:
        start = onto_trellis(np.abs(tiles), states)
        found = search(one, tiles, start, 100, states, lagrangian=0.0)
        errors.append(float(((tiles - found) ** 2).mean()))
    assert errors[0] == pytest.approx(1 / 12, rel=0.03)
    # Two grids of spacing 2: coarser than rounding to all integers, for half the rate.
    gains = [10 * math.log10(4 / 12 / error) for error in errors[1:]]
    assert all(a < b for a, b in itertools.pairwise(gains))
    assert gains[0] > 0.9 and gains[-1] < 1.53


def test_kinds_of_sources_are_searched_in_reach():
    for kind, states in itertools.product(("rows", "sparse", "zeros", "huge"), STATES):
        latent = onto_trellis(structured(kind, 2, 300), states)
        tiles = latent.astype(np.float32) + 0.3
        found = search(np.eye(2, dtype=np.float32), tiles, latent, 30, states)
        assert _native.reachable(found.astype(np.int16), 30, states)
