# SPDX-License-Identifier: Apache-2.0
"""The command that exports a file to C."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tersor
from tersor.cli import app

CODE = """
import torch
from torch import nn

def make(): return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9))
def refused(): return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 9))
def example(): return torch.randn(5, 64)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9))
    tersor.compress(model, ratio=4)
    tersor.save(model, "model.tersor")
    first = ["export", "c", "model.tersor", "--inputs", "net.py:example", "-o", "firmware"]
    return lambda *rest: CliRunner().invoke(app, [*first, *rest], env={"COLUMNS": "1000"})


def test_the_command_writes_a_program_and_prints_what_it_takes(command, tmp_path):
    result = command("--model", "net.py:make")
    assert result.exit_code == 0, result.output
    assert "multiplications of a run: 4672\n" in result.output
    arena = int(result.output.partition("arena, bytes: ")[2].split()[0])
    header = (tmp_path / "firmware" / "model.h").read_text()
    assert f"#define MODEL_ARENA_BYTES {arena + 7}u\n" in header
    assert "#define MODEL_INPUT_ELEMENTS 64u\n#define MODEL_OUTPUT_ELEMENTS 9u\n" in header


def test_what_users_get_wrong_exits_with_2(command, tmp_path):
    result = command("--model", "net.py:refused")
    assert result.exit_code == 2 and "cannot write gelu in 1" in result.output
    assert not (tmp_path / "firmware").exists()
