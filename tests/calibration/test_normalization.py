# SPDX-License-Identifier: Apache-2.0
"""Matching normalisation statistics to the dense model's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tersor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(8))
    model(torch.randn(64, 3, 12, 12))  # statistics that are not those of a fresh layer
    return model.eval()


def offsets(model: nn.Sequential, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each normalisation layer: the mean and the variance of what reaches it, normalised."""
    seen = []

    def hook(layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        mean, variance = args[0].mean((0, 2, 3)), args[0].var((0, 2, 3))
        seen.append(
            (
                (mean - layer.running_mean) * layer.running_var.rsqrt(),
                variance / layer.running_var,
            )
        )

    handles = [m.register_forward_pre_hook(hook) for m in model if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def test_statistics_fit_the_activations_as_well_as_in_the_dense_model() -> None:
    dense, x = network(), torch.randn(256, 3, 12, 12)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model[0].weight *= 1.2
        model[0].bias += 0.3
        model[3].weight *= 0.8
    tersor.match_normalization(model, dense, [x])
    for ours, theirs in zip(offsets(model, x), offsets(dense, x), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_model_stays_as_it_is() -> None:
    dense = network()
    model = copy.deepcopy(dense)
    tersor.match_normalization(model, dense, [torch.randn(32, 3, 12, 12)])
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_folded_normalization_is_matched_by_its_weight_and_bias() -> None:
    dense, x = network(), torch.randn(256, 3, 12, 12)
    folded = copy.deepcopy(dense)
    tersor.fold_normalization(folded, x[:4])
    pairs = [(copy.deepcopy(dense), dense), (copy.deepcopy(folded), folded)]
    for model, reference in pairs:
        with torch.no_grad():
            model[0].weight *= 1.2
            model[3].weight *= 0.8
        tersor.match_normalization(model, reference, [x])
    (plain, _), (model, _) = pairs
    torch.testing.assert_close(model(x), plain(x), rtol=1e-3, atol=1e-3)
    assert not model[1].running_mean.any() and (model[4].running_var == 1).all()


def test_a_dead_channel_does_not_blow_up() -> None:
    dense, x = network(), torch.randn(64, 3, 12, 12)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model[3].weight[0] = 0
    before = dense[4].running_var[0].clone()
    tersor.match_normalization(model, dense, [x])
    torch.testing.assert_close(model[4].running_var[0], before / 2)


def test_modes_and_hooks_are_given_back() -> None:
    dense = network()
    model = copy.deepcopy(dense).train()
    model[1].eval()
    tersor.match_normalization(model, dense, [torch.randn(8, 3, 12, 12)])
    assert model.training and not model[1].training and model[4].training
    assert not any(m._forward_pre_hooks for m in (*model.modules(), *dense.modules()))


def test_a_compressed_model_stays_what_its_file_holds(tmp_path) -> None:
    dense, x = network(), torch.randn(64, 3, 12, 12)
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=3)
    tersor.match_normalization(model, dense, [x])
    tersor.save(model, tmp_path / "model.tersor")
    loaded = tersor.load(tmp_path / "model.tersor", network())
    assert torch.equal(loaded(x), model(x))


def test_different_architectures_are_refused() -> None:
    with pytest.raises(tersor.InputError, match="different BatchNorm"):
        tersor.match_normalization(network()[:3], network(), [torch.randn(2, 3, 12, 12)])
