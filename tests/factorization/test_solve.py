# SPDX-License-Identifier: Apache-2.0
"""The solver, its products and its updates, each against an independent computation."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from tersor.factorization import updates
from tersor.factorization.products import inner
from tersor.factorization.projections import free, keep_largest, ones
from tersor.factorization.solve import (
    Quadratic,
    Update,
    distortion,
    fixed,
    gradient_step,
    least_squares,
    solve,
)

seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("m, n", [(5, 3), (16384, 2), (40001, 3), (7, 40001), (0, 3), (3, 0)])
def test_inner_is_as_exact_as_float32(m: int, n: int) -> None:
    a, b = normal(1, m, 4).float(), normal(2, m, n).float()
    expected = a.T.double() @ b.double()
    assert inner(a, b).dtype == torch.float32
    likely = 4e-7 * a.double().square().sum(0).sqrt()[:, None] * b.double().square().sum(0).sqrt()
    assert bool(((inner(a, b) - expected).abs() <= likely + 1e-12).all())
    assert bool(((inner(a, b, torch.float64) - expected).abs() <= likely + 1e-12).all())
    doubled = inner(a.double(), b.double())
    torch.testing.assert_close(doubled, expected)


def test_inner_is_the_same_for_any_number_of_threads() -> None:
    a, b = normal(1, 77777, 27).float(), normal(2, 77777, 27).float()
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append((inner(a, b), inner(b[:9], b[:9])))
    finally:
        torch.set_num_threads(threads)
    for first, second in results[1:]:
        assert torch.equal(first, results[0][0])
        assert torch.equal(second, results[0][1])


@given(seed=seeds, rank=st.integers(1, 4), rows=st.integers(1, 6))
def test_least_squares_from_zero_is_the_shortest_of_lstsq(seed: int, rank: int, rows: int) -> None:
    basis = normal(seed, rows, rank) @ normal(seed + 1, rank, 4)
    wanted = normal(seed + 2, rows, 5)
    expected = torch.linalg.lstsq(basis, wanted, rcond=1e-7, driver="gelsd").solution
    x = least_squares(Quadratic(basis, wanted), torch.zeros(4, 5, dtype=torch.float64))
    errors = [((wanted - basis @ y) ** 2).sum() for y in (x, expected)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-7, atol=1e-9)
    assert x.norm() <= expected.norm() * (1 + 1e-4)


@given(seed=seeds)
def test_least_squares_keeps_what_is_left_open(seed: int) -> None:
    basis, wanted = normal(seed, 6, 3), normal(seed + 1, 6, 5)
    basis[:, 1] = 0
    start = normal(seed + 2, 3, 5)
    x = least_squares(Quadratic(basis, wanted), start)
    torch.testing.assert_close(x[1], start[1])
    expected = torch.linalg.lstsq(basis[:, [0, 2]], wanted).solution
    torch.testing.assert_close(x[[0, 2]], expected, rtol=1e-5, atol=1e-7)


def test_least_squares_of_nothing() -> None:
    zeros = torch.zeros(4, 3)
    start = torch.ones(3, 2)
    assert torch.equal(least_squares(Quadratic(zeros, torch.ones(4, 2)), start), start)


@given(seed=seeds)
def test_nearest_column_against_all_distances(seed: int) -> None:
    basis, wanted = normal(seed, 4, 6), normal(seed + 1, 4, 9)
    x = updates.nearest_column(Quadratic(basis, wanted), wanted.new_zeros(6, 9))
    assert torch.equal(x.argmax(dim=0), torch.cdist(wanted.T, basis.T).argmin(dim=1))
    assert torch.equal(x, ones(1)(x))


@given(seed=seeds, count=st.integers(1, 3))
def test_exchanged_ones_are_locally_best(seed: int, count: int) -> None:
    basis, wanted = normal(seed, 4, 6), normal(seed + 1, 4, 9)
    quadratic, start = Quadratic(basis, wanted), ones(count)(normal(seed + 2, 6, 9))
    x = start
    for _ in range(10):
        x, before = updates.exchange_ones(quadratic, x), x
        assert (quadratic.errors(x) <= quadratic.errors(before) + 1e-12).all()
    assert torch.equal(x, ones(count)(x))
    for column in range(9):
        on, off = x[:, column].nonzero()[:, 0], (x[:, column] == 0).nonzero()[:, 0]
        for i, j in itertools.product(on, off):
            other = x[:, column].clone()
            other[i], other[j] = 0, 1
            error = ((wanted[:, column] - basis @ other) ** 2).sum()
            assert error >= quadratic.errors(x)[column] - 1e-12


@given(seed=seeds, rows=st.integers(1, 8), columns=st.integers(1, 11))
def test_signs_of_up_to_eight_rows_are_the_best_of_all(seed: int, rows: int, columns: int) -> None:
    quadratic = Quadratic(normal(seed, 5, rows).float(), normal(seed + 1, 5, columns).float())
    start = normal(seed + 2, rows, columns).sign().float()
    x = updates.exchange_binary(1, torch.Generator().manual_seed(seed))(quadratic, start)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=rows))).T
    errors = ((quadratic.wanted[:, None] - (quadratic.basis @ every)[:, :, None]) ** 2).sum(dim=0)
    torch.testing.assert_close(quadratic.errors(x), errors.amin(dim=0), rtol=1e-4, atol=1e-5)


@given(seed=seeds, rows=st.integers(9, 40))
def test_exchanged_signs_are_never_worse(seed: int, rows: int) -> None:
    quadratic = Quadratic(normal(seed, 6, rows).float(), normal(seed + 1, 6, 7).float())
    x = normal(seed + 2, rows, 7).sign().float()
    start, generator = x.clone(), torch.Generator().manual_seed(seed)
    for _ in range(3):
        better = updates.exchange_binary(2, generator)(quadratic, x)
        assert (better.abs() == 1).all()
        assert (quadratic.errors(better) <= quadratic.errors(x) * (1 + 1e-5) + 1e-4).all()
        x = better
    assert quadratic.errors(x).sum() < quadratic.errors(start).sum()


def test_signs_do_not_depend_on_the_number_of_threads() -> None:
    quadratic = Quadratic(normal(0, 6, 16).float(), normal(1, 6, 9000).float())
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        draw = torch.Generator().manual_seed(2)
        results.append(updates.exchange_binary(1, draw)(quadratic, torch.ones(16, 9000)))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def best_of_all_supports(basis: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Least squared error of each column with ``count`` nonzeros."""
    best = torch.full((wanted.shape[1],), torch.inf, dtype=torch.float64)
    for support in itertools.combinations(range(basis.shape[1]), count):
        part = basis[:, list(support)]
        residual = wanted - part @ torch.linalg.lstsq(part, wanted).solution
        best = torch.minimum(best, (residual**2).sum(dim=0))
    return best


