# SPDX-License-Identifier: Apache-2.0
"""Folded normalisation computes the same from fewer numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import InputError


def model(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, bias=bias), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 24, 3, bias=bias), nn.ReLU(), nn.BatchNorm2d(24)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 5))
    for layer in (net[1], net[5]):
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            nn.init.uniform_(values, 0.5, 2)
    return net.eval()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_is_computed_with_statistics_that_say_nothing(bias):
    net = model(bias).train()
    wanted = model(bias)(IMAGES)
    assert tersor.fold_normalization(net, IMAGES) == ["1", "5"] and net.training
    torch.testing.assert_close(net.eval()(IMAGES), wanted, rtol=1e-4, atol=1e-4)
    for layer in (net[1], net[5]):
        assert not layer.running_mean.any() and bool((layer.running_var == 1).all())
    if bias:  # that of the second one passes a ReLU on its way, and stays
        assert not net[0].bias.any() and not net[0].bias.requires_grad
        assert bool(net[3].bias.any()) and net[3].bias.requires_grad


def test_files_are_smaller_and_the_fold_is_kept(tmp_path):
    sizes = []
    for folded in (False, True):
        net = model()
        tersor.compress(net, ratio=4)
        if folded:
            tersor.fold_normalization(net, IMAGES)
        sizes.append(tersor.save(net, tmp_path / "m.tersor").nbytes)
    assert sizes[1] < sizes[0] - 30  # two of four numbers of 40 channels, and a bias
    back = tersor.load(tmp_path / "m.tersor", model())
    torch.testing.assert_close(back(IMAGES), net(IMAGES), rtol=0.02, atol=0.02)
    before = [t.clone() for t in back.state_dict().values()]
    tersor.fold_normalization(back, IMAGES)  # again: nothing is left to do
    for a, b in zip(before, back.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_layers_without_parameters_or_statistics_stay():
    net = nn.Sequential(
        nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, track_running_stats=False)
    )
    assert tersor.fold_normalization(net, IMAGES) == []


def test_a_bias_with_another_use_is_found():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            nn.init.constant_(self.conv.bias, 1.0)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    net = Branch().eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(InputError, match="computes something else with its normalisation folded"):
        tersor.fold_normalization(net, IMAGES)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert net.conv.bias.requires_grad


def test_inputs_that_do_not_fit():
    with pytest.raises(InputError, match="it is called with the inputs given"):
        tersor.fold_normalization(model(), IMAGES[:, :2])
