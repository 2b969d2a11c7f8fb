# SPDX-License-Identifier: Apache-2.0
"""Names and texts from outside on a terminal: they must not steer it, nor pass for messages."""

import io
import json
import sys

import pytest
import torch
import typer
from samples import plain, small_archive
from typer.testing import CliRunner

from tersor.cli import app
from tersor.cli.app import FAILED, reporting_errors
from tersor.progress import shown
from tersor.storage import container
from tersor.storage.archive import Archive, Reason
from tersor.text import printable, printable_lines

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "bell": "\a\b\r",
    "C1": "\x9b31m\x85",
    "right to left": "\u202egnp.exe\u2066",
    "line break": "x\nwrote out.tersor: 5 bytes\u2028y",
    "surrogate": "\x7f\ud800",
}
NAMES = [name for key, name in HOSTILE.items() if key != "surrogate"]


def steering(text):
    """Characters that are not for the eyes, but for line breaks and spaces that do not break."""
    return {c for c in text if not c.isprintable() and c not in "\n\xa0"}


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert not steering(result.output) and not steering(result.stderr), result.output
    lines = (result.output + result.stderr).splitlines()
    assert not any(line.startswith("wrote out.tersor: 5") for line in lines)
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A file and a checkpoint whose names are all hostile."""
    monkeypatch.chdir(tmp_path)
    (weight, bias, *_), names = small_archive().entries.values(), NAMES
    entries = {f"{n}.weight": weight for n in names} | {f"{n}.bias": bias for n in names}
    container.write(tmp_path / "m.tersor", Archive(entries, 600, {"k\x1b": "v\x9b\n"}))
    state = {f"{n}.weight": torch.randn(16, 16) for n in names} | {f"{names[0]}.ids": "no tensor"}
    torch.save({"state_dict": state}, tmp_path / "m.pt")
    return tmp_path


def test_every_command(folder):
    for command in (
        ("inspect", "m.tersor"),
        ("inspect", "m.tersor", "--json"),
        ("verify", "m.tersor"),
        ("report", "m.tersor", "-o", "page.html"),
        ("decompress", "m.tersor", "-o", "dense.safetensors"),
        ("compress", "m.pt", "-o", "new.tersor", "--ratio", 2),
        ("compress", "m.pt", "-o", "new.tersor", "--lossless"),
        ("curve", "m.pt", "-o", "curve.json", "--points", 2),
    ):
        assert run(*command).exit_code == 0, command
    assert not steering((folder / "page.html").read_text())
    report = json.loads(run("inspect", "m.tersor", "--json").output)
    assert {t["name"] for t in report["tensors"]} >= {f"{n}.weight" for n in NAMES}


def test_errors_and_problems(folder):
    data = bytearray((folder / "m.tersor").read_bytes())
    data[-60] ^= 1
    damaged = folder / "da\x1b[2Jmaged\n.tersor"
    damaged.write_bytes(data)
    for command in (
        ("verify", damaged),
        ("decompress", damaged, "-o", "dense.safetensors"),
        ("report", damaged, "-o", "page.html"),
        ("inspect", folder / "no\x1b[2Jne.tersor"),
        ("compress", folder / "no\nne.pt", "-o", "x.tersor", "--ratio", 2),
        ("compress", "m.pt", "-o", "x.tersor", "--ratio", 1e9),
        ("report", "m.tersor", "-o", "page.html", "--dense", "m.pt"),
        ("report", "m.tersor", "-o", "page.html", "--max-bytes", "1kB"),
    ):
        assert run(*command).exit_code == 2, command


def test_what_is_left_out(folder):
    state = {"w": torch.randn(16, 16), NAMES[0]: "text", NAMES[4]: 5}
    torch.save(state, folder / "more.pt")
    assert "left out: " in run("compress", "more.pt", "-o", "x.tersor", "--lossless").output


def test_progress(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with shown("reading") as progress:
        progress("\x1b]0;owned\x07", 0.5)
    assert "\x1b]0;" not in terminal.getvalue() and "\x07" not in terminal.getvalue()
    assert "x1b]0;owned" in terminal.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_is_made_printable(text):
    assert printable(text).isprintable() and printable("a é 名 [b]") == "a é 名 [b]"
    lines = printable_lines(text).split("\n")
    assert all(map(str.isprintable, lines)) and all(x.startswith("    ") for x in lines[1:])


def test_kept_names_in_notes_are_shown_safely(folder):
    """A tied tensor's note has the name of the other one."""
    entries = small_archive().entries
    tied = entries["tied.weight"]
    named = {
        f"{NAMES[0]}": entries["layer.weight"],
        "t": type(tied)(tied.shape, tied.dtype, type(tied.content)(NAMES[0])),
    }
    named["v"] = plain(torch.ones(2), Reason.VECTOR)
    container.write(folder / "tied.tersor", Archive(named, 600))
    assert "same as" in run("inspect", "tied.tersor").output
    run("report", "tied.tersor", "-o", "tied.html")
    assert not steering((folder / "tied.html").read_text())


def test_bugs_are_not_told_as_mistakes_of_the_user():
    """They need a traceback; too little memory, which torch reports alike, needs none."""
    with pytest.raises(RuntimeError, match="size mismatch"), reporting_errors():
        raise RuntimeError("size mismatch")
    with pytest.raises(BrokenPipeError), reporting_errors():
        raise BrokenPipeError
    with pytest.raises(typer.Exit) as ended, reporting_errors():
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GiB"
        )
    assert ended.value.exit_code == FAILED
