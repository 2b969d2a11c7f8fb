"""The look-up kernels compiled for other machines: all print the same bits."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "csrc" / "kernels"
PROGRAM = Path(__file__).parent / "print_products.cpp"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread")

MACHINES = {
    "sanitized": ("g++", ("-fsanitize=address,undefined", "-fno-sanitize-recover"), ()),
    "without SSSE3": ("g++", ("-mno-ssse3",), ()),
    "Arm": ("aarch64-linux-gnu-g++", ("-static",), ("qemu-aarch64",)),
}


def products(
    folder: Path, compiler: str, flags: tuple[str, ...], runner: tuple[str, ...], *arguments: str
) -> str:
    program = folder / "print_products"
    sources = [f"-I{SOURCE}", PROGRAM, SOURCE / "lookup.cpp"]
    subprocess.run([compiler, *FLAGS, *flags, *sources, "-o", program], check=True)
    command = [*runner, program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", MACHINES)
def test_all_machines_give_the_same(name: str, tmp_path: Path) -> None:
    compiler, flags, runner = MACHINES[name]
    missing = [tool for tool in ("g++", compiler, *runner) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, which is not installed")
    expected = products(tmp_path, "g++", (), ())
    assert expected.count("\n") == 2 * 3 * 45 * sum((1, 2, 3, 4, 5, 16, 21))
    portable = ("portable",) if name == "without SSSE3" else ()
    assert products(tmp_path, compiler, flags, runner, *portable) == expected
