# SPDX-License-Identifier: Apache-2.0
"""Disks that fill while a command writes, at any byte: a message, nothing lost, and it goes on."""

import re
from pathlib import Path

import pytest
import torch
from disks import full_after
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason="fine-tuning needs its extra")

from killing import COMMANDS, act, prepare

from tersor.cli import app

pytestmark = pytest.mark.slow

OUTPUTS = {"curve": "out.json", "decompress": "out.safetensors"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(name):
    return CliRunner().invoke(app, list(COMMANDS[name]), catch_exceptions=False)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "save"])
def test_a_disk_that_fills_at_any_byte(folder, name):
    inputs = contents(folder)
    assert run(name).exit_code == 0
    output = Path(OUTPUTS.get(name, "out.tersor"))
    expected, size, code = output.read_bytes(), 0, 2
    while code:
        output.write_text("earlier")
        with full_after(size):
            result = run(name)
        code, left = result.exit_code, contents(folder)
        if code:
            assert code == 2, result.stderr
            *_, message = result.stderr.splitlines()
            assert re.fullmatch(
                r"error: .*File too large; earlier files are as they were", message
            ), result.stderr
            told = re.findall(r"what is done is in (\S+): to go on", result.stderr)
            assert left.keys() == {*inputs, output.name, *told}
            assert left[output.name] == b"earlier"
            if size % 3 == 0:  # from what there is; else what there is stays for the next
                assert run(name).exit_code == 0
                assert output.read_bytes() == expected
        size = round(size * 1.7) + 1
    assert left == inputs | {output.name: expected} and size > 100


def test_a_save_on_a_disk_that_fills_at_any_byte(folder):
    act("save")
    output = Path("out.tersor")
    expected, before = output.read_bytes(), contents(folder)
    for size in torch.linspace(0, len(expected) - 1, 40).int().tolist():
        with full_after(size), pytest.raises(OSError, match=r"File too large: 'out.tersor'"):
            act("save")
        assert contents(folder) == before
    with full_after(len(expected)):
        act("save")
    assert contents(folder) == before
