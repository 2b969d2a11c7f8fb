# SPDX-License-Identifier: Apache-2.0
"""Commands that evaluate a model of the user's: curve, and compress with --max-drop."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import generator
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.compression.attempts import Attempts
from tersor.errors import BudgetError

CODE = """
import torch
from torch import nn
from safetensors.torch import load_file

calls = []

def make(): return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))

def score(model):
    calls.append(1)
    true = load_file("model.safetensors")
    errors = [(p.detach() - true[n]).square().sum() for n, p in model.named_parameters()]
    assert not model.training and not torch.is_grad_enabled()
    return 100 - 2 * float(sum(errors)) ** 0.5

def batches():
    draw = torch.Generator().manual_seed(2)
    rank = torch.randn(8, 64, generator=draw)
    return [torch.randn(64, 8, generator=draw) @ rank for _ in range(9)]

def as_tensor(model): return torch.tensor([score(model)])
def nan(model): return float("nan")
def infinite(model): return torch.tensor(float("-inf"))
def vector(model): return torch.ones(2)
def text(model): return "92 %"
def nothing(model): return None
def boolean(model): return True
def fails(model): raise KeyError("label")
def without(): return 5

class Classes(nn.Sequential):
    def forward(self, x): return super().forward(x).argmax(1)

def classes(): return Classes(*make())
def falls(model): return 50.0 if len(calls) or calls.append(1) else 100.0
number = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "quality_code", raising=False)
    draw = generator(1)
    state = {f"{i}.weight": torch.randn(64, 64, generator=draw) for i in (0, 2)}
    state |= {f"{i}.bias": torch.randn(64, generator=draw).bfloat16().float() for i in (0, 2)}
    save_file(state, "model.safetensors")
    Path("quality_code.py").write_text(CODE)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def names(folder):
    return {p.name for p in folder.iterdir()} - {"__pycache__"}


MODEL = ("--model", "quality_code:make")
EVAL = (*MODEL, "--eval", "quality_code:score")
BEFORE = {"model.safetensors", "quality_code.py"}


def test_a_curve_without_evaluation(folder):
    result = run("curve", "model.safetensors", "-o", "curve.json", "--points", 5)
    assert result.exit_code == 0, result.stderr
    data = json.loads(Path("curve.json").read_text())
    assert data["dense"] is data["metric"] is None
    assert data["dense_bytes"] == Path("model.safetensors").stat().st_size
    assert [p["ratio"] for p in data["points"]][-1] == pytest.approx(4, rel=1e-2)
    assert all(p["predicted_drop"] is p["measured"] is None for p in data["points"])
    assert len(result.stdout.splitlines()) == 1 + 5 + 1
    assert names(folder) == BEFORE | {"curve.json"}


