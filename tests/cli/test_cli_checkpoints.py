# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as people have them, at the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import generator, same
from typer.testing import CliRunner

from tersor.cli import app


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def weights(seed=0):
    draw = generator(seed)
    return {
        "fc.weight": torch.randn(64, 80, generator=draw) * 0.1,
        "fc.bias": torch.randn(64, generator=draw),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {f"model.{name}": value for name, value in weights().items()}
    optimizer = {"state": {i: {"m": value * 2} for i, value in enumerate(state.values())}}
    optimizer = {"state": optimizer["state"] | {9: torch.ones(10_000)}, "param_groups": []}
    ema = {name: value + 1 for name, value in state.items()}
    torch.save({"net": state, "ema": ema, "optimizer": optimizer}, "training.ckpt")
    torch.save(weights(), "plain.pt")
    return tmp_path


def compressed(*options, model="training.ckpt"):
    return run("compress", model, "-o", "m.tersor", *options)


def test_the_key_is_asked_for_and_taken(folder):
    code, _, error = compressed("--ratio", 8)
    assert code == 2 and "'net' (2 tensors" in error and "'ema' (2 tensors" in error
    assert not (folder / "m.tersor").exists()
    chosen = ("--key", "net", "--prefix", "model.")
    assert compressed("--ratio", 8, *chosen)[0] == 0
    assert run("decompress", "m.tersor", "-o", "dense.safetensors")[0] == 0
    assert list(load_file("dense.safetensors")) == ["fc.weight", "fc.bias"]
    assert run("curve", "training.ckpt", *chosen)[0] == 0
    measured = ("report", "m.tersor", "-o", "r.html", "--dense", "training.ckpt")
    assert run(*measured, *chosen)[0] == 0
    code, _, error = run(*measured)
    assert code == 2 and "--key 'net'" in error


def test_the_ratio_is_of_the_weights(folder):
    code, out, error = compressed("--ratio", 8, "--key", "net")
    size, dense = (folder / "m.tersor").stat().st_size, sum(t.nbytes for t in weights().values())
    assert code == 0 and dense / 8.5 < size <= dense / 8
    total = (folder / "training.ckpt").stat().st_size
    assert f"20.7 kB of weights in {total / 1000:.1f} kB of training.ckpt" in error
    assert f"from {dense} " in out and "8.0" in out
    data = json.loads(run("inspect", "m.tersor", "--json")[1])
    assert data["source_bytes"] == dense


def test_ordinary_checkpoints_need_no_notes():
    code, _, error = compressed("--ratio", 8, model="plain.pt")
    assert code == 0 and "note" not in error


def test_eight_bits_are_weights_unless_lossless(folder):
    weight = weights()["fc.weight"]
    scale = weight.abs().amax(1, keepdim=True) / 400
    state = {"w": (weight / scale).to(torch.float8_e4m3fn), "w_scale": scale}
    save_file(state, "fp8.safetensors")
    code, out, error = compressed("--ratio", 3, model="fp8.safetensors")
    assert code == 0 and "Stored as factors" in out
    assert "8-bit tensors with scales (1, such as 'w') are read as the bfloat16 weights" in error
    code, _, error = compressed("--lossless", model="fp8.safetensors")
    assert code == 0 and "note" not in error
    assert run("decompress", "m.tersor", "-o", "dense.safetensors")[0] == 0
    assert same(load_file("dense.safetensors"), state)


def test_a_folder_and_what_is_in_it(folder):
    (folder / "model").mkdir()
    save_file(weights(), "model/model.safetensors")
    before = (folder / "model" / "model.safetensors").read_bytes()
    assert compressed("--ratio", 8, model="model")[0] == 0
    for command in ("compress", "curve"):
        options = ("--ratio", 8) if command == "compress" else ()
        code, _, error = run(command, "model", "-o", "model/model.safetensors", *options)
        assert code == 2 and "is the input itself" in error
    assert (folder / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "options, message",
    [
        ("--key none", "no dictionaries of tensors under the key 'none'"),
        ("--key net --prefix x.", "no name of a tensor starts with 'x.'; names start with model."),
    ],
)
def test_what_is_not_there(options, message):
    code, _, error = compressed("--ratio", 8, *options.split())
    assert code == 2 and message in error
