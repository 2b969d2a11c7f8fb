# SPDX-License-Identifier: Apache-2.0
"""Every kind of module with factors does what the dense one with the same weights does."""

import copy
import io

import pytest
import torch
from toys import CASES, factors_of, output, pair

import tersor
from tersor.nn import FactoredWeight, insert_factors, state

every_case = pytest.mark.parametrize("make, inputs", CASES.values(), ids=CASES.keys())


def close(got, expected, tolerance=1e-6):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def holders(model):
    return {
        path.removesuffix("_factors"): module
        for path, module in model.named_modules()
        if isinstance(module, FactoredWeight)
    }


@every_case
@pytest.mark.parametrize("mode", [None, "recompose", "dense"])
@pytest.mark.parametrize("training", [True, False])
def test_output_is_that_of_the_dense_model(make, inputs, mode, training):
    dense, factored, _ = pair(make)
    if mode is not None:
        tersor.optimize(factored, mode)
    close(output(factored.train(training), inputs), output(dense.train(training), inputs))
    with torch.no_grad():
        close(output(factored, inputs), output(dense, inputs))


@every_case
def test_gradients_follow_the_chain_rule(make, inputs):
    dense, factored, _ = pair(make)
    for model in (dense, factored):
        result = output(model, inputs)
        (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
    for name, holder in holders(factored).items():
        grad = holder.tiling.split(dense.get_parameter(name).grad)
        codebook, latent = holder.codebook.detach(), holder.latent.detach()
        power = torch.ldexp(torch.ones(1), holder.exponent)
        step = holder.scale.detach() * power
        close(holder.codebook.grad, step * grad @ latent.T, 1e-5)
        close(holder.latent.grad, step * codebook.T @ grad, 1e-5)
        close(holder.scale.grad, (power * grad * (codebook @ latent)).sum().reshape(1), 1e-5)
    for name, parameter in dense.named_parameters():
        if parameter.ndim == 1:
            close(factored.get_parameter(name).grad, parameter.grad, 1e-5)


@every_case
def test_state_has_the_names_of_the_dense_model(make, inputs):
    dense, factored, factors = pair(make)
    found = state(factored)
    assert list(found) == list(dense.state_dict())
    assert all(isinstance(found[name], FactoredWeight) for name in factors)
    for name, value in found.items():
        weight = value() if isinstance(value, FactoredWeight) else value
        assert torch.equal(weight, dense.state_dict()[name])


@every_case
def test_state_dict_carries_everything(make, inputs):
    _, factored, _ = pair(make)
    other = make()
    insert_factors(other, factors_of(other, seed=1))
    output(other, inputs)
    assert other.load_state_dict(factored.state_dict()) == ([], [])
    close(output(other, inputs), output(factored, inputs))


@every_case
def test_copy_and_pickle(make, inputs):
    _, factored, _ = pair(make)
    expected = output(factored, inputs)
    buffer = io.BytesIO()
    torch.save(factored, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(factored), torch.load(buffer, weights_only=False)):
        assert len(list(other.parameters())) == len(list(factored.parameters()))
        close(output(other, inputs), expected)
        for parameter in other.parameters():
            parameter.data.zero_()
    close(output(factored, inputs), expected)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_data_type_follows_the_module(make, inputs, dtype):
    dense, factored, factors = pair(make)
    for model in (dense, factored):
        model.to(dtype)
    for name, holder in holders(factored).items():
        assert torch.equal(holder.to_factors().recompose(), holder())
        close(holder(), factors[name].recompose().to(dtype), 2.0**-7)
    converted = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    result = output(factored, converted)
    assert result.dtype == dtype
    close(result, output(dense, converted), 1e-5 if dtype == torch.float64 else 0.1)


@every_case
def test_autocast(make, inputs):
    dense, factored, _ = pair(make)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            expected = output(dense, inputs)
        except RuntimeError as error:  # oneDNN needs AVX-512 for an LSTM in bfloat16
            pytest.skip(f"torch cannot run the dense module on this processor: {error}")
        result = output(factored, inputs)
    assert result.dtype == expected.dtype
    close(result, expected)
    result.float().sum().backward()
    assert all(holder.latent.grad.abs().sum() > 0 for holder in holders(factored).values())