@given(seed=seeds, count=st.integers(1, 3))
def test_pursuit_lies_between_the_best_support_and_the_start(seed: int, count: int) -> None:
    basis, wanted = normal(seed, 5, 6), normal(seed + 1, 5, 8)
    quadratic, start = Quadratic(basis, wanted), keep_largest(count)(normal(seed + 2, 6, 8))
    x = updates.pursue(count)(quadratic, start)
    assert ((x != 0).sum(dim=0) <= count).all()
    assert (quadratic.errors(x) <= quadratic.errors(start) + 1e-12).all()
    best = best_of_all_supports(basis, wanted, count)
    assert (quadratic.errors(x) >= best - 1e-9).all()
    if count == 1:
        torch.testing.assert_close(quadratic.errors(x), best)


@pytest.mark.parametrize("count", [2, 3])
def test_pursuit_is_near_the_best_support_and_better_than_matching_pursuit(count: int) -> None:
    basis, wanted = normal(1, 9, 12), normal(2, 9, 500)
    basis /= basis.norm(dim=0)
    quadratic = Quadratic(basis, wanted)
    x = updates.pursue(count)(quadratic, wanted.new_zeros(12, 500))
    greedy = orthogonal_mp(basis.numpy(), wanted.numpy(), n_nonzero_coefs=count)
    error = quadratic.errors(x).sum()
    assert error <= 1.1 * best_of_all_supports(basis, wanted, count).sum()
    assert error <= 0.97 * quadratic.errors(torch.from_numpy(greedy)).sum()


def test_pursuit_with_equal_and_empty_columns() -> None:
    basis = normal(0, 5, 4)
    basis[:, 1], basis[:, 3] = basis[:, 0], 0
    wanted = normal(1, 5, 7)
    for dtype in (torch.float32, torch.float64):
        quadratic = Quadratic(basis.to(dtype), wanted.to(dtype))
        x = updates.pursue(3)(quadratic, torch.zeros(4, 7, dtype=dtype))
        exact = torch.linalg.lstsq(basis[:, [0, 2]], wanted).solution
        error = ((wanted - basis[:, [0, 2]] @ exact) ** 2).sum()
        assert float(quadratic.errors(x).sum()) == pytest.approx(float(error), rel=1e-5)


