# SPDX-License-Identifier: Apache-2.0
"""What is imported when: the command line answers without torch, and `import tersor` is quick."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.version import __version__

COMMANDS = [command.callback.__name__ for command in app.registered_commands]


def python(code, *arguments):
    """Output of a program in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout


HEAVY = "sorted({'torch', 'numpy', 'safetensors'} & {*sys.modules})"


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], *([c, "-h"] for c in COMMANDS), ["export", "onnx", "-h"]],
)
def test_help_does_not_import_torch(arguments):
    code = f"""
import sys, io, contextlib
from tersor.cli import main
sys.argv[1:] = {arguments}
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print({HEAVY})
"""
    assert python(code) == "[]\n"


def test_the_package_itself_is_light():
    assert python(f"import sys, tersor; dir(tersor); print({HEAVY})") == "[]\n"


def test_every_public_name_is_there():
    for name in tersor.__all__:
        assert getattr(tersor, name) is not None
    assert {*tersor.__all__} <= {*dir(tersor)}
    assert {*tersor._HOME_OF, "__version__"} == {*tersor.__all__}
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        tersor.compres  # noqa: B018


@pytest.mark.parametrize("name", sorted({*tersor._HOME_OF} & {*tersor._HOMES}))
def test_a_module_does_not_hide_the_function_of_its_name(name):
    """Importing a submodule sets it as an attribute of its package."""
    code = f"import tersor, tersor.{name}; print(callable(tersor.{name}))"
    assert python(code) == "True\n"
    code = f"import tersor, tersor.compress; tersor.{name}; print(callable(tersor.{name}))"
    assert python(code) == "True\n"


def test_python_m_tersor():
    found = subprocess.run(
        [sys.executable, "-m", "tersor", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"tersor {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    result = CliRunner().invoke(
        app,
        env={
            "_TERSOR_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": "tersor comp",
            "COMP_CWORD": "1",
        }
        | {"_TYPER_COMPLETE_ARGS": "tersor comp", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        prog_name="tersor",
    )
    assert "compress" in result.stdout and "verify" not in result.stdout


@pytest.mark.parametrize("factored", [False, True])
def test_compressed_models_run_without_the_compiler(factored):
    """As dense ones do: importing `torch._dynamo` takes seconds."""
    code = f"""
import sys, torch, tersor
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 8)
)
if {factored}:
    tersor.compress(model, ratio=8)
    assert any(name.endswith("_factors") for name, _ in model.named_modules())
x = torch.randn(5, 3, 4, 4)
model(x).sum().backward()
if {factored}:
    tersor.optimize(model)
    model(x)
print("torch._dynamo" in sys.modules)
"""
    assert python(code) == "False\n"
