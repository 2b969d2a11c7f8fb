# SPDX-License-Identifier: Apache-2.0
"""The size of the file with other values: asked without changing the model, encoded once."""

import copy

import pytest
import torch
from samples import bits
from trainable import compressed, dense, drifted

import tersor
from tersor.coding import records
from tersor.storage import container
from tersor.training.groups import trained_latents
from tersor.training.sizes import contents, file_size, least_size, round_unfactored, rounded_size


@pytest.fixture
def model():
    return drifted(compressed(dense()))


@pytest.fixture
def encoded(monkeypatch):
    """Shapes of the weights that are encoded."""
    shapes, encode = [], records.encode

    def counting(factors, *args, **kwargs):
        shapes.append(factors.shape)
        return encode(factors, *args, **kwargs)

    monkeypatch.setattr(records, "encode", counting)
    return shapes


def halved(model):
    return {weight: weight.stored_latent // 2 for weight in trained_latents(model).values()}


def test_contents_are_those_of_a_model_with_these_values(model, tmp_path):
    found = b"".join(container.to_bytes(contents(model, halved(model), 4)))
    changed = copy.deepcopy(model)
    round_unfactored(changed, 4)
    for weight, latent in halved(changed).items():
        weight.project_to(latent)
    tersor.save(changed, tmp_path / "a.tersor")
    assert found == (tmp_path / "a.tersor").read_bytes()
    assert found != b"".join(container.to_bytes(contents(model)))


def test_to_ask_changes_nothing(model):
    before = {name: bits(value) for name, value in model.state_dict().items()}
    sizes = [least_size(model, 4), rounded_size(model, 4), file_size(model)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    contents(model, halved(model), 4)
    assert {name: bits(value) for name, value in model.state_dict().items()} == before


def test_ten_steps_encode_what_changed_once(model, encoded):
    weights = list(trained_latents(model).values())
    file_size(model)
    assert len(encoded) == len(weights) > 1
    encoded.clear()
    for step in range(10):
        with torch.no_grad():
            weights[1].latent[0, step] += 1.0
        assert file_size(model) == container.size(contents(model))
        round_unfactored(model, 8)
    assert encoded == [weights[1].shape] * 10


def test_values_that_change_unseen_are_encoded(model, encoded):
    """As by an optimizer that writes to ``data``: the number of the version stays."""
    weight, *_ = trained_latents(model).values()
    before = file_size(model)
    weight.latent.data.zero_()
    encoded.clear()
    assert file_size(model) < before and encoded == [weight.shape]