@given(seed=seeds)
def test_orthonormal_rows_against_random_ones(seed: int) -> None:
    basis, wanted = normal(seed, 8, 2), normal(seed + 1, 8, 5)
    quadratic = Quadratic(basis, wanted)
    x = updates.orthonormal_rows(quadratic, wanted.new_zeros(2, 5))
    torch.testing.assert_close(x @ x.T, torch.eye(2, dtype=torch.float64))
    for i in range(20):
        other = torch.linalg.qr(normal(seed + i, 5, 2)).Q.T
        assert quadratic.errors(x).sum() <= quadratic.errors(other).sum() + 1e-9


@given(seed=seeds)
def test_shrinking_lowers_error_and_price(seed: int) -> None:
    basis, wanted = normal(seed, 4, 6), normal(seed + 1, 4, 9)
    quadratic, x = Quadratic(basis, wanted), normal(seed + 2, 6, 9)
    costs = []
    for _ in range(5):
        costs.append(float(quadratic.errors(x).sum() / 2 + 0.3 * x.abs().sum()))
        x = updates.shrink(0.3, 4)(quadratic, x)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(costs))


@given(seed=seeds)
def test_rows_without_use_get_one_and_the_error_falls(seed: int) -> None:
    tiles, codebook = normal(seed, 3, 12), normal(seed + 1, 3, 5)
    codebook[:, 3:] = 100
    quadratic = Quadratic(codebook, tiles)
    latent = updates.nearest_column(quadratic, tiles.new_zeros(5, 12))
    revived = updates.use_every_row(quadratic, latent)
    assert revived.any(dim=1).sum() >= latent.any(dim=1).sum()
    assert revived[3:].any(dim=1).all()
    assert torch.equal(revived, ones(1)(revived))
    fitted = updates.means(Quadratic(revived.T, tiles.T), codebook.T).T
    assert distortion(tiles, fitted, revived) <= distortion(tiles, codebook, latent) + 1e-9


def test_means_are_least_squares_of_one_hot_columns() -> None:
    tiles, codebook = normal(0, 3, 12), normal(1, 3, 5)
    latent = ones(1)(normal(2, 5, 12))
    latent[:, latent[4] > 0] = torch.eye(5, dtype=torch.float64)[:, :1]
    quadratic = Quadratic(latent.T, tiles.T)
    fitted = updates.means(quadratic, codebook.T)
    torch.testing.assert_close(fitted, least_squares(quadratic, codebook.T))
    assert torch.equal(fitted[4], codebook.T[4])


def worse(quadratic: Quadratic, x: Tensor) -> Tensor:
    return x + 1


def random_walk(seed: int) -> Update:
    draw = torch.Generator().manual_seed(seed)
    return lambda quadratic, x: x + 0.1 * torch.randn(x.shape, generator=draw, dtype=x.dtype)


@given(seed=seeds)
def test_never_worse_than_the_start_whatever_the_updates(seed: int) -> None:
    tiles, codebook, latent = normal(seed, 4, 9), normal(seed + 1, 4, 3), normal(seed + 2, 3, 9)
    for update in (worse, random_walk(seed), fixed, gradient_step(free())):
        result = solve(
            tiles, (codebook, latent), update_latent=update, update_codebook=update, iterations=5
        )
        assert distortion(tiles, result.codebook, result.latent) == min(result.history)
        assert result.history[0] == distortion(tiles, codebook, latent)
        assert result.status in ("converged", "iteration limit")


def test_stops_at_the_limit_or_when_little_is_gained() -> None:
    tiles, codebook, latent = normal(0, 6, 30), normal(1, 6, 3), normal(2, 3, 30)
    update = gradient_step(free())
    start = (tiles, (codebook, latent))
    short = solve(*start, update_latent=update, update_codebook=update, iterations=3)
    assert (len(short.history), short.status) == (4, "iteration limit")
    long = solve(*start, update_latent=update, update_codebook=update, tolerance=0.05)
    assert long.status == "converged"
    gains = [1 - b / a for a, b in itertools.pairwise(long.history)]
    assert gains[-1] <= 0.05
    assert all(gain > 0.05 for gain in gains[:-1])
    assert solve(*start, update_latent=update, iterations=0).history == short.history[:1]


def test_the_penalty_counts() -> None:
    tiles, codebook, latent = normal(0, 4, 9), normal(1, 4, 3), normal(2, 3, 9)

    def penalty(c: Tensor, z: Tensor) -> float:
        return 1000 * float((z**2).sum())

    result = solve(tiles, (codebook, latent), update_latent=least_squares, penalty=penalty)
    expected = distortion(tiles, result.codebook, result.latent)
    assert min(result.history) == expected + penalty(result.codebook, result.latent)
