# SPDX-License-Identifier: Apache-2.0
"""Disks that fill while a command writes, at any byte: a message, nothing lost, and it goes on."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from disks import full_after
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason="fine-tuning needs its extra")

from killing import COMMANDS, act, prepare

from tersor.cli import app

pytestmark = pytest.mark.slow

OUTPUTS = {"curve": "out.json", "decompress": "out.safetensors"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(name):
    return CliRunner().invoke(app, list(COMMANDS[name]), catch_exceptions=False)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "save"])
def test_a_disk_that_fills_at_any_byte(folder, name):
    inputs = contents(folder)
    assert run(name).exit_code == 0
    output = Path(OUTPUTS.get(name, "out.tersor"))
    expected, size, code = output.read_bytes(), 0, 2
    while code:
        output.write_text("earlier")
        with full_after(size):
            result = run(name)
        code, left = result.exit_code, contents(folder)
        if code:
            assert code == 2, result.stderr
            *_, message = result.stderr.splitlines()
            assert re.fullmatch(
                r"error: .*File too large; earlier files are as they were", message
            ), result.stderr
            told = re.findall(r"what is done is in (\S+): to go on", result.stderr)
            assert left.keys() == {*inputs, output.name, *told}
            assert left[output.name] == b"earlier"
            if size % 3 == 0:  # from what there is; else what there is stays for the next
                assert run(name).exit_code == 0
                assert output.read_bytes() == expected
        size = round(size * 1.7) + 1
    assert left == inputs | {output.name: expected} and size > 100


def test_a_save_on_a_disk_that_fills_at_any_byte(folder):
    act("save")
    output = Path("out.tersor")
    expected, before = output.read_bytes(), contents(folder)
    for size in torch.linspace(0, len(expected) - 1, 40).int().tolist():
        with full_after(size), pytest.raises(OSError, match=r"File too large: 'out.tersor'"):
            act("save")
        assert contents(folder) == before
    with full_after(len(expected)):
        act("save")
    assert contents(folder) == before


def can_mount():
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import torch
from typer.testing import CliRunner
from tersor.cli import app

torch.manual_seed(0)
torch.save({f"{i}.weight": torch.randn(200, 200) for i in range(4)}, "model.pt")
def compress(folder):
    words = ["compress", "model.pt", "-o", f"{folder}/out.tersor", "--ratio", "5"]
    return CliRunner().invoke(app, words)
assert compress(".").exit_code == 0
expected, disk = Path("out.tersor").read_bytes(), Path("disk")
disk.mkdir()
for pages in (2, 8, 40, -8):  # beside the file twice, which writing takes
    room = 4096 * (2 * len(expected) // 4096 + pages)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", disk], check=True)
    result = compress(disk)
    if pages > 0:
        assert result.exit_code == 0, result.output
        assert (disk / "out.tersor").read_bytes() == expected
        print("note" if "removed to leave its space" in result.stderr else "quiet")
    else:
        assert result.exit_code == 2 and "No space left on device" in result.stderr
    left = {path.name for path in disk.iterdir()}
    assert left == {"out.tersor"} if pages > 0 else left <= {"out.tersor.partial"}, left
    subprocess.run(["umount", disk], check=True)
"""


@pytest.mark.skipif(not can_mount(), reason="mounting a small disk takes user namespaces")
def test_what_fits_on_a_small_disk_is_written_there(tmp_path):
    """Though the results that are kept for a later run, or these and the output, do not fit."""
    script = [sys.executable, "-c", ON_A_SMALL_DISK]
    done = subprocess.run(["unshare", "-rm", *script], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.split()[0] == "note"
