"""Write results as JSON, with what is needed to make them again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tersor.report.info import environment

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """Name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(name: str, rows: list[dict[str, Any]], **facts: Any) -> Path:
    """Write ``results/NAME.json``: rows, facts such as the seed, versions and machine; say so."""
    path = save(name, rows, **facts)
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
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


def load(name: str) -> list[dict[str, Any]]:
    """Rows of ``results/NAME.json``; none if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []
