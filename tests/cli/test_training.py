# SPDX-License-Identifier: Apache-2.0
"""``tersor finetune``."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trainable import Net, compressed, data, dense
from typer.testing import CliRunner

import tersor
from tersor.cli import app

pytest.importorskip("accelerate", reason="fine-tuning needs its extra")

NET = """
from trainable import Net, data, loader

def make():
    return Net()

def batches():
    return loader()

def nothing():
    return 5

def plain():
    return Net(norm=False)
"""


def run(*arguments):
    return CliRunner().invoke(app, ["finetune", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, its teacher, archives of images, and a module that makes the model."""
    folder = tmp_path_factory.mktemp("files")
    teacher = dense()
    save_file(teacher.state_dict(), folder / "teacher.safetensors")
    tersor.save(compressed(teacher, 15), folder / "model.tersor")
    (folder / "toynet.py").write_text(NET)
    for name, seed in (("train", 0), ("test", 1)):
        images, labels = data(64, seed)
        np.savez(folder / f"{name}.npz", x=((images + 4) * 25).byte().numpy(), y=labels.numpy())
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


COMMON = ("model.tersor", "-o", "out.tersor", "--model", "toynet:make")
SCALE = ("--mean", "0.39", "--std", "0.1", "--batch-size", "16")


def test_from_archives_with_a_teacher(folder):
    arguments = [
        "--data",
        "train.npz",
        "--validate",
        "test.npz",
        "--teacher",
        "teacher.safetensors",
    ]
    result = run(*COMMON, *SCALE, *arguments, "--epochs", 2, "--log", "log.json")
    assert result.exit_code == 0, result.stderr
    size = (folder / "out.tersor").stat().st_size
    assert f"wrote out.tersor: {size} bytes, accuracy" in result.stdout
    assert size <= (folder / "model.tersor").stat().st_size
    assert not (folder / "out.tersor.checkpoint").exists()
    log = json.loads((folder / "log.json").read_text())
    assert [h["epoch"] for h in log["history"]] == [1, 2] and log["nbytes"] == size


def test_a_teacher_of_another_architecture(folder):
    save_file(Net(norm=False).state_dict(), "other.safetensors")
    common = (*COMMON, "--data", "toynet:batches", "--epochs", 1, "--log", "log.json")
    losses = []
    for teacher in ((), ("--teacher-model", "toynet:plain", "--teacher", "other.safetensors")):
        result = run(*common, *teacher)
        assert result.exit_code == 0, result.stderr
        losses += [json.loads((folder / "log.json").read_text())["history"][0]["loss"]]
    assert losses[0] != losses[1]
    assert run(*common, "--teacher-model", "toynet:plain").exit_code == 0  # as it is made


def test_a_teacher_in_a_training_checkpoint(folder):
    wrapped = {f"net.{name}": value for name, value in dense().state_dict().items()}
    other = {name: value + 1 for name, value in wrapped.items()}
    torch.save({"student": other, "ema": wrapped}, "training.ckpt")
    common = (*COMMON, "--data", "toynet:batches", "--epochs", 1, "--log", "log.json")
    named = ("--teacher-key", "ema", "--teacher-prefix", "net.")
    losses = []
    for teacher in (("training.ckpt", *named), ("teacher.safetensors",)):
        result = run(*common, "--teacher", *teacher)
        assert result.exit_code == 0, result.stderr
        losses += [json.loads((folder / "log.json").read_text())["history"][0]["loss"]]
    assert losses[0] == losses[1]
    result = run(*common, "--teacher", "training.ckpt")
    assert result.exit_code == 2 and "'ema'" in result.stderr


def test_from_a_callable_to_a_smaller_size(folder):
    result = run(*COMMON, "--data", "toynet:batches", "--epochs", 1, "--target-size", "1500")
    assert result.exit_code == 0, result.stderr
    assert (folder / "out.tersor").stat().st_size <= 1500


