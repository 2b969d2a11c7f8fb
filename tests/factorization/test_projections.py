# SPDX-License-Identifier: Apache-2.0
"""Each projection: a member of its set, the nearest one, and unchanged when projected again."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from tersor.factorization import projections
from tersor.factorization.projections import Projection
from tersor.factorization.solve import Quadratic, distortion, gradient_step

ROWS = 4


def all_columns(values: list[float], keep: Callable[[Tensor], bool] = lambda x: True) -> Tensor:
    """All columns of ROWS entries from values that satisfy a condition: (ROWS, number)."""
    columns = [torch.tensor(c, dtype=torch.float64) for c in itertools.product(values, repeat=ROWS)]
    return torch.stack([c for c in columns if keep(c)], dim=1)


# Discrete sets with all their columns, as far as numbers below 3.4 can be near them.
FINITE: dict[str, tuple[Projection, Tensor]] = {
    "one": (projections.ones(1), all_columns([0, 1], lambda x: x.sum() == 1)),
    "two ones": (projections.ones(2), all_columns([0, 1], lambda x: x.sum() == 2)),
    "all ones": (projections.ones(ROWS), all_columns([1])),
    "integers": (projections.integers(), all_columns([-3, -2, -1, 0, 1, 2, 3])),
    "ternary": (projections.integers(1), all_columns([-1, 0, 1])),
    "grid": (projections.grid(0.75, 2), all_columns([-1.5, -0.75, 0, 0.75, 1.5])),
    "few integers": (
        projections.few_integers(2, 2),
        all_columns([-2, -1, 0, 1, 2], lambda x: (x != 0).sum() <= 2),
    ),
    "binary": (projections.binary(), all_columns([-1, 1])),
}

CONVEX: dict[str, Projection] = {
    "free": projections.free(),
    "short rows": projections.short_rows(),
    "not negative": lambda y: y.clamp_min(0),
    "box": lambda y: y.clamp(-1, 0.5),
}

matrices = arrays.arrays(
    np.float64,
    st.tuples(st.just(ROWS), st.integers(1, 5)),
    elements=st.floats(-3.375, 3.375, width=32),
).map(torch.from_numpy)
seeds = st.integers(0, 2**31)


def random_like(x: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=draw, dtype=x.dtype) * 2


@pytest.mark.parametrize("name", FINITE)
@given(y=matrices)
def test_the_nearest_of_all_members(name: str, y: Tensor) -> None:
    project, members = FINITE[name]
    x = project(y)
    distances = ((y[:, :, None] - members[:, None, :]) ** 2).sum(dim=0)
    assert ((x[:, :, None] == members[:, None, :]).all(dim=0).any(dim=1)).all(), "not a member"
    torch.testing.assert_close(((x - y) ** 2).sum(dim=0), distances.amin(dim=1))
    assert torch.equal(project(x), x)


@pytest.mark.parametrize("count", range(1, ROWS + 2))
@given(y=matrices)
def test_keep_largest_against_all_supports(count: int, y: Tensor) -> None:
    project = projections.keep_largest(count)
    x = project(y)
    assert ((x != 0).sum(dim=0) <= count).all()
    masks = all_columns([0, 1], lambda m: m.sum() <= count)
    distances = ((1 - masks)[:, None, :] * (y**2)[:, :, None]).sum(dim=0)
    torch.testing.assert_close(((x - y) ** 2).sum(dim=0), distances.amin(dim=1))
    assert torch.equal(project(x), x)


@pytest.mark.parametrize("name", CONVEX)
@given(y=matrices, seed=seeds)
def test_convex_projections_meet_the_variational_inequality(
    name: str, y: Tensor, seed: int
) -> None:
    project = CONVEX[name]
    x, member = project(y), project(random_like(y, seed))
    assert ((y - x) * (member - x)).sum() <= 1e-9
    torch.testing.assert_close(project(x), x, rtol=0, atol=1e-15)


def test_short_rows_keeps_rows_in_the_unit_ball() -> None:
    y = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(projections.short_rows()(y), expected)


def test_halves_become_even_and_zero_is_positive() -> None:
    halves = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.5]])
    assert projections.integers()(halves).tolist() == [[-2, 0, 0, 2, 2]]
    assert projections.binary()(torch.tensor([[-0.0, 0.0]])).tolist() == [[1, 1]]


@pytest.mark.parametrize("name", [*CONVEX, *FINITE])
@given(seed=seeds, steps=st.integers(1, 3))
def test_gradient_steps_from_a_member_never_raise_the_error(
    name: str, seed: int, steps: int
) -> None:
    project = CONVEX[name] if name in CONVEX else FINITE[name][0]
    draw = torch.Generator().manual_seed(seed)
    codebook = torch.randn(3, ROWS, generator=draw, dtype=torch.float64)
    tiles = torch.randn(3, 7, generator=draw, dtype=torch.float64)
    latent = project(torch.randn(ROWS, 7, generator=draw, dtype=torch.float64))
    better = gradient_step(project, steps)(Quadratic(codebook, tiles), latent)
    assert distortion(tiles, codebook, better) <= distortion(tiles, codebook, latent) + 1e-12
    torch.testing.assert_close(project(better), better, rtol=0, atol=1e-14)
