# SPDX-License-Identifier: Apache-2.0
"""Bits of a model, with gradients, against the bytes that are written."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from trainable import compressed, dense, drifted

import tersor
from tersor.coding import records
from tersor.coding.rate import analyse
from tersor.errors import InputError
from tersor.training.costs import Cost
from tersor.training.groups import factored_weights
from tersor.training.rate_loss import Rate


def coded_bits(model):
    holders = factored_weights(model).values()
    return 8 * sum(records.encode(h.to_factors()).coded_bytes for h in holders)


@pytest.mark.parametrize("ratio", [6, 15, 30])
@pytest.mark.parametrize("moved", ["not", "rounded", "projected"])
def test_it_is_what_the_coder_spends(ratio, moved):
    model = compressed(dense(), ratio)
    if moved != "not":
        drifted(model)
    if moved == "projected":
        tersor.project(model)
    # A stream may have a byte or two less or more than its bits.
    assert float(tersor.rate_loss(model).detach()) == pytest.approx(coded_bits(model), rel=0.03)


def test_a_layer_used_twice_counts_once():
    layer = nn.Linear(32, 32)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    tersor.compress(model, ratio=3)
    alone = nn.Sequential(model[0])
    assert tersor.rate_loss(model).item() == tersor.rate_loss(alone).item()


def test_following_the_gradient_makes_the_file_smaller(tmp_path):
    model = compressed(dense(), 8)
    before = tersor.save(model, tmp_path / "a.tersor").nbytes
    optimizer = torch.optim.Adam(tersor.parameter_groups(model, lr=1e-2))
    for _ in range(30):
        optimizer.zero_grad()
        tersor.rate_loss(model).backward()
        optimizer.step()
        tersor.project(model, lagrangian=0.05)
    assert tersor.save(model, tmp_path / "b.tersor").nbytes < 0.85 * before


def slope(value, integer, states):
    """Slope at a value of a matrix of one element, coded as an integer."""
    values = torch.tensor([[value]], requires_grad=True)
    cost = Cost(analyse(torch.tensor([[integer]]), 1, states), states)
    Rate.apply(values, cost).backward()
    return float(values.grad)


@pytest.mark.parametrize("states, spacing", [(1, 1.0), (32, 2.0)])
@pytest.mark.parametrize("integer", [0, 2, 40])
def test_slopes_are_odd_and_continuous(states, spacing, integer):
    places = [0.01 * spacing * n for n in range(2000)]
    found = [slope(v, integer, states) for v in places]
    assert [slope(-v, integer, states) for v in places[:50]] == [-s for s in found[:50]]
    assert found[0] == 0 and min(found) >= -1e-6
    assert max(abs(a - b) for a, b in pairwise(found)) < 0.05 * max(found)


def test_frozen_parameters_get_no_gradient():
    model = compressed(dense())
    holder = model[3].weight_factors
    holder.codebook.requires_grad_(False)
    tersor.rate_loss(model).backward()
    assert holder.codebook.grad is None and bool(holder.latent.grad.any())


def test_a_model_without_factors_has_no_bits():
    with pytest.raises(InputError, match=r"no quantized factors; call tersor\.compress first"):
        tersor.rate_loss(nn.Linear(3, 3))


def test_bits_follow_what_is_computed_with():
    model = compressed(dense())
    weight = model[3].weight_factors
    tersor.project(model)
    before = float(tersor.rate_loss(model).detach())
    assert float(tersor.rate_loss(model).detach()) == before
    weight.coded.zero_()  # written to, not replaced
    fewer = float(tersor.rate_loss(model).detach())
    weight.project_to(weight.stored_latent)
    assert fewer == float(tersor.rate_loss(model).detach()) < before
