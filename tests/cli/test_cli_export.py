# SPDX-License-Identifier: Apache-2.0
"""The command that exports a file to another runtime."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tersor
from tersor.cli import app

for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="pip install 'tersor[onnx,onnx-runtime]'")

CODE = """
import torch
from torch import nn

def make(): return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
def example(): return torch.randn(1, 64)
def sequence(): return torch.randn(2, 5, 64)
def wrong(): return "nothing"
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    tersor.compress(model, ratio=4)
    tersor.save(model, "model.tersor")
    first = ["export", "onnx", "model.tersor", "--model", "net.py:make", "-o", "folder"]
    return lambda *rest: CliRunner().invoke(app, [*first, *rest], env={"COLUMNS": "1000"})


def test_the_command_writes_a_folder_and_prints_sizes(command, tmp_path):
    result = command("--inputs", "net.py:example")
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "folder").iterdir():
        assert f"wrote folder/{path.name}: {path.stat().st_size} bytes" in result.output
    assert "largest relative error of outputs against torch: " in result.output
    session = tersor.export.onnx_session("folder")
    x = torch.randn(3, 64)
    found = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    model = tersor.load(
        "model.tersor", nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    )
    assert torch.allclose(found, model(x), atol=1e-5)


def test_dynamic_axes(command):
    result = command(
        "--inputs", "net.py:sequence", "--dynamic", '{"input": {"1": "length"}}', "--no-check"
    )
    assert result.exit_code == 0 and "error" not in result.output, result.output
    assert tersor.export.onnx_session("folder").get_inputs()[0].shape == [2, "length", 64]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inputs", "net.py:wrong"], "a batch is a str"),
        (["--inputs", "net.py:none"], "there is no 'none'"),
        (["--inputs", "net.py:example", "--dynamic", "batch"], "--dynamic 'batch' is not"),
        (
            ["--inputs", "net.py:example", "--dynamic", '{"input": {"x": "n"}}'],
            "is not of the form",
        ),
    ],
)
def test_what_users_get_wrong_exits_with_2(command, tmp_path, options, message):
    result = command(*options)
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "folder").exists()
