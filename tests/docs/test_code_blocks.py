# SPDX-License-Identifier: Apache-2.0
"""Every block of code in the README and in docs/ runs, in a folder like its reader's."""

import importlib.util
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from documented import (
    ROOT,
    file_of,
    languages,
    pages,
    run_page,
    skipped,
    train_on_digits,
    write_hugging_face_folder,
)

DATA = Path(os.environ.get("TERSOR_DATA", ROOT.parent / "shared" / "data"))
PAGES = {str(page.relative_to(ROOT)): page for page in pages()}

SLOW = {
    "docs/how-to/effort.md",
    "docs/tutorials/cnn.md",
    "docs/tutorials/fine-tuning.md",
    "docs/tutorials/transformer.md",
    "docs/unification.md",
}
"""Pages that take more than six seconds of processor time; the README does, too."""

NEEDED = {
    "README.md": ["transformers", "onnxscript", "onnxruntime"],
    "docs/huggingface.md": ["transformers"],
    "docs/export.md": ["onnxscript", "onnxruntime"],
    "docs/tutorials/onnx-runtime.md": ["onnxscript", "onnxruntime"],
    "docs/tutorials/transformer.md": ["transformers"],
    "docs/tutorials/fine-tuning.md": ["accelerate"],
    "docs/unification.md": ["resnet20_cifar10.safetensors"],
}
"""Packages and files without which a page is skipped."""

PROGRAMS = {"docs/how-to/scripts.md": "jq", "docs/tutorials/microcontroller.md": "xxd"}
"""Programs that a page calls, by the names of their packages in Debian."""


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What the README says that its reader has: `net.py`, weights, inputs, a folder."""
    pytest.importorskip("sklearn", reason="pip install 'tersor[demo]'")
    folder = tmp_path_factory.mktemp("reader")
    (folder / "net.py").write_text(file_of(ROOT / "README.md", "net.py"))
    train_on_digits(runpy.run_path(str(folder / "net.py"))["make"](), folder)
    if importlib.util.find_spec("transformers"):
        write_hugging_face_folder(folder / "hf-folder")
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A copy of these files; the current folder."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    for path in DATA.glob("resnet20_cifar10.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]  # the next page may have a file of the same name


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name


@pytest.mark.parametrize("name", [marked(name) for name in PAGES])
@pytest.mark.timeout(900)  # seconds, on an idle machine
@pytest.mark.filterwarnings("ignore")
def test_code_blocks_run(name, folder):
    program = PROGRAMS.get(name)
    if program and not shutil.which(program):
        pytest.skip(f"{program} is not installed: apt-get install {program}")
    for needed in NEEDED.get(name, ()):
        if "." not in needed:
            pytest.importorskip(needed)
        elif not (folder / needed).exists():
            pytest.skip(f"{needed} is missing; TERSOR_DATA names the folder that has it")
    torch.manual_seed(0)
    run_page(PAGES[name])


def test_blocks_are_of_languages_that_are_run():
    found = {(name, language) for name, page in PAGES.items() for language in languages(page)}
    run = re.compile(r'python|(python|c) title="[\w.]+"|console|text')
    assert {pair for pair in found if not run.fullmatch(pair[1])} == set()


def test_few_blocks_are_not_run_and_each_says_why():
    reasons = [(name, why) for name, page in PAGES.items() for why in skipped(page)]
    marks = sum(page.read_text().count("<!-- skip:") for page in PAGES.values())
    assert marks == len(reasons), 'a mark is of the form <!-- skip: next "reason" -->'
    assert len(reasons) <= 8, reasons
