# SPDX-License-Identifier: Apache-2.0
"""What commands print: for people, for programs, and with --quiet."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import generator
from typer.testing import CliRunner

from tersor.cli import app

TERSOR = Path(sys.executable).with_name("tersor")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"big.weight": torch.randn(64, 64, generator=generator()) * 0.1}
    save_file(weights, tmp_path / "my model.safetensors")
    return tmp_path


COMPRESS = ("compress", "my model.safetensors", "-o", "small one.tersor", "--ratio", 8)


def test_compress_says_what_to_do_next_and_each_line_works(folder):
    shown = run(*COMPRESS).stdout
    lines = shown[shown.index("next:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["tersor", "tersor", "tersor", "python"]
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "tersor":
            assert run(*arguments).exit_code == 0
        else:
            exec(arguments[1], {})
    assert (folder / "small one.html").stat().st_size > 1000


def test_quiet_prints_nothing_and_the_next_command_prints_again(folder):
    result = run(*COMPRESS, "--quiet")
    assert result.exit_code == 0 and result.output == ""
    assert run("verify", "small one.tersor", "-q").output == ""
    assert "is intact" in run("verify", "small one.tersor").output


def test_quiet_prints_warnings_and_errors(folder):
    torch.manual_seed(0)
    save_file({"a.weight": torch.randn(64, 64)}, "noise.safetensors")
    result = run("compress", "noise.safetensors", "-o", "a.tersor", "--ratio", 30, "--quiet")
    assert result.stdout == "" and "warning: " in result.stderr
    result = run("verify", "missing.tersor", "--quiet")
    assert result.exit_code == 2 and "missing.tersor is not there" in result.stderr


def test_json_is_all_that_is_printed(folder):
    (size,) = json.loads(run(*COMPRESS, "--json").stdout)["outputs"]
    assert size == {
        "path": "small one.tersor",
        "nbytes": (folder / "small one.tersor").stat().st_size,
    }
    seen = json.loads(run("inspect", "small one.tersor", "--json").stdout)
    assert seen["nbytes"] == size["nbytes"] and "outputs" not in seen
    verified = json.loads(run("verify", "small one.tersor", "--json").stdout)
    assert verified["intact"] is True and verified["problems"] == []
    written = run("decompress", "small one.tersor", "-o", "d.safetensors", "--json").stdout
    assert json.loads(written)["outputs"][0]["path"] == "d.safetensors"
    curve = json.loads(run("curve", "my model.safetensors", "--points", 3, "--json").stdout)
    assert len(curve["points"]) == 3
    assert json.loads(run("info", "--json").stdout)["torch"] == torch.__version__


def test_json_of_a_damaged_file_comes_with_the_exit_code(folder):
    run(*COMPRESS)
    path = folder / "small one.tersor"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    result = run("verify", path, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 2 and not found["intact"] and found["problems"]


def test_pipes_get_no_escape_codes_and_no_bar(folder):
    done = subprocess.run([TERSOR, *map(str, COMPRESS)], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout and "\r" not in done.stdout and done.stderr == ""


def on_terminal(*arguments, **environment):
    """What a terminal gets."""
    main, child = pty.openpty()
    command = [str(TERSOR), *map(str, arguments)]
    environ = os.environ | {"TERM": "xterm-256color", **environment}
    with subprocess.Popen(command, stdout=child, stderr=child, env=environ) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(main, 1 << 16):
                shown += piece
        except OSError:
            pass  # the end, as Linux tells it
    os.close(main)
    assert process.returncode == 0
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def test_no_color_is_obeyed(folder, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert COLOUR.search(on_terminal(*COMPRESS, COLUMNS="80"))
    assert not COLOUR.search(on_terminal(*COMPRESS, COLUMNS="80", NO_COLOR="1"))


SCRIPTS = {
    "bash": """
        eval "$(tersor --show-completion bash)"
        COMP_WORDS=(tersor comp); COMP_CWORD=1; _tersor_completion tersor comp tersor
        echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        autoload -Uz compinit; compinit -u -D
        eval "$(tersor --show-completion zsh)"
        whence -v _tersor_completion
        print ${_comps[tersor]}
        _arguments() { :; }; _describe() { print called; }
        env _TERSOR_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS="tersor comp" tersor
    """,
    "fish": """
        tersor --show-completion fish | source
        complete --do-complete "tersor comp"
    """,
}


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_real_shells_complete(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{TERSOR.parent}{os.pathsep}{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(
        [shell, "-c", SCRIPTS[shell]], capture_output=True, text=True, env=environ, check=True
    )
    assert "compress" in done.stdout and "verify" not in done.stdout, done
