"""Write results as JSON, with what is needed to make them again."""

from __future__ import annotations

import json
import os
import platform
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
    """Write ``results/NAME.json``: rows, facts such as the seed, versions and machine."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()}
    content = {"rows": rows, **facts, "versions": environment(), "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
    return path
