# SPDX-License-Identifier: Apache-2.0
"""The demo, with less training and fewer points than a user gets."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tersor.cli import app
from tersor.cli.demo import curves, digits, run
from tersor.cli.demo.digits import Row

pytest.importorskip("sklearn", reason="the demo needs its extra, as `make test` installs it")
pytest.importorskip("matplotlib", reason="the demo needs its extra, as `make test` installs it")

ROWS = {
    "tersor": [Row("", 19000, 98.0), Row("", 6000, 97.0)],
    "k-means": [Row("", 18000, 97.5), Row("", 6100, 70.0)],
    "scalar": [Row("", 19100, 98.0), Row("", 6050, 85.0)],
}
DENSE = Row("as trained", 380000, 98.5)


@pytest.mark.slow
def test_it_trains_compresses_evaluates_and_draws(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(curves, "RATIOS", (30,))
    monkeypatch.setattr(digits, "DENSE_EPOCHS", 2)
    monkeypatch.setattr(digits, "FINETUNING_EPOCHS", 1)
    monkeypatch.setattr(run, "_search", lambda *_: None)
    folder = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    sizes = {p.name: p.stat().st_size for p in folder.iterdir()}
    models = {"digits.safetensors", "digits30.tersor", "digits_finetuned.tersor"}
    assert set(sizes) == models | {"accuracy.png", "digits.html"}
    assert sizes["digits30.tersor"] <= sizes["digits.safetensors"] / 30
    assert sizes["digits_finetuned.tersor"] <= sizes["digits.safetensors"] / 30
    assert all(str(sizes[name]) in result.stdout for name in models)
    assert f"report: {folder / 'digits.html'}" in result.stdout
    assert "Size and accuracy" in (folder / "digits.html").read_text()


@pytest.mark.parametrize("width", [40, 80])
def test_the_comparison_fits_the_terminal(width) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(curves.table(ROWS))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1].split() == ["6100", "97.0", "70.0", "85.0"]


def test_the_picture_is_replaced_as_a_whole(tmp_path) -> None:
    path = tmp_path / "accuracy.png"
    curves.draw(ROWS | {"tersor, fine-tuned": [Row("", 6000, 98.0)]}, DENSE, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["accuracy.png"]


def test_the_curve_of_the_report_begins_with_the_smallest_file() -> None:
    curve = curves.as_curve(ROWS["tersor"], DENSE)
    assert [(p.nbytes, p.measured) for p in curve.points] == [(6000, 97.0), (19000, 98.0)]
    assert (curve.dense, curve.dense_bytes) == (98.5, 380000)


def test_a_missing_package_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert "pip install 'tersor[demo]'" in result.output
