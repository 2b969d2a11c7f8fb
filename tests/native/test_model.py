# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which is not installed")
def test_multiplying_by_reciprocals_is_dividing(tmp_path: Path) -> None:
    program = tmp_path / "divide"
    sources = [f"-I{HERE.parents[1] / 'csrc'}", HERE / "divide.cpp"]
    subprocess.run(["g++", "-std=c++17", "-O2", *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
