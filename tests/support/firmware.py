# SPDX-License-Identifier: Apache-2.0
"""Exported C programs, built and run."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

from c_decoder import SANITIZED, require, require_tool

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
_FOLDER = tempfile.TemporaryDirectory()
_HOST = ("cc", *STRICT, *SANITIZED)


@functools.cache
def _object(source: bytes, name: str, headers: Path) -> Path:
    """A part that all programs have, compiled once."""
    made = Path(tempfile.mkdtemp(dir=_FOLDER.name)) / f"{name}.o"
    command = [*_HOST, f"-I{headers}", "-x", "c", "-c", "-", "-o", made]
    subprocess.run(command, input=source, check=True)
    return made


def build(folder: Path, main: Path | None = None) -> Path:
    """The program of an exported folder, or another one that uses its model, with sanitizers."""
    require("cc", *SANITIZED)
    runtime = [_object(p.read_bytes(), p.stem, p.parent) for p in (folder / "tersor").glob("*.c")]
    own = [folder / name for name in ("model.c", "weights.c", "check_data.c")]
    program = Path(tempfile.mkdtemp(dir=_FOLDER.name)) / "program"
    command = [*_HOST, f"-I{folder}", f"-I{folder / 'tersor'}", *own, main or folder / "check.c"]
    subprocess.run([*command, *runtime, "-o", program], check=True)
    return program


def check(folder: Path) -> str:
    """What a program prints on this machine, which agrees with torch."""
    done = subprocess.run([build(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made(folder: Path, target: str) -> dict[str, int]:
    """The numbers that `make TARGET` prints, by name; skips the test without the tools."""
    for tool in ("make", "arm-none-eabi-gcc", "qemu-system-arm"):
        require_tool(tool)
    done = subprocess.run(["make", "-s", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 2]
    return {name: int(number) for name, number in pairs if number.isdigit()}
