# SPDX-License-Identifier: Apache-2.0
"""One weight: within a budget, by every special case, by a projection of one's own."""

import math

import pytest
import torch
from samples import generator

import tersor
from tersor.errors import InputError
from tersor.factorization import methods
from tersor.factorization.projections import integers


def weight_like_trained(rows=96, inputs=64, seed=0):
    draw = generator(seed)
    basis = torch.linalg.qr(torch.randn(inputs, inputs, generator=draw)).Q
    spectrum = torch.linspace(1.5, 0.05, inputs)
    return torch.randn(rows, inputs, generator=draw) * spectrum @ basis * 0.1


def moments_like_measured(inputs=64, seed=1):
    draw = generator(seed)
    x = torch.randn(1000, inputs, generator=draw) * torch.logspace(0, -2, inputs)
    x = x @ torch.linalg.qr(torch.randn(inputs, inputs, generator=draw)).Q
    moments = x.T @ x / len(x)
    return moments + 0.01 * moments.diagonal().mean() * torch.eye(inputs)


def squared_error(weight, solution):
    return float((weight - solution.factors.recompose()).double().square().sum())


def output_error(weight, solution, moments):
    error = (weight - solution.factors.recompose()).double()
    return float(((error @ moments.double()) * error).sum())


CASES = {
    "weight_svd": methods.weight_svd(rank=3),
    "vector_quantization": methods.vector_quantization(8),
    "additive_vector_quantization": methods.additive_vector_quantization(8, 2),
    "dictionary_learning": methods.dictionary_learning(8, 2, starts=1, restarts=1),
    "scalar": methods.scalar(0.05),
    "ternary": methods.ternary(),
    "binary": methods.binary(),
    "rate_aware": methods.rate_aware(0.05),
    "projected_gradient": methods.projected_gradient(lambda y: y.round().clamp(-2, 2), 4),
    "callable": lambda y: y.clamp_min(0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape, tile", [((24, 40), 32), ((8, 6, 3, 3), 9), ((6, 5, 3, 2, 2), 12)])
def test_every_special_case(name, shape, tile):
    weight = torch.randn(shape, generator=generator()) * 0.1
    solution = tersor.factorize(weight, method=CASES[name])
    assert isinstance(solution, tersor.Solution)
    assert solution.factors.tiling.size == tile
    assert solution.factors.recompose().shape == shape
    assert solution.status in ("converged", "iteration limit")
    assert squared_error(weight, solution) < float(weight.double().square().sum())
    assert tersor.factorize(weight, method=CASES[name]).history == solution.history


def test_svd_of_rows_is_the_truncated_one():
    weight = weight_like_trained()
    solution = tersor.factorize(weight, method=methods.weight_svd(rank=5), tile=64)
    left_out = torch.linalg.svdvals(weight.double())[5:].square().sum()
    assert squared_error(weight, solution) == pytest.approx(float(left_out), rel=1e-4)
    assert solution.history[-1] == pytest.approx(float(left_out), rel=1e-4)
    assert solution.factors.rank == 5


def test_a_projection_of_ones_own_is_obeyed():
    weight = weight_like_trained()
    solution = tersor.factorize(weight, method=lambda y: y.clamp_min(0), tile=8)
    assert bool((solution.factors.latent >= 0).all())
    assert solution.factors.codebook.shape[0] == 8 and solution.factors.rank <= 8
    assert min(solution.history) <= solution.history[0]


def test_a_callable_gets_the_better_of_two_starts():
    weight = weight_like_trained()
    project = integers(3)
    solution = tersor.factorize(weight, method=project, tile=8)
    starts = [
        tersor.factorize(weight, method=methods.projected_gradient(project, 8, axes=axes), tile=8)
        for axes in (False, True)
    ]
    errors = [squared_error(weight, start) for start in starts]
    assert squared_error(weight, solution) == min(errors)
    assert errors[1] < 0.5 * errors[0]
    with pytest.raises(InputError, match="columns 9 is too large"):
        tersor.factorize(weight, method=methods.projected_gradient(project, 9, axes=True), tile=8)


def test_the_tile_may_be_longer_than_there_are_tiles():
    solution = tersor.factorize(torch.randn(3, 30, generator=generator()), method=lambda y: y)
    assert solution.factors.rank <= 3


@pytest.mark.parametrize("shape", [(96, 64), (16, 12, 3, 3), (12, 6, 2, 3, 3), (8, 4, 4, 2, 2, 2)])
def test_a_budget_is_kept_with_a_history_that_ends_with_the_result(shape):
    weight = torch.randn(shape, generator=generator())
    solution = tersor.factorize(weight, bits_per_weight=2)
    assert solution.factors.bits_per_weight <= 2
    assert solution.history[-1] == pytest.approx(squared_error(weight, solution), rel=1e-4)
    if weight.numel() > 4000:  # a few bytes more or less are too many for the others
        assert solution.status == "converged"


def test_the_tile_of_a_budget_may_be_given():
    solution = tersor.factorize(weight_like_trained(), bits_per_weight=2, tile=16)
    assert solution.factors.tiling.size == 16


def test_zeros_and_budgets_for_nothing_give_zeros():
    zeros = tersor.factorize(torch.zeros(20, 20), bits_per_weight=2)
    assert zeros.factors.rank == 0 and zeros.history[-1] == 0
    weight = torch.randn(20, 20, generator=generator())
    nothing = tersor.factorize(weight, bits_per_weight=0.48)
    assert nothing.history[-1] == pytest.approx(float(weight.square().sum()))


def test_moments_lower_the_error_of_the_output():
    weight, moments = weight_like_trained(256), moments_like_measured()
    plain = tersor.factorize(weight, bits_per_weight=2, tile=8)
    calibrated = tersor.factorize(weight, bits_per_weight=2, tile=8, moments=moments)
    assert calibrated.factors.bits_per_weight <= 2
    error = output_error(weight, calibrated, moments)
    assert error < 0.8 * output_error(weight, plain, moments)
    assert calibrated.history[-1] == pytest.approx(error, rel=1e-3)


WEIGHT = torch.randn(24, 40, generator=generator())


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "exactly one of bits_per_weight and method is needed, got neither"),
        ({"bits_per_weight": 2, "method": methods.ternary()}, "got both"),
        ({"method": "svd"}, "got a str"),
        ({"method": methods.ternary(), "moments": torch.eye(40)}, "with bits_per_weight only"),
        ({"method": methods.weight_svd(33)}, "rank 33 is too large"),
        ({"method": methods.ternary(), "tile": 41}, "tile must be from 1 to 40"),
        ({"bits_per_weight": 2, "tile": 0}, "tile must be from 1 to 40"),
        ({"bits_per_weight": math.nan}, "must be a positive number, got nan"),
        ({"bits_per_weight": 2, "moments": torch.eye(39)}, r"\(40, 40\) are needed"),
        ({"bits_per_weight": 2, "moments": [[1.0]]}, "got a list"),
        ({"bits_per_weight": 2, "moments": torch.ones(40, 40)}, "positive definite"),
        ({"bits_per_weight": 2, "moments": torch.zeros(40, 40)}, "positive definite"),
        ({"bits_per_weight": 2, "moments": torch.eye(40) * math.nan}, "must be finite"),
        (
            {"bits_per_weight": 2, "moments": torch.eye(40) + 0.1 * torch.ones(40, 40).triu(1)},
            "symmetric",
        ),
        ({"method": lambda y: y[:1]}, "of that shape, got"),
        ({"method": lambda y: None}, "got a NoneType"),
        ({"method": lambda y: y / 0}, "NaN or infinite"),
        ({"method": lambda y: y.numpy()}, "got a ndarray"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        tersor.factorize(WEIGHT, **options)


@pytest.mark.parametrize(
    "weight, message",
    [
        ([[1.0, 2.0]], "a weight tensor is needed, got a list"),
        (torch.randn(300), r"two axes or more, none empty, is needed, got \(300,\)"),
        (torch.randn(3, 0), r"\(3, 0\)"),
        (torch.ones(20, 20).long(), "floating-point type, got torch.int64"),
        (torch.full((20, 20), math.inf), "400 of the 400 elements"),
    ],
)
def test_weights_that_no_method_can_factor_are_refused(weight, message):
    with pytest.raises(InputError, match=message):
        tersor.factorize(weight, method=methods.ternary())
