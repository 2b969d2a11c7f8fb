# SPDX-License-Identifier: Apache-2.0
"""The kernels of every instruction set that can be compiled for and run here."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-Wno-psabi", "-pthread", f"-I{CSRC}"]


def build(compiler: str, target: str, program: Path, *options: str) -> None:
    sources = [HERE / "kernels.cpp", CSRC / "kernels" / "integers.cpp"]
    command = [compiler, *FLAGS, *options, f"-DTERSOR_TARGET={target}", *sources, "-o", program]
    subprocess.run(command, check=True)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which is not installed")
def test_baseline(tmp_path: Path) -> None:
    build("g++", "baseline", tmp_path / "product")
    run(tmp_path / "product")


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs g++-aarch64-linux-gnu and qemu-user, which are not installed",
)
@pytest.mark.parametrize("options", [(), ("-march=armv8.2-a+dotprod",)])
def test_arm(tmp_path: Path, options: tuple[str, ...]) -> None:
    build("aarch64-linux-gnu-g++", "baseline", tmp_path / "product", "-static", *options)
    run("qemu-aarch64", tmp_path / "product")