def test_a_curve_with_evaluation_goes_into_the_report(folder):
    pytest.importorskip("matplotlib", reason="pictures need the extra plot")
    options = ("-o", "curve.json", "--plot", "curve.png", *EVAL)
    result = run("curve", "model.safetensors", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("quality_code:score: ") == 5
    assert "quality_code:score: 100 dense\n" in result.stderr
    data = json.loads(Path("curve.json").read_text())
    assert (data["metric"], data["dense"], len(data["points"])) == ("score", 100, 16)
    measured = [p for p in data["points"] if p["measured"] is not None]
    assert len(measured) == 4
    for p in measured:
        assert p["predicted_drop"] == pytest.approx(100 - p["measured"], abs=1e-6)
    # What was measured is what compress gives at that size:
    size = measured[1]["bytes"]
    run("compress", "model.safetensors", "-o", "m.tersor", "--target-size", size)
    run("decompress", "m.tersor", "-o", "dense.safetensors")
    true, back = load_file("model.safetensors"), load_file("dense.safetensors")
    error = sum(float((true[n] - back[n]).square().sum()) for n in true)
    assert measured[1]["measured"] == pytest.approx(100 - 2 * error**0.5, rel=1e-4)
    assert run("report", "m.tersor", "-o", "r.html", "--curve", "curve.json").exit_code == 0
    assert "score" in Path("r.html").read_text()


def test_a_curve_with_bits_of_ones_own(folder):
    """It ends where that weight takes as much as the whole file may."""
    options = ("-o", "curve.json", "--points", 5, "--bits", "0.weight=4")
    result = run("curve", "model.safetensors", *options, *EVAL)
    assert result.exit_code == 0, result.stderr
    points = json.loads(Path("curve.json").read_text())["points"]
    assert points[0]["bytes"] > 0.98 * 64 * 64 * 4 / 8
    assert "there is no curve" in run("curve", "model.safetensors", "--keep", "0.*").stderr


def test_an_interrupted_curve_continues(folder, monkeypatch):
    command = ("curve", "model.safetensors", "-o", "curve.json", "--points", 6)
    assert run(*command).exit_code == 0
    expected, made, work = Path("curve.json").read_bytes(), [], Attempts._version
    Path("curve.json").unlink()

    def version(self, step, weight):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(weight)
        return work(self, step, weight)

    with monkeypatch.context() as patch:
        patch.setattr(Attempts, "_version", version)
        assert run(*command).exit_code == 130
    assert "curve.json.partial" in names(folder)
    result = run(*command)
    assert "note: continuing an interrupted run" in result.stderr
    assert Path("curve.json").read_bytes() == expected
    assert names(folder) == BEFORE | {"curve.json"}


EVALUATIONS = [
    ((*MODEL, "--eval", "quality_code:nan"), "quality_code:nan returned nan; it is called with"),
    ((*MODEL, "--eval", "quality_code:infinite"), "returned -inf; it is called with the model"),
    ((*MODEL, "--eval", "quality_code:vector"), "returned a Tensor of shape (2,); it is called"),
    ((*MODEL, "--eval", "quality_code:text"), "returned a str; it is called with the model"),
    ((*MODEL, "--eval", "quality_code:nothing"), "returned a NoneType"),
    ((*MODEL, "--eval", "quality_code:boolean"), "returned a bool"),
    ((*MODEL, "--eval", "quality_code:fails"), "quality_code:fails raised KeyError: 'label'"),
    ((*MODEL, "--eval", "quality_code:without"), "raised TypeError"),
    ((*MODEL, "--eval", "quality_code:number"), "is a int; a function or class is needed, which"),
    ((*MODEL, "--eval", "quality_code:none"), "there is no 'none' in"),
    ((*MODEL, "--eval", "score"), "--eval 'score' is not of the form module:callable"),
    (("--eval", "quality_code:score"), "--eval is given without --model"),
]


@pytest.mark.parametrize("options, message", EVALUATIONS)
@pytest.mark.parametrize("command", [("curve",), ("compress", "--max-drop", "0.5")], ids=" ".join)
def test_evaluations_that_cannot_be(folder, command, options, message):
    result = run(*command, "model.safetensors", "-o", "out", *options)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    # Once the function is mended, work goes on.
    kept = {"out.partial"} if "what is done is in out.partial: " in result.stderr else set()
    assert names(folder) == BEFORE | kept


@pytest.mark.parametrize(
    "options, message",
    [
        (("--points", "1"), "a curve has 2 points at least, got 1"),
        (("--plot", "curve.txt"), "curve.txt is no picture; give a name that ends in .png"),
        (("--plot", "none/curve.png"), "the folder none does not exist"),
        (("-o", "model.safetensors"), "is the input itself"),
        (MODEL, "--model is given without --data or --eval"),
        (("--keep", "head*"), "the pattern 'head*' matches none"),
    ],
)
def test_curves_that_cannot_be(folder, options, message):
    result = run("curve", "model.safetensors", *options)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert names(folder) == BEFORE


def test_the_smallest_file_that_drops_no_more(folder):
    command = ("compress", "model.safetensors", "-o", "m.tersor", "--max-drop", 20, *EVAL)
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    told = [line.split() for line in result.stderr.splitlines()]
    assert told[0] == ["quality_code:score:", "100", "dense"] and len(told) <= 6
    trials = {int(words[3]): float(words[1]) for words in told[1:]}
    size = Path("m.tersor").stat().st_size
    assert size == min(s for s, value in trials.items() if value >= 80)
    assert max(s for s, value in trials.items() if value < 80) < size
    run("decompress", "m.tersor", "-o", "dense.safetensors")
    true, back = load_file("model.safetensors"), load_file("dense.safetensors")
    error = sum(float((true[n] - back[n]).square().sum()) for n in true)
    assert trials[size] == pytest.approx(100 - 2 * error**0.5, rel=1e-4)
    assert names(folder) == BEFORE | {"m.tersor", "dense.safetensors"}


@pytest.mark.parametrize(
    "options, message",
    [
        (("--max-drop", "1"), "--max-drop is given without --eval; both are needed"),
        (("--ratio", "8", *EVAL), "--eval is given without --max-drop; both are needed"),
        (("--max-drop", "1", "--ratio", "8", *EVAL), "a largest drop decides the size; leave out"),
        (("--max-drop", "1", "--lossless", *EVAL), "lossless keeps every bit"),
        (("--max-drop", "-1", *EVAL), "the drop must be a number from 0 on, got -1.0"),
        (("--max-drop", "nan", *EVAL), "the drop must be a number from 0 on, got nan"),
        (
            ("--max-drop", "1", *MODEL, "--eval", "quality_code:falls"),
            "the evaluation drops by 50, from 100 to 50, and only 1 is allowed; allow more",
        ),
    ],
)
def test_drops_that_cannot_be(folder, options, message):
    result = run("compress", "model.safetensors", "-o", "m.tersor", *options)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert names(folder) == BEFORE


def test_inspect_tells_how_a_model_would_run(folder):
    run("compress", "model.safetensors", "-o", "m.tersor", "--ratio", 8)
    code = ["--model", "quality_code:make"]
    shown = run("inspect", "m.tersor", *code)
    assert shown.exit_code == 0 and "For inference on this machine" in shown.stdout
    least = 2 * 64 * 64 * 2  # bytes: half of what is dense
    data = json.loads(run("inspect", "m.tersor", "--json", *code, "--memory", least).stdout)
    assert [form["name"] for form in data["inference"]] == ["0.weight", "2.weight"]
    assert sum(form["nbytes"] for form in data["inference"]) <= least
    assert {form["dense_bytes"] for form in data["inference"]} == {4 * 64 * 64}
    assert "inference" not in json.loads(run("inspect", "m.tersor", "--json").stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "1MB"], "--memory needs --model"),
        (["--model", "quality_code:without"], "returned a int"),
        (["--model", "quality_code:make", "--memory", "10"], "at least"),
    ],
)
def test_inspect_refuses(folder, options, message):
    run("compress", "model.safetensors", "-o", "m.tersor", "--ratio", 8)
    result = run("inspect", "m.tersor", *options)
    assert result.exit_code == 2 and message in result.output


