# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped goes on where it was, and ends at the identical file."""

import ast
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import generator
from typer.testing import CliRunner

import tersor
from tersor.calibration.calibrate import Calibration
from tersor.cli import app
from tersor.coding import records
from tersor.compression.attempts import Attempts
from tersor.compression.resume import CHOICES, VERSIONS, identity
from tersor.factorization.weights import factorize_weight
from tersor.storage.checkpoint import open_checkpoint
from tersor.storage.journal import Journal, _record

TERSOR = Path(sys.executable).with_name("tersor")
COMMAND = (
    "compress",
    "model.safetensors",
    "-o",
    "out.tersor",
    "--bits",
    "3*=3",
    "--lookup",
    "4*",
    "--ratio",
)


LAYERS = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = generator(3)
    state = {f"{i}.weight": torch.randn(80, 60 + i, generator=draw) for i in range(LAYERS)}
    save_file(state, "model.safetensors")
    return tmp_path


@cache
def finished():
    """The file of a run that nothing stopped; in a folder with the model."""
    run(*COMMAND, 8)
    output = Path("out.tersor")
    content = output.read_bytes()
    output.unlink()
    return content


@cache
def partial(after):
    """The journal of a run that was stopped after so many versions."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after, *COMMAND, 8)
    return Path("out.tersor.partial").read_bytes()


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def interrupt(monkeypatch, after, *arguments):
    """Run the command until so many versions are made, then press Ctrl-C."""
    made, work = [], Attempts._version

    def version(self, step, weight):
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(weight.name)
        return work(self, step, weight)

    with monkeypatch.context() as patch:
        patch.setattr(Attempts, "_version", version)
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 130
    return result.stderr


def kill(arguments, size):
    """Kill the command once its journal has so many bytes; whether it was not done by then."""
    process = subprocess.Popen([TERSOR, *map(str, arguments)], stderr=subprocess.PIPE)
    journal = Path("out.tersor.partial")
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_and_resumed_gives_the_identical_file(folder):
    expected, draw, kills = finished(), random.Random(5), 0
    size = 0
    for _ in range(4):
        size += draw.randrange(1, 12_000)
        kills += kill((*COMMAND, 8), size)
        assert not Path("out.tersor").exists() or Path("out.tersor").read_bytes() == expected
    assert kills >= 2
    run(*COMMAND, 8)
    assert Path("out.tersor").read_bytes() == expected
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "out.tersor"}


def test_what_is_done_is_not_done_again(folder, monkeypatch):
    message = interrupt(monkeypatch, LAYERS - 1, *COMMAND, 8)
    assert "what is done is in out.tersor.partial: to go on, run the same command" in message
    message = interrupt(monkeypatch, 2, *COMMAND, 8)
    assert "note: continuing an interrupted run: " in message
    assert "results are there already" in run(*COMMAND, 8)
    assert not Path("out.tersor.partial").exists()
    assert run(*COMMAND, 8) == ""


@pytest.mark.parametrize("change", ["the input", "the options", "the calibration", "the version"])
def test_a_change_starts_anew_and_says_so(folder, monkeypatch, change):
    Path("out.tersor.partial").write_bytes(partial(LAYERS - 1))
    ratio = 9 if change == "the options" else 8
    if change == "the input":  # of the same size, name and date
        date = Path("model.safetensors").stat().st_mtime_ns
        state = load_file("model.safetensors")
        state["5.weight"][5, 5] += 1
        save_file(state, "model.safetensors")
        os.utime("model.safetensors", ns=(date, date))
    if change == "the version":
        monkeypatch.setattr("tersor.compression.resume.__version__", "0.0.9")
    if change == "the calibration":
        moments = Calibration({"1.weight": torch.eye(61)}, 99, {"1.weight": 99})
        monkeypatch.setattr("tersor.cli.compress.calibration_of", lambda *_: moments)
    message = run(*COMMAND, ratio)
    assert f"starting anew: since the interrupted run there was a change in {change}\n" in message
    resumed = Path("out.tersor").read_bytes()
    run(*COMMAND, ratio)
    assert Path("out.tersor").read_bytes() == resumed


def test_results_come_back_to_the_last_bit(folder):
    source = open_checkpoint("model.safetensors")
    from tersor.compression.assembly import survey

    _, weights = survey(source)
    attempts = Attempts(source, None, lambda *_: None)
    attempts.prepare(weights, 0.5)
    for weight, version in attempts.solve(weights[:2], 0.5, ""):
        assert VERSIONS.decode(VERSIONS.encode(version)) == version
        choice = attempts._chosen[weight.name].choice
        back = CHOICES.decode(CHOICES.encode(choice))
        assert back.spectrum.tobytes() == choice.spectrum.tobytes()
        assert (back.tile, back.tiles, back.nbytes) == (choice.tile, choice.tiles, choice.nbytes)


def test_the_identity_is_that_of_the_content(folder):
    save_file(dict(reversed(load_file("model.safetensors").items())), "copy.safetensors")
    source, copy = open_checkpoint("model.safetensors"), open_checkpoint("copy.safetensors")
    assert identity(source, None, []) == identity(copy, None, [])
    assert identity(source, None, [["a"], None]) != identity(source, None, [None, ["a"]])


def other_factors(version, shape):
    """Of another weight of that shape, about as large."""
    noise = torch.randn(shape, generator=generator(9)) * 3
    return records.encode(factorize_weight(noise, version.content.tile, 0.5), version.content.snr)


FORGERIES = {
    "streams of another weight": lambda v, s: replace(v, content=other_factors(v, s)),
    "another size": lambda v, s: replace(v, nbytes=v.nbytes - 1),
    "another error": lambda v, s: replace(v, error=v.error / 2),
    "another step": lambda v, s: replace(v, content=replace(v.content, scale=v.content.scale * 2)),
    "a stream that ends early": lambda v, s: replace(
        v, content=replace(v.content, streams=(v.content.streams[0][:-1],))
    ),
}


@pytest.mark.parametrize("forgery", [*FORGERIES, b"", b"{", b"[]", b"[1, 2, 3]\n", b"\xff\n"])
def test_results_that_do_not_hold_are_made_anew(folder, forgery):
    """Whatever is in the file under a right digest."""
    expected = finished()
    Path("out.tersor.partial").write_bytes(partial(LAYERS + 2))
    forge("out.tersor.partial", forgery)
    assert "continuing an interrupted run" in run(*COMMAND, 8)
    assert Path("out.tersor").read_bytes() == expected


def forge(path, forgery):
    head = _record(os.open(path, os.O_RDONLY), 16, b"")
    journal = Journal(Path(path), json.loads(head.value))
    assert {ast.literal_eval(key)[0] for key in journal._places} == {"tiles", "factors", "signs"}
    for key in list(journal._places):
        kind, name, *_ = ast.literal_eval(key)
        value = forgery
        if forgery in FORGERIES and kind == "tiles":
            choice = CHOICES.decode(journal.get(key))
            value = CHOICES.encode(replace(choice, spectrum=choice.spectrum * 2))
        elif forgery in FORGERIES:
            shape = 80, 60 + int(name.partition(".")[0])
            version = VERSIONS.decode(journal.get(key))
            value = VERSIONS.encode(FORGERIES[forgery](version, shape))
        journal.put(key, value)
    journal.close(remove=False)


def test_empty_tensors_of_numpy(folder):
    """Which have strides of 0."""
    state = {"w": torch.randn(64, 64), "e": torch.from_numpy(np.zeros(0, np.float32))}
    torch.save(state, "model.pt")
    run("compress", "model.pt", "-o", "a.tersor", "--ratio", 4)
    run("compress", "model.pt", "-o", "b.tersor", "--lossless", "--content-hash")
    with tersor.open("b.tersor") as file:
        assert torch.equal(file["w"], state["w"]) and file["e"].shape == (0,)
    run("verify", "b.tersor")


@pytest.mark.slow
def test_two_containers_at_once(folder):
    """Each with the name of the other's output, and with one of its own: all are whole."""
    expected = finished()
    outputs = ["out.tersor", "out.tersor", "a_long_name_of_more_than_forty_characters_1.tersor"]
    commands = [[name if a == "out.tersor" else a for a in (*COMMAND, "8")] for name in outputs]
    processes = [
        subprocess.Popen([TERSOR, *command], stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    messages = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], messages
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", *outputs}
    assert {Path(name).read_bytes() for name in outputs} == {expected}
