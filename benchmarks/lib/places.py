# SPDX-License-Identifier: Apache-2.0
"""Say where the files are that benchmarks read and write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ROOT / "tests"


def missing_data() -> str | None:
    """Return why the folder with weights and data cannot be used; None if it is there."""
    folder = _data()
    if (folder / "README.md").is_file():
        return None
    return f"no data in {folder}; set TERSOR_DATA to a folder that has it"


def data_folder() -> Path:
    """Return the folder with the weights and data. The program ends if it is missing."""
    if reason := missing_data():
        sys.exit(f"skipped: {reason}")
    return _data()


def _data() -> Path:
    return Path(os.environ.get("TERSOR_DATA", ROOT.parent / "shared" / "data"))
