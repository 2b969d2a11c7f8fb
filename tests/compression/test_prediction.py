# SPDX-License-Identifier: Apache-2.0
"""What is said of models that went wrong."""

import warnings

import pytest
import torch
from samples import generator
from torch import nn

import tersor
from tersor.compression.prediction import unseen
from tersor.storage import label

INPUTS = torch.randn(512, 64, generator=generator())


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()


def compressed(model, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = tersor.compress(model, **options)
    found = tuple(str(w.message) for w in caught if w.category is tersor.QualityWarning)
    return report, found


def test_python_warnings_are_those_of_the_report():
    report, found = compressed(net(), ratio=30)
    assert found == report.warnings and len(found) == 1
    assert "predicted, without data" in found[0]
    report, found = compressed(net(), ratio=5)
    assert found == report.warnings == () and 0 < report.predicted_error < 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_weights_that_vanish(dtype):
    model = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(64, 64)}).to(dtype)
    with torch.no_grad():
        model["large"].weight.copy_(torch.randn(64, 64, generator=generator()))
        model["small"].weight.copy_(1e-4 * torch.randn(64, 64, generator=generator(1)))
    report, found = compressed(model, ratio=6)
    assert {t.name: t.rank for t in report.factored}["small.weight"] == 0
    assert "1 weight got no bits and became zero: 'small.weight'" in found[0]


def test_weights_that_were_zero_have_not_vanished():
    model = net()
    nn.init.zeros_(model[2].weight)
    report, found = compressed(model, ratio=8)
    assert report.factored[1].rank == 0 and found == ()


@pytest.mark.parametrize("ratio", [6, 12, 20])
def test_predictions_from_calibration_come_true(ratio):
    model, dense = net(), net()
    report, _ = compressed(model, ratio=ratio, calibration=tersor.calibrate(model, [INPUTS]))
    fresh = torch.randn(512, 64, generator=generator(9))
    with torch.no_grad():
        error = float((model(fresh) - dense(fresh)).norm() / dense(fresh).norm())
    assert report.predicted_error == pytest.approx(error, rel=0.4)
    assert bool(report.warnings) == (report.predicted_error >= 0.25)


def test_inputs_that_calibration_never_saw():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.silent = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x):
            return self.used(x) + self.silent(torch.zeros_like(x))

    model = Branches()
    calibration = tersor.calibrate(model, [INPUTS])
    idle, silent = sorted(unseen(calibration))
    assert "'idle.weight' matter: no input reached it" in idle and "--keep" in idle
    assert "'silent.weight' matter: all its inputs were zero" in silent
    report, found = compressed(model, ratio=8, calibration=calibration)
    assert {idle, silent} <= {*found} and found == report.warnings


def test_what_an_evaluation_allows_is_not_warned_of():
    _, found = compressed(net(), max_drop=1, evaluate=lambda model: 0)
    assert found == ()


def test_measured_errors_are_in_the_file(tmp_path):
    model, path = net(), tmp_path / "m.tersor"
    compressed(model, ratio=10)
    for error in (0.0312, 0.5, 1e-9, 0, 1e200):
        text = label.output_error_text(error)
        assert len(text) == 8
        report = tersor.save(model, path, metadata={label.OUTPUT_ERROR: text})
        assert report.output_error == pytest.approx(min(error, 9e99), rel=0.01, abs=1e-99)
        assert tersor.inspect(path) == report
        assert bool(report.warnings) == (error >= 0.25)


@pytest.mark.parametrize(
    "text", ["", "nan", "-1.00e-02", "0.03", "1e999", "٣.00e-02", "3.12e-02\n"]
)
def test_other_texts_are_no_errors(tmp_path, text):
    report = tersor.save(net(), tmp_path / "m.tersor", metadata={label.OUTPUT_ERROR: text})
    assert report.output_error is None