CALIBRATED = ("--data", "quality_code:batches")
OPTIONS = [
    ("--ratio", "8"),
    ("--target-size", "3kB"),
    ("--bits-per-weight", "16", "--keep", "0.*"),
    ("--ratio", "8", "--bits", "0.*=1"),
    ("--ratio", "8", "--lookup", "*"),
    ("--ratio", "8", *MODEL, *CALIBRATED),
    ("--max-drop", "8", *EVAL),
    ("--max-drop", "8", *EVAL, *CALIBRATED),
    ("--max-drop", "8", *EVAL, *CALIBRATED, "--lookup", "0.*"),
    ("--lossless",),
]


def test_an_error_of_the_output_that_cannot_be_measured_is_no_failure(folder):
    """The model returns numbers of classes only."""
    model = ("--model", "quality_code:classes", *CALIBRATED)
    result = run("compress", "model.safetensors", "-o", "m.tersor", "--ratio", 8, *model)
    assert result.exit_code == 0, result.stderr
    assert "note: the error of the output is not known: " in result.stderr
    with tersor.open("m.tersor") as file:
        assert file.metadata == {}


def test_layers_that_would_not_fit_are_not_reconstructed(folder, monkeypatch):
    def too_large(*_):
        raise BudgetError("9 bytes are too few")

    monkeypatch.setattr("tersor.compression.post_training.reconstruct", too_large)
    result = run("compress", "model.safetensors", "-o", "m.tersor", *OPTIONS[5])
    assert result.exit_code == 0 and Path("m.tersor").exists()
    assert "note: layers are not reconstructed: 9 bytes are too few" in result.stderr


SAID = ("--metadata", "licence=MIT", "--content-hash")
SIZES = [(options, ()) for options in OPTIONS] + [(OPTIONS[i], SAID) for i in (0, 6, -1)]


@pytest.mark.slow
@pytest.mark.parametrize("options, said", SIZES, ids=" ".join)
def test_sizes_that_are_told_are_those_of_the_file(folder, options, said):
    result = run("compress", "model.safetensors", "-o", "m.tersor", *options, *said)
    assert result.exit_code == 0, result.stderr
    size = Path("m.tersor").stat().st_size
    assert f"({size} bytes)" in result.stdout or f"{size} bytes" in result.stdout
    told = [line.split() for line in result.stderr.splitlines() if " at " in line]
    trials = {int(words[3]): float(words[1]) for words in told}
    assert ("--max-drop" in options) == bool(trials)
    if trials:  # the smallest of those that are good enough, measured as it was written
        assert size == min(s for s, value in trials.items() if value >= 92)
        run("decompress", "m.tersor", "-o", "dense.safetensors")
        true, back = load_file("model.safetensors"), load_file("dense.safetensors")
        error = sum(float((true[n] - back[n]).square().sum()) for n in true)
        assert trials[size] == pytest.approx(100 - 2 * error**0.5, rel=1e-4)


@pytest.mark.slow
def test_layers_are_reconstructed_once_for_each_trial(folder, monkeypatch):
    from tersor.compression import post_training

    made, work = [], post_training.reconstruct
    monkeypatch.setattr(post_training, "reconstruct", lambda *a: made.append(a) or work(*a))
    options = ("--max-drop", "8", *EVAL, *CALIBRATED)
    result = run("compress", "model.safetensors", "-o", "m.tersor", *options)
    assert result.stderr.count(" bytes\n") == len(made) > 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--ratio", "8", *MODEL), ("--max-drop", "8", *EVAL)])
def test_the_error_of_the_output_on_samples_held_out_is_said(folder, options):
    result = run("compress", "model.safetensors", "-o", "m.tersor", *options, *CALIBRATED)
    (line,) = (li for li in result.stdout.splitlines() if li.startswith("outputs differ by "))
    import quality_code

    dense, model = quality_code.make(), quality_code.make()
    dense.load_state_dict(load_file("model.safetensors"))
    tersor.load("m.tersor", model)
    error = tersor.output_error(model, dense, quality_code.batches()[7:8])
    assert float(line.split()[3]) == pytest.approx(100 * error**0.5, rel=0.05) and 0 < error < 1
