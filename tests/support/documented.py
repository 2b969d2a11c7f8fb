# SPDX-License-Identifier: Apache-2.0
"""Run the blocks of code of a page of Markdown, in a folder like its reader's."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import torch
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from typer.testing import CliRunner

from tersor.cli import app

ROOT = Path(__file__).parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def pages() -> list[Path]:
    """The README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_page(page: Path) -> None:
    """Run all blocks of a page in the current folder, one after the other."""
    for example in _BLOCKS.parse(page).examples():
        with suppress(SkipTest):  # `skipped` says which these are
            example.evaluate()


def skipped(page: Path) -> list[str]:
    """The reasons why blocks of a page are not run; readers do not see them."""
    return re.findall(r'^ *<!-- skip: next "(.*)" -->\n *```', page.read_text(), re.MULTILINE)


def languages(page: Path) -> list[str]:
    """The languages of all blocks of a page; empty for those that name none."""
    text = page.read_text()
    return re.findall(r"^ *```(.*)\n(?s:.*?)\n *```$", text, re.MULTILINE)


def file_of(page: Path, name: str) -> str:
    """The content of a file that a page shows, in a block with its name as title."""
    found = [region.parsed for region in _files(Document.parse(str(page))) if region.title == name]
    assert len(found) == 1, f"{page} shows {name} {len(found)} times"
    return str(found[0])


def run_blocks_of(page: Path, *wanted: str) -> dict[str, object]:
    """Run those blocks of another page that have these words in or right before them."""
    document = _BLOCKS.parse(page)
    for example in document.examples():
        before = document.text[max(0, example.start - 80) : example.end]
        if any(words in before for words in wanted):
            example.evaluate()
    return document.namespace


def train_on_digits(model: torch.nn.Module, folder: Path) -> None:
    """Write the files that the README speaks of: weights, some inputs, and their labels."""
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(6):
        for batch in torch.randperm(1400).split(100):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(images[:256], folder / "inputs.pt")
    torch.save((images[1400:], labels[1400:]), folder / "test.pt")


def write_hugging_face_folder(path: Path) -> None:
    """Write a folder with a small BERT of random weights, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "a", "short", "text", "another", "of", "the", "kind", "which"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(path)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=500, intermediate_size=128, **sizes)).save_pretrained(path)


def _console(example: Example) -> str | None:
    """Run the commands of a block; where their output is shown, compare it."""
    for command, expected in _commands(example.parsed):
        if "[OPTIONS]" in command:  # how to call it, not a call
            continue
        output = _run(command)
        if expected and not doctest.OutputChecker().check_output(expected, output, FLAGS):
            return f"$ {command}\nexpected:\n{expected}\ngot:\n{output}"
    return None


def _commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands, each a line that begins with a dollar, and what is shown as their output."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = re.sub(r"\\\n\s*", "", part).partition("\n")
        yield command, output


def _run(command: str) -> str:
    words = shlex.split(command, comments=True)
    if words[0] == "tersor" and not re.search(r"[|<>&;]", command):
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"$ {command}\n{result.output}"
        return result.output
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", command], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return done.stdout


_FENCE = FencedCodeBlockLexer(r'\w+ title="(?P<title>.+)"')


def _files(document: Document) -> Iterator[Region]:
    """Blocks with a title are files, which are written."""
    for region in _FENCE(document):
        region.title, region.parsed = region.lexemes["title"], region.lexemes["source"]
        region.evaluator = _write
        yield region


def _write(example: Example) -> None:
    path = Path(example.region.title)
    assert not path.is_absolute()
    path.write_text(example.parsed)
    sys.modules.pop(path.stem, None)  # one of the same name may be imported


_BLOCKS = Sybil(
    [
        PythonCodeBlockParser(doctest_optionflags=FLAGS),
        CodeBlockParser("console", _console),
        _files,
        SkipParser(),
    ]
)
