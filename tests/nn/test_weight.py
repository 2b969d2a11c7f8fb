# SPDX-License-Identifier: Apache-2.0
"""The holder of factors and the operator below it."""

import math

import pytest
import torch
from toys import random_factors

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import power_of_two, recompose
from tersor.nn import FactoredWeight

SHAPES = [(6, 20), (4, 3, 3, 3), (4, 1, 3, 3), (5, 4), (3, 2, 2, 2, 2)]


def operands(requires_grad=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(-20, 21, (5, 3), generator=generator).to(dtype).requires_grad_(requires_grad),
        torch.randint(-3, 4, (3, 7), generator=generator).to(dtype).requires_grad_(requires_grad),
        torch.tensor([0.75], dtype=dtype, requires_grad=requires_grad),
        torch.tensor([-4], dtype=torch.int32),
    ]


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operator_is_well_formed(requires_grad, dtype):
    torch.library.opcheck(torch.ops.tersor.recompose.default, operands(requires_grad, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operator_gradients_are_those_of_the_formula(dtype):
    inputs, reference = operands(dtype=dtype), operands(dtype=torch.float64)
    codebook, latent, scale, exponent = reference
    weights = torch.arange(35.0).reshape(5, 7) - 17
    (recompose(*inputs).sin() * weights).sum().backward()
    (torch.sin(scale * 2.0**exponent * (codebook @ latent)) * weights).sum().backward()
    for got, expected in zip(inputs[:3], reference[:3], strict=True):
        assert got.grad.dtype == dtype
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(
            got.grad.double(), expected.grad, rtol=tolerance, atol=tolerance * 100
        )


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_operator_computes_only_wanted_gradients(wanted):
    inputs = operands(requires_grad=False)
    inputs[wanted].requires_grad_()
    recompose(*inputs).sum().backward()
    assert [x.grad is not None for x in inputs] == [i == wanted for i in range(4)]


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_data_type_changes_nothing(default):
    factors = random_factors((6, 20))
    expected = factors.recompose()
    torch.set_default_dtype(default)
    try:
        holder = FactoredWeight(factors)
        assert torch.equal(holder(), expected)
        assert torch.equal(holder.to_factors().recompose(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    assert power_of_two(exponents).tolist() == [2.0**e for e in exponents.tolist()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_holder_gives_the_bits_of_the_factors(shape, integer, dtype):
    made = random_factors(shape, integer=integer)
    factors = Factors(made.codebook, made.latent, made.scale, shape, dtype)
    holder = FactoredWeight(factors)
    assert torch.equal(holder(), factors.recompose())
    back = holder.to_factors()
    assert torch.equal(back.codebook, factors.codebook)
    assert torch.equal(back.latent, factors.latent)
    assert (back.shape, back.dtype, back.quantized) == (shape, dtype, integer)
    assert back.scale == torch.tensor(factors.scale, dtype=torch.float32).item()


def test_one_real_and_one_integer_factor():
    made = random_factors((6, 20))
    holder = FactoredWeight(Factors(made.codebook + 0.5, made.latent, 0.1, made.shape))
    holder.latent.data += 0.2
    back = holder.to_factors()
    assert torch.equal(back.codebook, made.codebook + 0.5)
    assert torch.equal(back.latent, made.latent)


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.3, 1e-9, 2.0**-149, 2.0**127 * 1.5, math.pi])
def test_any_float32_scale_is_exact(scale):
    made = random_factors((6, 20))
    factors = Factors(made.codebook, made.latent, scale, made.shape)
    holder = FactoredWeight(factors)
    assert holder.to_factors().scale == torch.tensor(scale, dtype=torch.float32).item()
    assert torch.equal(holder(), factors.recompose())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_stay_exact_in_low_precision(dtype):
    made = random_factors((6, 20))
    large = Factors(made.codebook * 100 + 1, made.latent, 1e-12, made.shape)
    holder = FactoredWeight(large).to(dtype)
    assert holder.to_factors().scale == torch.tensor(1e-12).item()
    assert torch.equal(holder.to_factors().codebook, large.codebook)
    assert torch.equal(holder(), large.recompose().to(dtype))


def test_trained_factors_are_rounded_with_straight_through_gradients():
    holder = FactoredWeight(random_factors((6, 20)))
    before = holder()
    holder.codebook.data += 0.4
    holder.latent.data -= 0.4
    assert torch.equal(holder(), before)
    optimizer = torch.optim.Adam(holder.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (holder() ** 2).sum().backward()
        optimizer.step()
        assert torch.equal(holder(), holder.to_factors().recompose())
    assert (holder() ** 2).sum() < (before**2).sum()


@pytest.mark.parametrize("value", [4e4, math.nan])
def test_values_that_cannot_be_stored_are_refused(value):
    holder = FactoredWeight(random_factors((6, 20)))
    holder.latent.data[0, 0] = value
    with pytest.raises(InputError, match="can be stored"):
        holder.to_factors()


def test_signs_that_are_nan_are_refused():
    made = random_factors((6, 20))
    holder = FactoredWeight(
        Factors(made.codebook, 2 * (made.latent > 0).short() - 1, 0.1, made.shape)
    )
    assert holder.binary
    holder.latent.data[0, 0] = math.nan
    with pytest.raises(InputError, match="can be stored"):
        holder.to_factors()


def test_the_factors_are_copied():
    factors = random_factors((6, 20), integer=False)
    expected = factors.recompose()
    holder = FactoredWeight(factors)
    holder.codebook.data.zero_()
    assert torch.equal(factors.recompose(), expected)
    holder.to_factors().latent.zero_()
    assert holder.latent.any()
