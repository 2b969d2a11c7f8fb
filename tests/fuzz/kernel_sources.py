# SPDX-License-Identifier: Apache-2.0
"""What the kernels are compiled from, and how, for harnesses; as CMakeLists.txt does."""

from __future__ import annotations

import platform
from pathlib import Path

_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni"))]
_FLAGS = {"avx2": _AVX2, "avx512": _AVX512} if platform.machine() == "x86_64" else {"baseline": []}

TARGETS = {name: [f"-DTERSOR_TARGET={name}", *flags] for name, flags in _FLAGS.items()}
"""Flags of the compiler for each instruction set."""

SOLVER_FLAGS = ["-DTERSOR_TARGET=Baseline", "-Wno-psabi"]
"""Flags of the compiler for the solver that any machine runs."""


def of(csrc: Path) -> list[Path]:
    """Return the files that are compiled for each instruction set."""
    names = ("integers", "lookup", "convolution", "direct", "panels")
    return [csrc / "kernels" / f"{name}.cpp" for name in names]
