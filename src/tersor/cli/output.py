# SPDX-License-Identifier: Apache-2.0
"""Print what commands find: as text for people, as JSON for programs, or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tersor.progress import Progress, shown, silent
from tersor.text import printable_lines

console = Console()
errors = Console(stderr=True)

_as_json = False


def restart() -> None:
    """Print text again, as commands do without --quiet and --json."""
    global _as_json
    _as_json = console.quiet = False


def _silence(quiet: bool) -> None:
    if quiet:
        console.quiet = True


def _choose_json(as_json: bool) -> None:
    global _as_json
    if as_json:
        _as_json = console.quiet = True


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_silence, help="Print only warnings and errors.", is_eager=True
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", callback=_choose_json, help="Print one JSON object, for programs.", is_eager=True
    ),
]


def say(text: str, where: Console = console) -> None:
    """Print a message literally, without markup and without control characters.

    Names in it come from files: they may look like markup, be long, or hold control sequences.

    Parameters
    ----------
    text
        The message.
    where
        Console to print to; by default standard output.
    """
    where.print(printable_lines(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a note to standard error, except with --quiet and --json."""
    if not console.quiet:
        say(f"note: {text}", errors)


def bar(title: str) -> AbstractContextManager[Progress]:
    """Return a bar on a terminal, as `tersor.progress.shown` does, except with --quiet and --json.

    Parameters
    ----------
    title
        Name of the work.
    """
    return nullcontext(silent) if console.quiet else shown(title)


def emit(result: Mapping[str, Any], *outputs: Path) -> None:
    """Print the result of a command as JSON if --json is given.

    Parameters
    ----------
    result
        Plain data.
    outputs
        Files and folders that the command wrote, which are added with their sizes.
    """
    if _as_json:
        written = [{"path": str(path), "nbytes": _size(path)} for path in outputs]
        both = {**result, "outputs": written} if outputs else result
        sys.stdout.write(json.dumps(both, indent=2) + "\n")


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
