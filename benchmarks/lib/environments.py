# SPDX-License-Identifier: Apache-2.0
"""Environments of their own for peers whose dependencies are not the project's."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.lib.places import CACHE, ROOT


def python_with(package: str, *others: str) -> Path:
    """Python of the environment of this package, made on first use with what else is needed."""
    folder = CACHE / f"{package}-venv"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (folder / "installed").exists():
        print(f"installing {package} into {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", package, *others], check=True)
        (folder / "installed").touch()
    return python


def version_of(package: str) -> str:
    """Version of the package in its environment."""
    script = f"import importlib.metadata as m; print(m.version({package!r}))"
    command = [python_with(package), "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
