# SPDX-License-Identifier: Apache-2.0
"""Latents back on the trellis, within a budget; what is in memory is what is in the file."""

import copy

import pytest
import torch
from samples import bits
from torch import nn
from trainable import Net, compressed, data, dense, drifted

import tersor
from tersor.coding.entropy import trellis_of
from tersor.errors import BudgetError, InputError
from tersor.factorization import methods
from tersor.factorization.rate_aware import LAGRANGIAN
from tersor.nn import insert_factors, source, state
from tersor.tiling import coding_order
from tersor.training.groups import factored_weights
from tersor.training.projection import fit
from tersor.training.sizes import file_size

IMAGES = data()[0]


def trained(ratio=15):
    """A compressed model after what an optimizer does to it."""
    model = drifted(compressed(dense(), ratio))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("latent"):
                parameter.mul_(1.001)
    return model


@pytest.mark.parametrize(
    "project", [lambda m, n: tersor.project(m, target_size=n), lambda m, n: fit(m, n, 0.3, {})]
)
@pytest.mark.parametrize("share", [1.0, 0.8])
def test_the_file_fits_and_gives_back_the_model(tmp_path, project, share):
    model = trained()
    budget = int(share * tersor.save(compressed(dense()), tmp_path / "a.tersor").nbytes)
    found = project(model, budget)
    report = tersor.save(model, tmp_path / "b.tersor")
    assert report.nbytes == found.nbytes <= budget
    assert found.nbytes > 0.9 * budget
    back = tersor.load(tmp_path / "b.tersor", Net().eval())
    assert bits(back(IMAGES)) == bits(model(IMAGES))
    assert list(map(bits, dense_tensors(back))) == list(map(bits, dense_tensors(model)))


def dense_tensors(model):
    values = state(model).values()
    return [source.dense(v) for v in values]


def test_latents_are_on_the_trellis_and_stay_real():
    model = trained()
    before = {n: w.latent.detach().clone() for n, w in factored_weights(model).items()}
    tersor.project(model)
    for name, weight in factored_weights(model).items():
        assert torch.equal(weight.latent, before[name])
        ordered = coding_order(weight.stored_latent, weight.shape[0])
        assert trellis_of(ordered, weight.shape[0]) == weight.states or not ordered.any()
        away = (weight.stored_latent - weight.latent).abs()
        assert float(away.mean().detach()) < 1


def test_gradients_reach_the_real_latents():
    model = trained()
    tersor.project(model)
    model(IMAGES).square().sum().backward()
    assert all(bool(w.latent.grad.any()) for w in factored_weights(model).values())


def test_a_higher_price_gives_a_smaller_file():
    sizes = [tersor.project(trained(), lagrangian=p).nbytes for p in (0.03, 0.3, 3.0, 30.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.3 * sizes[-1]


def test_what_is_projected_already_stays():
    model = trained()
    tersor.project(model)
    before = [w.stored_latent for w in factored_weights(model).values()]
    fit(model, 10**6, 0.3, {})
    after = [w.stored_latent for w in factored_weights(model).values()]
    assert all(map(torch.equal, before, after))


def test_a_state_dict_holds_the_projection():
    model = trained()
    tersor.project(model)
    saved = copy.deepcopy(model.state_dict())
    other = compressed(dense())
    other.load_state_dict(saved)
    assert bits(other(IMAGES)) == bits(model(IMAGES))
    fresh = compressed(dense())
    other.load_state_dict(fresh.state_dict())
    assert bits(other(IMAGES)) == bits(fresh(IMAGES))


def test_frozen_latents_stay():
    model = trained()
    weight = model[3].weight_factors
    weight.latent.requires_grad_(False)
    before = weight.stored_latent
    tersor.project(model, lagrangian=100.0)
    assert torch.equal(weight.stored_latent, before)


def test_scalar_latents_stay_scalar():
    """Factors that come from no trellis are rounded at a given λ, not put on one."""
    factors = tersor.factorize(dense()[3].weight, method=methods.ternary()).factors
    model = compressed(dense())
    insert_factors(model, {"3.weight": factors})
    tersor.project(model, lagrangian=1e-6)
    assert torch.equal(model[3].weight_factors.to_factors().recompose(), factors.recompose())


def test_too_small_budgets_name_the_smallest(tmp_path):
    model = trained()
    before = [bits(t) for t in dense_tensors(model)]
    with pytest.raises(BudgetError, match=r"too few: .* the file has (\d+)") as e:
        tersor.project(model, target_size=100)
    assert [bits(t) for t in dense_tensors(model)] == before
    least = int(str(e.value).split("the file has ")[1].split()[0])
    assert tersor.project(model, target_size=least).nbytes == least


def test_what_cannot_be_projected():
    with pytest.raises(InputError, match=r"no quantized factors; call tersor\.compress first"):
        tersor.project(nn.Linear(3, 3))
    with pytest.raises(InputError, match="must be a positive number"):
        tersor.project(compressed(dense()), lagrangian=-1)
    model = compressed(dense())
    tersor.project(model)
    with torch.no_grad():
        model[3].weight_factors.latent[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"shape \(32, 16, 3, 3\) is NaN or infinite"):
        tersor.project(model)


def test_codebooks_of_signs_that_have_grown_become_coarser():
    torch.manual_seed(0)
    model = nn.Linear(64, 256)
    tersor.compress(model, bits_per_weight=2, lookup=["*"])
    (weight,) = factored_weights(model).values()
    assert weight.binary
    before, target = weight().detach(), file_size(model)
    with torch.no_grad():
        weight.codebook.mul_(4).add_(torch.randn(weight.codebook.shape))
        weight.scale.div_(4)
    assert file_size(model) > target
    assert fit(model, target, LAGRANGIAN, {}).nbytes == file_size(model) <= target
    assert float((weight().detach() - before).norm() / before.norm()) < 0.2
