# SPDX-License-Identifier: Apache-2.0
"""Write results as JSON, with what is needed to make them again, and to see when they are old."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.lib.places import RESULTS, ROOT
from tersor.report.info import environment

SUFFIXES = {".py", ".c", ".h", ".cpp", ".hpp"}
"""Endings of source files. Others, such as compiled modules, do not count."""

Row = dict[str, Any]


def write(name: str, rows: list[Row], *, measures: Sequence[str], **facts: Any) -> Path:
    """Do as `save`, and say so."""
    path = save(name, rows, measures=measures, **facts)
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def save(name: str, rows: list[Row], *, measures: Sequence[str], **facts: Any) -> Path:
    """Write ``results/NAME.json``.

    Each row gets the hash of the code that it measures, ``code``, if it has none. Rows that `load`
    returned keep theirs, which is None if it is not known.

    Parameters
    ----------
    name
        Name of the file, without its suffix.
    rows
        The figures.
    measures
        Parts of the source that the figures depend on, see `benchmarks.lib.parts`.
    facts
        What is true of all rows, such as the seed. Versions and the machine are added.
    """
    for row in rows:
        row.setdefault("code", fingerprint(tuple(measures)))
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    content = {
        "rows": rows,
        **facts,
        "measures": list(measures),
        "versions": environment(),
        "machine": machine,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    return path


def merge(
    name: str, rows: list[Row], case: Callable[[Row], Any], *, measures: Sequence[str], **facts: Any
) -> Path:
    """Do as `save`, but keep rows of other cases. All are sorted by their cases."""
    cases = [case(row) for row in rows]
    others = [row for row in load(name) if case(row) not in cases]
    return save(name, sorted([*others, *rows], key=case), measures=measures, **facts)


def content(name: str) -> dict[str, Any]:
    """Return all of ``results/NAME.json``."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def load(name: str) -> list[Row]:
    """Return the rows of ``results/NAME.json``; none if there is no such file."""
    rows = content(name)["rows"] if (RESULTS / f"{name}.json").exists() else []
    return [{**row, "code": row.get("code")} for row in rows]


def processor() -> str:
    """Return the name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def fingerprint(measures: tuple[str, ...]) -> str:
    """Return a hash of source files as the working tree has them when this is first called.

    Parameters
    ----------
    measures
        Patterns of files, and of folders whose source files all count, relative to the root of the
        repository.

    Raises
    ------
    FileNotFoundError
        If there is no source file for one of the patterns.
    """
    digest = hashlib.sha256()
    for path in sorted({path for part in measures for path in _sources(part)}):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def _sources(part: str) -> list[Path]:
    found = [file for path in ROOT.glob(part) for file in (path, *path.rglob("*"))]
    if files := [file for file in found if file.suffix in SUFFIXES and file.is_file()]:
        return files
    raise FileNotFoundError(f"no source files are at {part}, which a benchmark measures")


def age(results: dict[str, Any]) -> str:
    """Return in words whether rows are older than the code that they measure."""
    codes = [row.get("code") for row in results["rows"]]
    try:
        now = fingerprint(tuple(results.get("measures", ())))
    except FileNotFoundError:  # the code was moved since
        now = ""
    unknown, current = codes.count(None), codes.count(now)
    older = len(codes) - unknown - current
    if not unknown + older:
        return "of this code"
    counts = {"older than the code": older, "not known": unknown, "of this code": current}
    told = [(count, words) for words, count in counts.items() if count]
    if len(told) == 1:
        return told[0][1]
    return ", ".join(f"{count} of {len(codes)} {words}" for count, words in told)