def test_what_the_file_says_of_itself_is_said_again_within_the_size(folder):
    said = {"licence": "MIT", "source": "https://example.org"}
    tersor.save(compressed(dense(), 15), "model.tersor", metadata=said, content_hash=True)
    result = run(*COMMON, "--data", "toynet:batches", "--epochs", 1, "--target-size", "1500")
    assert result.exit_code == 0, result.stderr
    size = (folder / "out.tersor").stat().st_size
    assert size <= 1500 and f"wrote out.tersor: {size} bytes" in result.stdout
    with tersor.open("out.tersor") as file:
        assert file.metadata == said and file.content_hash
    result = run(*COMMON, "--data", "toynet:batches", "--target-size", "60")
    assert result.exit_code == 2 and "the metadata of model.tersor alone" in result.stderr


def test_it_goes_on_from_the_checkpoint(folder, monkeypatch):
    from tersor.training import loop

    finish = loop.Run._finish_epoch

    def stop(self):
        if self.progress.epoch == 1:
            raise KeyboardInterrupt
        finish(self)

    arguments = (*COMMON, "--data", "toynet:batches", "--epochs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_finish_epoch", stop)
        result = run(*arguments)
    assert result.exit_code == 130 and result.stderr == (
        "what is done is in out.tersor.checkpoint: to go on, run the same command again\n"
        "interrupted; earlier files are as they were\n"
    )
    assert (folder / "out.tersor.checkpoint").exists() and not (folder / "out.tersor").exists()
    assert run(*arguments).exit_code == 0
    stopped = (folder / "out.tersor").read_bytes()
    assert run(*arguments).exit_code == 0
    assert (folder / "out.tersor").read_bytes() == stopped


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--data none", "none is no data: an .npz archive"),
        ("--data toynet:nothing", "--data toynet:nothing returned a int; an iterable of batches"),
        ("--data toynet:missing", "there is no 'missing' in"),
        ("--data train.npz --std 0", "--std must not be 0"),
        ("--data train.npz --mean a,b", "--mean 'a,b' is not a number"),
        ("--data train.npz --batch-size 100", "64 images, fewer than a batch of 100"),
        ("--data train.npz --teacher none.pt", "no such file: none.pt"),
        ("--data train.npz --teacher-model toynet:nothing", "-model toynet:nothing returned a int"),
        (
            "--data train.npz --teacher-model toynet:plain --teacher teacher.safetensors",
            "does not fit a Net: it lacks 2.weight",
        ),
        ("--data toynet:batches --target-size 10", "10 bytes are too few"),
        ("--data toynet:batches --epochs 0", "epochs must be a whole number"),
        ("--data toynet:batches --mixed-precision fp64", "unknown mixed precision 'fp64'"),
        ("--data toynet:batches --log none/log.json", "the folder none does not exist"),
    ],
)
def test_errors_of_users(folder, arguments, message):
    before = {p.name for p in folder.iterdir()} | {"__pycache__"}
    result = run(*COMMON, *arguments.split())
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())
    assert {p.name for p in folder.iterdir()} | {"__pycache__"} == before


def test_models_that_do_not_fit(folder):
    result = run("model.tersor", "-o", "model.tersor", "--model", "toynet:make", "--data", "x.npz")
    assert result.exit_code == 2 and "is the input itself" in result.stderr
    result = run("model.tersor", "-o", "o.tersor", "--model", "toynet:nothing", "--data", "x.npz")
    assert result.exit_code == 2 and "an nn.Module is needed" in result.stderr


def test_the_file_is_that_of_the_best_epoch(folder):
    result = run(
        *COMMON,
        *SCALE,
        "--data",
        "train.npz",
        "--validate",
        "test.npz",
        "--epochs",
        3,
        "--log",
        "log.json",
    )
    assert result.exit_code == 0, result.stderr
    log = json.loads((folder / "log.json").read_text())
    assert log["value"] == max(h["value"] for h in log["history"])
    from trainable import Net

    model = tersor.load("out.tersor", Net().eval())
    with np.load("test.npz") as test:
        x = (torch.from_numpy(test["x"]).float() / 255 - 0.39) / 0.1
        hits = model(x).argmax(1) == torch.from_numpy(test["y"])
    assert 100 * float(hits.double().mean()) == pytest.approx(log["value"])
