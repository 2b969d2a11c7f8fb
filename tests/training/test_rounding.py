# SPDX-License-Identifier: Apache-2.0
"""Biases have few digits where a model computes, and all of them where they are trained."""

import pytest
import torch
from torch import nn
from trainable import compressed, data, dense

import tersor
from tersor.training.rounding import Rounding, digits_of, round_to
from tersor.training.sizes import round_unfactored, rounded


def digits(values):
    """Most binary digits that any of some numbers has."""
    mantissa, _ = torch.frexp(values.detach().double())
    return next(d for d in range(54) if not ((mantissa * 2**d) % 1).any())


def test_numbers_are_rounded_to_so_many_digits():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e3
    for n in (1, 4, 8):
        found = round_to(values, n)
        assert digits(found) == n and torch.equal(round_to(found, n), found)
        torch.testing.assert_close(found, values, rtol=2.0**-n, atol=0)
    assert torch.equal(round_to(values, 8), values.bfloat16().float())
    zeros = round_to(torch.tensor([0.0, -0.0, torch.inf]), 4)
    assert zeros.tolist() == [0.0, -0.0, torch.inf]


@pytest.mark.parametrize(
    ("bits", "expected"), [(0.2, 4), (0.8, 4), (1.6, 5), (3.2, 7), (6.0, 8), (32.0, 8)]
)
def test_the_more_bits_weights_have_the_more_digits(bits, expected):
    assert digits_of(8000, int(1000 * bits)) == expected


def test_steps_below_a_digit_add_up():
    parameter = nn.Parameter(torch.ones(3))
    rounding = Rounding([parameter], 4)
    seen = []
    for _ in range(40):
        with rounding.real(), torch.no_grad():
            parameter.add_(0.01)
        seen.append(parameter.detach().clone())
    assert all(digits(values) <= 4 for values in seen)
    assert torch.equal(seen[2], torch.ones(3))  # 1.03 has no place of its own
    torch.testing.assert_close(seen[-1], torch.full((3,), 1.4), rtol=1 / 16, atol=0)


def test_what_is_rounded_is_what_trains_and_the_file_has_at_16_bits():
    model = compressed(dense())
    small = {"0.weight", "0.bias", "1.weight", "1.bias", "3.bias", "6.bias"}
    assert rounded(model) == small
    model[3].bias.requires_grad_(False)
    with torch.no_grad():
        for parameter in (model[0].bias, model[3].bias):
            parameter.mul_(1.001)
    round_unfactored(model, 4)
    assert digits(model[0].bias) == 4 and digits(model[3].bias) > 6
    assert rounded(model) == small - {"3.bias"}


def test_finetuning_leaves_what_the_file_holds():
    model = compressed(dense(), 15)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 64)
    seen = []
    model[0].register_forward_pre_hook(lambda *_: seen.append(digits(model[0].bias)))
    found = tersor.finetune(model, loader, epochs=2, target_size="2kB")
    weights = 16 * 32 * 9 + 512 * 4
    expected = digits_of(weights, 2000)
    assert 4 < expected < 8 and found.nbytes <= 2000
    assert set(seen[1:]) == {expected} and digits(model[0].bias) == expected
