# SPDX-License-Identifier: Apache-2.0
"""The look-up kernels compiled for other machines: all print the same bits."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc" / "kernels"
PROGRAM = Path(__file__).parent / "print_products.cpp"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-pthread")
BASELINE = ("-DTERSOR_TARGET=baseline",)
AVX2 = ("-DTERSOR_TARGET=avx2", "-mavx2", "-mfma")
AVX512 = ("-DTERSOR_TARGET=avx512", *AVX2[1:], *(f"-mavx512{s}" for s in ("f", "bw", "dq", "vl")))

MACHINES = {
    "sanitized": ("g++", (*BASELINE, "-fsanitize=address,undefined", "-fno-sanitize-recover"), ()),
    "AVX2": ("g++", AVX2, ()),
    "AVX-512": ("g++", (*AVX512, "-mavx512vnni"), ()),
    "Arm": ("aarch64-linux-gnu-g++", (*BASELINE, "-static"), ("qemu-aarch64",)),
}


def compiled(folder: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    program = folder / "print_products"
    sources = [f"-I{SOURCE}", PROGRAM, SOURCE / "lookup.cpp"]
    subprocess.run([compiler, *FLAGS, "-Werror", *flags, *sources, "-o", program], check=True)
    return program


def products(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def has(machine: str) -> bool:
    """Whether this machine can run what is compiled for that one."""
    needed = {"AVX2": {"avx2", "fma"}, "AVX-512": {"avx512bw", "avx512_vnni"}}.get(machine)
    if needed is None:
        return True
    known = Path("/proc/cpuinfo")
    return known.exists() and needed <= set(known.read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_all_machines_give_the_same(name: str, tmp_path: Path) -> None:
    compiler, flags, runner = MACHINES[name]
    missing = [tool for tool in ("g++", compiler, *runner) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, which is not installed")
    program = compiled(tmp_path, compiler, flags)  # without warnings, wherever it is to run
    if not has(name):
        pytest.skip(f"this machine has no {name}")
    got = products(*runner, program)
    expected = products(compiled(tmp_path, "g++", BASELINE))
    assert expected.count("\n") == 2 * 4 * 45 * sum((1, 2, 3, 4, 5, 16, 21))
    assert got == expected
