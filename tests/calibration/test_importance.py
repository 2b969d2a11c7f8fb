# SPDX-License-Identifier: Apache-2.0
"""Which weights matter, by trying."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import tersor


class Branches(nn.Module):
    """The output is nearly all of the first branch; the last one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet, self.idle = (nn.Linear(32, 32, bias=False) for _ in range(3))
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.idle(x)
        y = self.loud(x) + 0.1 * self.quiet(x)
        return self.norm(y), {"again": y}


def model() -> Branches:
    torch.manual_seed(0)
    made = Branches()
    made(torch.randn(500, 32))
    return made.eval()


def test_weights_count_as_their_errors_reach_the_output():
    found = tersor.calibrate(model(), [torch.randn(200, 32)]).importance
    assert found["quiet.weight"] == pytest.approx(0.01 * found["loud.weight"], rel=0.3)
    assert 0 < found["idle.weight"] < 1e-6 * found["loud.weight"]


def test_importance_is_the_error_of_the_output():
    dense, x = model(), torch.randn(400, 32)
    calibration = tersor.calibrate(dense, [x], output=lambda output, batch: output[1])
    changed, error = copy.deepcopy(dense), 0.01 * torch.randn(32, 32)
    with torch.no_grad():
        changed.loud.weight += error
        wanted, now = dense(x)[1]["again"], changed(x)[1]["again"]
    metric = calibration.metric("loud.weight")
    squared = float(((error @ metric) * error).sum())
    share = float((now - wanted).square().sum() / wanted.square().sum())
    assert calibration.importance["loud.weight"] * squared == pytest.approx(share, rel=0.15)


def test_weights_of_which_little_noise_spoils_the_output():
    class Waves(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(100 * super().forward(x))

    torch.manual_seed(0)
    dense, x = Waves(nn.Linear(32, 32)), torch.randn(400, 32)
    calibration = tersor.calibrate(dense, [x])
    changed, error = copy.deepcopy(dense), 3e-4 * torch.randn(32, 32)
    with torch.no_grad():
        changed[0].weight += error
        wanted, now = dense(x), changed(x)
    squared = float(((error @ calibration.metric("0.weight")) * error).sum())
    share = float((now - wanted).square().sum() / wanted.square().sum())
    assert 0.01 < share < 0.2
    assert calibration.importance["0.weight"] * squared == pytest.approx(share, rel=0.3)


@pytest.mark.parametrize("folded", [False, True])
def test_the_model_is_as_before(folded):
    dense = model()
    if folded:
        tersor.fold_normalization(dense, torch.randn(9, 32))
    dense.train()
    before = copy.deepcopy(dense.state_dict())
    pointers = [p.data_ptr() for p in dense.parameters()]
    tersor.calibrate(dense, [torch.randn(50, 32)])
    assert all(torch.equal(t, before[n]) for n, t in dense.state_dict().items())
    assert dense.training and pointers == [p.data_ptr() for p in dense.parameters()]


def test_bytes_go_where_they_matter():
    dense, x = model(), torch.randn(500, 32)
    calibration = tersor.calibrate(dense, [x])
    compressed = copy.deepcopy(dense)
    tersor.compress(compressed, ratio=5, calibration=calibration)
    sizes = {n: f.to_factors().nbytes for n, f in factors(compressed).items()}
    bits = math.log2(math.sqrt(100))  # a hundred times as important: a tenth of the step
    assert sizes["loud"] - sizes["quiet"] == pytest.approx(32 * 32 * bits / 8, rel=0.2)
    assert sizes["idle"] < sizes["quiet"] / 2


def factors(model: nn.Module) -> dict[str, nn.Module]:
    return {n.split(".")[0]: m for n, m in model.named_modules() if hasattr(m, "to_factors")}


def test_embeddings_have_an_importance_too():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 16))
    found = tersor.calibrate(network, [torch.randint(0, 100, (64, 5))])
    assert found.importance.keys() == {"0.weight", "1.weight"} != found.moments.keys()


def test_outputs_that_cannot_be_are_explained():
    with pytest.raises(tersor.InputError, match="the function 'output' raised KeyError"):
        tersor.calibrate(model(), [torch.randn(9, 32)], output=lambda output, batch: {}["none"])


def test_outputs_without_tensors_say_nothing_of_importance():
    with pytest.warns(UserWarning, match="'output' of tersor.calibrate"):
        found = tersor.calibrate(model(), [torch.randn(99, 32)], output=lambda *_: "nothing")
    assert not found.importance and found.moments


def test_outputs_that_are_not_finite_do_not_make_importance_so():
    found = tersor.calibrate(model(), [torch.randn(99, 32)], output=lambda y, _: y[0] * 3e38)
    assert all(0 < value < float("inf") for value in found.importance.values())
