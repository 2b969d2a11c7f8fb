# SPDX-License-Identifier: Apache-2.0
"""The measurement of models that others trained, on models that are made here."""

import pytest
import torch
from torch import nn

import tersor
from benchmarks.lib import record
from benchmarks.lib.zoo import store
from benchmarks.pages import zoo as page
from benchmarks.quality import zoo
from benchmarks.quality.entries import Entry


@pytest.fixture
def entry():
    """A model of one matrix, whose quality is its likeness to what it was."""
    dense = nn.Sequential(nn.Linear(64, 64))
    x = torch.randn(128, 64)

    def build():
        model = nn.Sequential(nn.Linear(64, 64))
        model.load_state_dict(dense.state_dict())
        return model

    def likeness(model):
        return {"cosine": float(torch.cosine_similarity(model(x), dense(x), dim=1).mean())}

    return Entry("test", ("none==1",), "MIT", "cosine", build, lambda part: [x], likeness)


def test_every_entry_says_where_its_weights_are_from():
    for name in zoo.NAMES:
        entry = zoo.entry_of(name)
        assert all(requirement.count("==") == 1 for requirement in entry.packages), name
        assert entry.licence in ("MIT", "Apache-2.0"), name
        assert entry.measure
        assert entry.purpose


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TERSOR_ZOO", str(tmp_path))
    with pytest.raises(store.MissingError, match=r"--fetch"):
        zoo.entry_of("fracast").build()


def test_a_file_is_measured_in_a_model_of_other_weights(entry, tmp_path):
    model = entry.build()
    tersor.compress(model, ratio=6)
    tersor.save(model, tmp_path / "model.tersor")
    with torch.no_grad():
        row = zoo.evaluate(entry, tmp_path / "model.tersor", zoo.outputs(entry, entry.build()))
    assert row["figures"]["cosine"] > 0.9
    assert row["load_differs_by"] < 1e-5


def test_what_load_does_not_fill_is_seen(entry, tmp_path, monkeypatch):
    tersor.save(entry.build(), tmp_path / "model.tersor", lossless=True)
    monkeypatch.setattr(tersor, "load", lambda path, model: model)
    with torch.no_grad():
        row = zoo.evaluate(entry, tmp_path / "model.tersor", zoo.outputs(entry, entry.build()))
    assert row["load_differs_by"] > 0.1
    assert row["by_load_state_dict"]["cosine"] == pytest.approx(1)


def row(method, asked, value, **more):
    return {"method": method, "asked": asked, "figures": {"%": value}, "bytes": 1000, **more}


def test_the_page_says_where_the_peer_is_better_and_load_differs():
    rows = [row("dense", 1.0, 90.0), row("data-free", 8, 80.0), row("scalar", 8, 85.0)]
    rows.append(row("calibrated", 12, 85.0, load_differs_by=1.2, by_load_state_dict={"%": 89.0}))
    rows.append({"method": "scalar", "asked": 12, "refused": "too small"})
    said = " ".join(page.remarks(rows))
    assert "At 8x the peer is better: 85, ours 80." in said
    assert "calibrated at 12x: 89 by it" in said
    assert "scalar at 12x refused: too small" in said


def test_the_overview_shows_the_best_of_ours():
    rows = [row("dense", 1.0, 90.0), row("data-free", 8, 80.0), row("calibrated", 8, 85.0)]
    rows += [row("scalar", 8, 86.0), row("data-free", 12, 70.0)]
    *_, line = page.overview({"net": {"purpose": "tests", "measure": "hits, %"}}, {"net": rows})
    assert line.startswith("| [net: tests](#net-tests) | hits | 90 at 1 kB |")
    assert line.endswith("| 85 at 1 kB | 70 at 1 kB, data-free |")


def test_every_file_in_the_repository_is_of_one_run():
    lines = page.artifacts(record.content("finetuning")["rows"])[2:]
    assert len(lines) > 5
    with pytest.raises(AssertionError, match="is of 0 runs"):
        page.artifacts([])
