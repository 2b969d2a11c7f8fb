# SPDX-License-Identifier: Apache-2.0
"""Public docstrings say all that numpydoc asks for, and their examples run."""

import doctest
import inspect
from operator import attrgetter

import pytest
import torch
from numpydoc.validate import validate

import tersor

PUBLIC = [name for name in tersor.__all__ if name != "__version__"]
PUBLIC += [f"export.{name}" for name in tersor.export.__all__]
PUBLIC += [f"lowrank.{name}" for name in tersor.lowrank.__all__]

LEFT_OUT = {
    "ES01",  # many need no more than the summary
    "PR04",  # types are in the signature, which mypy checks
    "RT02",  # a list of several results
    "RT03",
    "SA01",  # names in backticks refer to others
}


def problems(path: str, also_left_out: set[str]) -> list[str]:
    found = validate(path)["errors"]
    return [f"{path}: {text}" for code, text in found if code not in LEFT_OUT | also_left_out]


def members(thing: object) -> list[str]:
    """The public methods and properties that a class defines itself."""
    if not inspect.isclass(thing):
        return []
    kinds = (property, classmethod, staticmethod)
    return [
        name
        for name, member in vars(thing).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds))
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_complete(name):
    thing = attrgetter(name)(tersor)
    path = f"{thing.__module__}.{thing.__qualname__}"
    found = problems(path, set())
    for member in members(thing):
        found += problems(f"{path}.{member}", {"EX01"})  # the example is that of the class
    assert found == []


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.filterwarnings("ignore:.*saw fewer input vectors")
def test_examples_run(name, tmp_path, monkeypatch):
    if name in ("TrainingError", "Finetuned", "finetune"):
        pytest.importorskip("accelerate", reason="pip install 'tersor[finetune]'")
    if name.startswith("export."):
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="pip install 'tersor[onnx,onnx-runtime]'")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(verbose=False, optionflags=options)
    examples = doctest.DocTestFinder().find(
        attrgetter(name)(tersor), name, globs={"tersor": tersor, "torch": torch}
    )
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False) == (0, runner.tries)
    assert runner.tries > 0
