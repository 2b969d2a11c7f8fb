# SPDX-License-Identifier: Apache-2.0
"""The decoder of csrc/decoder, built with the compilers at hand, and run."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersor.storage import dtypes

SOURCES = Path(__file__).parents[2] / "csrc" / "decoder"
LIBRARY = [p for p in sorted(SOURCES.glob("*.c")) if p.name != "example.c"]
PORTABLE = [p for p in LIBRARY if p.name != "tersor_whole.c"]
EXAMPLE = SOURCES / "example.c"

STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
WITHOUT_CHECKSUMS = "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION"

_FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def build(*flags: str, sources: tuple[Path, ...] = (EXAMPLE,), compiler: str = "cc") -> Path:
    """A program of these sources and the decoder; skips the test if it cannot be built here."""
    flags = flags or SANITIZED
    require(compiler, *flags)
    program = Path(tempfile.mkdtemp(dir=_FOLDER.name)) / sources[0].stem
    command = [compiler, *STRICT, *flags, f"-I{SOURCES}", *sources, *LIBRARY, "-o", program]
    subprocess.run(command, check=True)
    return program


def require(compiler: str, *flags: str) -> None:
    """Skip the test if there is no such compiler, or it does not know the flags."""
    if shutil.which(compiler) is None:
        pytest.skip(f"the C99 decoder is built with {compiler} here, which is not installed")
    command = [compiler, *flags, "-x", "c", "-", "-o", Path(_FOLDER.name) / "probe"]
    program = "#include <string.h>\nint main(void) { return 0; }\n"
    if subprocess.run(command, input=program, text=True, capture_output=True).returncode:
        pytest.skip(f"{compiler} lacks the libraries for {' '.join(flags)} on this machine")


def run(data: bytes, program: Path, *emulator: str) -> tuple[bytes, bytes] | None:
    """What the example prints and writes for a file; None if it refuses it."""
    source, target = (Path(_FOLDER.name) / name for name in ("in.tersor", "out.bin"))
    source.write_bytes(data)
    done = subprocess.run([*emulator, program, source, target], capture_output=True)
    assert done.returncode in (0, 2) and b"Sanitizer" not in done.stderr, done.stderr.decode()
    return (done.stdout, target.read_bytes()) if done.returncode == 0 else None


def expected(tensors: dict[str, Tensor]) -> tuple[bytes, bytes]:
    """What it should print and write."""
    lines, elements = [], []
    for name, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = "x".join(map(str, tensor.shape))
        lines.append(f"{len(raw)} {dtypes.NAMES[tensor.dtype]} {shape} {name}\n".encode())
        elements.append(raw)
    return b"".join(lines), b"".join(elements)


def require_tool(name: str) -> None:
    """Skip the test if there is no such program."""
    if shutil.which(name) is None:
        pytest.skip(f"needs the program {name}, which is not installed")
