# SPDX-License-Identifier: Apache-2.0
"""One call that uses data: calibrated, folded, reconstructed, measured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tersor
from tersor.compression import post_training
from tersor.errors import BudgetError, InputError
from tersor.nn import FactoredWeight, state


def convolutional() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    x = nn.functional.avg_pool2d(torch.randn(240, 3, 18, 18), 3, stride=1)
    model(x)  # so that normalisation has statistics
    return model.eval(), x


def recurrent() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    return Last().eval(), torch.randn(240, 12, 16)


def transformer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers).eval(), torch.randn(240, 6, 32)


MODELS = {"convolutional": convolutional, "recurrent": recurrent, "transformer": transformer}
LABELS = torch.zeros(240, dtype=torch.long)


def error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean() / dense(x).square().mean())


@pytest.mark.parametrize("kind", MODELS)
def test_one_call_is_better_than_none(kind, tmp_path):
    dense, x = MODELS[kind]()
    new = x[torch.randperm(len(x))] + 0.1 * torch.randn_like(x)
    errors = []
    for data in (None, DataLoader(TensorDataset(x, LABELS), 40)):
        model = copy.deepcopy(dense)
        report = tersor.compress(model, ratio=10, data=data)
        written = tersor.save(model, tmp_path / "m.tersor")
        assert written.nbytes <= report.source_bytes / 10
        loaded = tersor.load(tmp_path / "m.tersor", MODELS[kind]()[0])
        assert error(loaded, model, new) < 1e-9
        errors.append(error(loaded, dense, new))
    assert errors[1] < 0.8 * errors[0]
    assert report.output_error is not None and report.calibrated
    assert 0.5 < report.output_error**2 / error(model, dense, x[-30:]) < 2


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_statistics_that_cannot_be_folded_fit_too(effort, tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 96, 3), nn.BatchNorm2d(96)
            self.head = nn.Linear(96, 10)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            return self.head((self.norm(made).relu() + made).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(64, 3, 8, 8)
    model.train()(x)
    model.eval()
    for ratio in (4, 6, 8):
        made = copy.deepcopy(model)
        report = tersor.compress(made, ratio=ratio, data=[x], effort=effort)
        size = tersor.save(made, tmp_path / "m.tersor").nbytes
        assert size <= report.source_bytes / ratio and report.nbytes == size


def test_efforts_are_ordered():
    dense, x = convolutional()
    errors = []
    for effort in ("fast", "balanced", "best"):
        model = copy.deepcopy(dense)
        report = tersor.compress(model, ratio=16, data=[*x.split(40)], effort=effort)
        errors.append(report.output_error)
    assert errors[0] > 1.05 * errors[1] >= 1.05 * errors[2]


def test_it_is_the_steps_in_order():
    dense, x = convolutional()
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=12, data=[x])
    used, _ = tersor.held_out([x])
    by_steps, reference = copy.deepcopy(dense), copy.deepcopy(dense)
    for network in (by_steps, reference):
        tersor.fold_normalization(network, x)
    tersor.compress(by_steps, ratio=12, calibration=tersor.calibrate(reference, used))
    tersor.reconstruct(by_steps, reference, used)
    with torch.no_grad():
        assert torch.equal(model(x), by_steps(x))


def test_normalisation_is_folded_only_if_that_changes_nothing():
    class Shared(nn.Module):  # the bias of a convolution that has two readers cannot move
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)

        def forward(self, x: Tensor) -> Tensor:
            made = self.conv(x)
            return self.norm(made) + made

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(64, 3, 8, 8)
    model.norm.running_var.fill_(2.0)
    tersor.compress(model, ratio=4, data=[x])
    assert model.conv.bias.requires_grad and bool(model.norm.running_var.mean() > 1.5)
    other, x = convolutional()
    tersor.compress(other, ratio=8, data=[x])
    assert not other[0].bias.requires_grad and not other[0].bias.any()
    assert other[-1].bias.requires_grad and other[1].weight.requires_grad


@pytest.mark.parametrize("break_at", ["calibrate", "reconstruct", "output_error"])
def test_after_an_error_the_model_is_as_it_was(break_at, monkeypatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise InputError("no")

    model, x = convolutional()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(post_training, break_at, fails)
    with pytest.raises(InputError, match="no"):
        tersor.compress(model, ratio=8, data=[x])
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_reconstructed_is_said(monkeypatch):
    def too_large(*args: object) -> None:
        raise BudgetError("too few bytes")

    model, x = convolutional()
    monkeypatch.setattr(post_training, "reconstruct", too_large)
    with pytest.warns(tersor.QualityWarning, match="not reconstructed: too few bytes"):
        tersor.compress(model, ratio=8, data=[x])
    assert any(isinstance(value, FactoredWeight) for value in state(model).values())


def test_with_the_largest_allowed_drop_what_is_measured_is_what_is_kept():
    dense, x = convolutional()
    model, seen = copy.deepcopy(dense), []

    def evaluate(trial: nn.Module) -> float:
        seen.append(-100 * error(trial, dense, x) ** 0.5)
        return seen[-1]

    tersor.compress(model, max_drop=20, evaluate=evaluate, data=[x])
    assert -100 * error(model, dense, x) ** 0.5 == pytest.approx(min(v for v in seen if v >= -20))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": [torch.randn(8, 3, 16, 16)], "effort": "most"}, "no effort 'most'; give one of"),
        ({"data": []}, "the loader is empty"),
        ({"data": torch.randn(8, 3, 16, 16)}, "give a list of batches"),
        ({"data": [torch.randn(8, 5, 16, 16)]}, "called with batch 1"),
        ({"data": ["text"]}, "a batch is a str"),
        (
            {
                "data": [torch.randn(8, 3, 16, 16)],
                "calibration": tersor.Calibration({}, 1, {}),
            },
            "are both given",
        ),
    ],
)
def test_bad_input(options, message):
    model, _ = convolutional()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        tersor.compress(model, ratio=8, **options)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
