# SPDX-License-Identifier: Apache-2.0
"""Docstrings of `tersor.transformers` are complete, and their examples run."""

import doctest

import pytest
from numpydoc.validate import validate

pytest.importorskip("transformers", reason="pip install 'tersor[transformers]'")

import tersor.transformers

LEFT_OUT = {"ES01", "PR04", "RT02", "RT03", "SA01"}
"""As in `test_docstrings`."""


@pytest.mark.parametrize("name", tersor.transformers.__all__)
def test_docstrings_are_complete(name):
    thing = getattr(tersor.transformers, name)
    found = validate(f"{thing.__module__}.{name}")["errors"]
    assert [text for code, text in found if code not in LEFT_OUT] == []


@pytest.mark.parametrize("name", tersor.transformers.__all__)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(getattr(tersor.transformers, name), name):
        runner.run(example)
    assert runner.summarize(verbose=False) == (0, runner.tries)
    assert runner.tries > 0
