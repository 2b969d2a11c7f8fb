"""Write results as JSON, with what is needed to make them again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.places import RESULTS, ROOT
from tersor.report.info import environment


def processor() -> str:
    """Name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(name: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """Write ``results/NAME.json``: rows, facts such as the seed, versions and machine; say so."""
    path = save(name, rows, **facts)
    print(f"wrote {path.relative_to(ROOT)}")
    return path


def save(name: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """As `write`, but silent: for files that grow during a long run."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    content = {"rows": rows, **facts, "versions": environment(), "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    return path


def merge(
    name: str, rows: list[dict[str, Any]], case: Callable[[dict[str, Any]], Any], **facts: Any
) -> Path:
    """As `save`, in the place of rows of the same cases; others stay, in the order of cases."""
    cases = [case(row) for row in rows]
    others = [row for row in load(name) if case(row) not in cases]
    return save(name, sorted([*others, *rows], key=case), **facts)


def content(name: str) -> dict[str, Any]:
    """Return all of ``results/NAME.json``."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def load(name: str) -> list[dict[str, Any]]:
    """Return the rows of ``results/NAME.json``; none if there is no such file."""
    return content(name)["rows"] if (RESULTS / f"{name}.json").exists() else []
