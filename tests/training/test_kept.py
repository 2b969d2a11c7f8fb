"""Biases and normalisation weights have as few digits as the weights bear."""

import pytest
import torch
from torch import nn
from trainable import compressed, dense

import tersor
from tersor.errors import BudgetError
from tersor.training.kept import coarsen, digits, restore, rounded
from tersor.training.projection import file_size


@pytest.mark.parametrize("kept", [3, 7])
def test_numbers_are_rounded_to_so_many_digits(kept):
    values = torch.randn(1000) * 10.0 ** torch.randint(-30, 30, (1000,))
    near = rounded(values, kept)
    assert float(((near - values) / values).abs().max()) <= 2.0 ** -(kept + 1)
    assert bool((torch.frexp(near)[0] * 2 ** (kept + 1) % 1 == 0).all())
    special = torch.tensor([0.0, -0.0, torch.inf, 1.0, -0.375])
    assert torch.equal(rounded(special, kept), special)


def test_fewer_bits_of_weights_need_fewer_digits():
    model = compressed(dense())
    weights = 16 * 32 * 9 + 512 * 4
    found = [digits(model, bits * weights / 8) for bits in (0.5, 1, 1.5, 2.5, 4, 8)]
    assert found == [3, 3, 4, 5, 6, 7]


def test_a_small_file_has_fewer_digits_and_gives_them_back(tmp_path):
    torch.manual_seed(0)
    model, path = nn.Linear(16, 1024), tmp_path / "a.tersor"  # as trained: biases of any digits
    tersor.compress(model, bits_per_weight=4)
    model.bias.data.normal_()
    before = file_size(model)
    size = int(0.7 * before)
    changed = coarsen(model, size)
    assert file_size(model) < 0.98 * before
    restore(changed)
    assert file_size(model) == before
    assert tersor.project(model, target_size=size).nbytes <= size
    tersor.save(model, path)
    assert torch.equal(tersor.load(path, nn.Linear(16, 1024)).bias, model.bias)
    assert torch.equal(model.bias, rounded(model.bias, digits(model, size)))


def test_what_is_frozen_or_out_of_reach_keeps_its_digits():
    model = compressed(dense(), 20)
    model[1].bias.data.fill_(1 + 1 / 128)
    model[1].weight.data.fill_(1 + 1 / 128)
    model[1].bias.requires_grad_(False)
    with pytest.raises(BudgetError):
        tersor.project(model, target_size=100)
    assert float(model[1].weight.detach()[0]) == 1 + 1 / 128
    tersor.project(model, target_size=file_size(model))
    assert (
        float(model[1].bias.detach()[0]) == 1 + 1 / 128
        and float(model[1].weight.detach()[0]) == 1.0
    )
