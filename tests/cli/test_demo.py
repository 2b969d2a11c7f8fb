# SPDX-License-Identifier: Apache-2.0
"""The demo, with less training and fewer points than a user gets."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tersor.cli import app, demo

pytest.importorskip("sklearn", reason="the demo needs its extra, as `make test` installs it")
pytest.importorskip("matplotlib", reason="the demo needs its extra, as `make test` installs it")


@pytest.mark.slow
def test_it_trains_compresses_evaluates_and_draws(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "RATIOS", (30,))
    monkeypatch.setattr(demo, "DENSE_EPOCHS", 2)
    monkeypatch.setattr(demo, "FINETUNING_EPOCHS", 1)
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    text = result.stdout
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "demo").iterdir()}
    assert sizes["compressed10.tersor"] <= sizes["dense.safetensors"] / 10
    assert sizes["finetuned30.tersor"] <= sizes["dense.safetensors"] / 30
    assert sizes["trade_off.png"] > 10_000
    assert all(str(size) in text for name, size in sizes.items() if name != "trade_off.png")
    assert set(sizes) == {
        "dense.safetensors",
        "compressed10.tersor",
        "compressed30.tersor",
        "finetuned30.tersor",
        "trade_off.png",
    }
