# SPDX-License-Identifier: Apache-2.0
"""Groups of parameters for optimizers."""

import pytest
import torch
from torch import nn
from trainable import compressed, dense

import tersor
from tersor.errors import InputError


def names(groups):
    return {group["name"] for group in groups}


def test_every_trained_parameter_is_in_one_group():
    model = compressed(dense())
    groups = tersor.parameter_groups(model, lr=1e-3, weight_decay=0.1)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert names(groups) == {"latents", "codebooks", "rest"}
    torch.optim.AdamW(groups)  # takes them


def test_factors_and_vectors_do_not_decay():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    tersor.compress(model, ratio=4)
    groups = tersor.parameter_groups(model, lr=1e-3, weight_decay=0.1)
    decayed = [p for g in groups if g["weight_decay"] for p in g["params"]]
    assert [p.shape for p in decayed] == [(2, 64)]  # few weights: left dense


def test_a_larger_codebook_moves_faster():
    model = compressed(dense())
    slow = {id(g["params"][0]): g["lr"] for g in tersor.parameter_groups(model, lr=1e-3)}
    holder = model[3].weight_factors
    with torch.no_grad():
        holder.codebook.mul_(3)
    fast = {id(g["params"][0]): g["lr"] for g in tersor.parameter_groups(model, lr=1e-3)}
    key = id(holder.codebook)
    assert fast[key] > 2 * slow[key] and {k for k in fast if fast[k] != slow[k]} == {key}


def test_weights_of_normalisation_move_in_proportion():
    model = compressed(dense())
    rates = []
    for factor in (1.0, 0.01):
        with torch.no_grad():
            model[1].weight.mul_(factor)
        groups = tersor.parameter_groups(model, lr=1e-3)
        rates += [g["lr"] for g in groups if g["params"][0] is model[1].weight]
    assert rates[1] == pytest.approx(0.01 * rates[0])


def test_frozen_parameters_are_left_out():
    model = compressed(dense())
    model[3].weight_factors.latent.requires_grad_(False)
    grouped = {id(p) for g in tersor.parameter_groups(model, lr=1e-3) for p in g["params"]}
    assert id(model[3].weight_factors.latent) not in grouped
    with pytest.raises(InputError, match="all parameters are frozen"):
        tersor.parameter_groups(model.requires_grad_(False), lr=1e-3)


def test_a_layer_used_twice_counts_once():
    layer = nn.Linear(32, 32)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    tersor.compress(model, ratio=3)
    latents = [g for g in tersor.parameter_groups(model, lr=1e-3) if g["name"] == "latents"]
    assert [len(g["params"]) for g in latents] == [1]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rates_are_checked(lr):
    with pytest.raises(InputError, match="learning rate must be a positive number"):
        tersor.parameter_groups(compressed(dense()), lr=lr)
