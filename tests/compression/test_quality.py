# SPDX-License-Identifier: Apache-2.0
"""The smallest file that keeps the quality, and evaluations of users."""

import math

import numpy as np
import pytest
import torch
from samples import make_net
from torch import nn

import tersor
from tersor.compression.quality import _CLOSE, MOST_EVALUATIONS, Quality, evaluated, smallest
from tersor.errors import BudgetError, InputError
from tersor.nn import FactoredWeight

SOURCE_BYTES = 1_000_000


class Files:
    """A compressor whose archives are their sizes, of a quality that is known."""

    def __init__(self, drop, least=10_000):
        self.drop, self.least, self.measured = drop, least, []

    def within(self, target):
        assert target >= self.least
        return target

    def mended(self, target, mend):
        return mend(self.within(target))

    def measure(self, archive):
        self.measured.append(archive)
        return 90.0 if archive is None else 90.0 - self.drop(archive)

    def smallest(self, max_drop):
        return smallest(self, SOURCE_BYTES, Quality(max_drop, self.measure))


LAWS = {
    "square": lambda n: 2 * (60_000 / n) ** 2,
    "steep": lambda n: (100_000 / n) ** 6,
    "flat": lambda n: 30_000**0.5 / n**0.5,
    "cliff": lambda n: 70 / (1 + math.exp((n - 120_000) / 8000)),
    "late": lambda n: 3 * (200_000 / n) ** 4,
    "early": lambda n: 0.5 * (20_000 / n) ** 3,
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("max_drop", [0.3, 1.0, 2.5])
def test_the_smallest_size_is_found_in_a_few_evaluations(law, max_drop):
    files = Files(LAWS[law])
    found = files.smallest(max_drop)
    assert files.measured[0] is None and len(files.measured) <= MOST_EVALUATIONS
    assert found in files.measured and files.drop(found) <= max_drop
    sizes = np.geomspace(files.least, SOURCE_BYTES / 2, 2000)
    best = min(s for s in sizes if files.drop(s) <= max_drop)
    assert found <= 1.25 * best
    assert found == min(s for s in files.measured[1:] if files.drop(s) <= max_drop)


def test_few_sizes_lie_between_the_best_and_one_that_drops_too_much():
    files = Files(LAWS["square"])
    found = files.smallest(1.0)
    worse = max(s for s in files.measured[1:] if files.drop(s) > 1.0)
    assert math.log(found / worse) < 2 * _CLOSE


def test_a_model_that_bears_everything_becomes_as_small_as_can_be():
    files = Files(lambda n: -0.1, least=40_000)
    assert files.smallest(0) == files.least


def test_noise_does_not_let_an_unmeasured_file_through():
    draw = np.random.default_rng(0)
    noise = {}

    def drop(n):
        return LAWS["square"](n) + noise.setdefault(n, draw.normal(0, 0.5))

    files = Files(drop)
    assert files.drop(files.smallest(1.0)) <= 1.0


def test_what_no_size_keeps_is_an_error_that_says_what_was_measured():
    files = Files(lambda n: 5.0)
    with pytest.raises(
        BudgetError,
        match=r"up to 500.0 kB keeps .* drops by 5, from 90 to 85, and only 1 is allowed",
    ):
        files.smallest(1.0)
    assert files.measured[-1] == SOURCE_BYTES / 2 and len(files.measured) <= MOST_EVALUATIONS


def test_inputs_that_cannot_become_smaller():
    with pytest.raises(BudgetError, match=r"possible file has 2000.0 kB, the input only 1000.0"):
        Files(lambda n: 0.0, least=2_000_000).smallest(1.0)


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf, "0.5", None])
def test_drops_that_are_no_numbers(max_drop):
    with pytest.raises(InputError, match="the drop must be a number from 0 on, got"):
        Quality(max_drop, len)


@pytest.mark.parametrize(
    "value", [92, 92.0, np.float32(92), np.int64(92), np.array([92]), torch.tensor([[92.0]])]
)
def test_numbers_of_all_kinds(value):
    model = nn.Linear(2, 2).train()
    number = evaluated(lambda m: value, model, "it")
    assert number == 92.0 and type(number) is float and not model.training


@pytest.mark.parametrize(
    "value, message",
    [
        (math.nan, "it returned nan; it is called with the model, and must return a finite"),
        (torch.tensor(math.inf), "it returned inf"),
        (torch.ones(2), r"it returned a Tensor of shape \(2,\)"),
        (np.ones((0, 1)), r"it returned a ndarray of shape \(0, 1\)"),
        (True, "it returned a bool"),
        (torch.tensor(1j), "it returned a Tensor"),
        ("92", "it returned a str"),
        (None, "it returned a NoneType"),
        ([92.0], "it returned a list"),
    ],
)
def test_what_is_no_number(value, message):
    with pytest.raises(InputError, match=message):
        evaluated(lambda m: value, nn.Linear(2, 2), "it")


def test_functions_that_raise():
    def fails(model):
        raise SystemExit(3)

    with pytest.raises(InputError, match="it raised SystemExit: 3; it is called with the model"):
        evaluated(fails, nn.Linear(2, 2), "it")


def agreement(reference):
    """Quality: 100 less the error of the output on some images, in percent of the output."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = reference(images)
    return lambda m: 100 * (1 - float((m(images).detach() - wanted).norm() / wanted.norm()))


def test_a_model_in_memory(tmp_path):
    model, seen = make_net().train(), []
    measure = agreement(make_net())

    def evaluate(trial):
        assert trial is not model and not trial.training
        seen.append(measure(trial))
        return seen[-1]

    report = tersor.compress(model, max_drop=30, evaluate=evaluate)
    assert model.training and isinstance(model.conv.weight_factors, FactoredWeight)
    assert seen[0] == pytest.approx(100) and len(seen) <= MOST_EVALUATIONS
    assert report.ratio > 2 and measure(model.eval()) >= 70
    assert measure(model) in [pytest.approx(s) for s in seen[1:]]
    assert tersor.save(model, tmp_path / "m.tersor").nbytes == report.nbytes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_drop": 1}, "are needed together; got 1 and None"),
        ({"evaluate": len}, "are needed together; got None and <built-in"),
        ({"max_drop": 1, "evaluate": 3}, "are needed together; got 1 and 3"),
        ({"max_drop": -1, "evaluate": len}, "a number from 0 on, got -1"),
        ({"max_drop": 1, "evaluate": len, "ratio": 3}, "a largest drop decides the size"),
        ({"max_drop": 1, "evaluate": str}, "evaluate returned a str"),
        ({"max_drop": 1, "evaluate": len}, "evaluate raised TypeError"),
    ],
)
def test_models_stay_as_they_are_after_errors(options, message):
    model = make_net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        tersor.compress(model, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
