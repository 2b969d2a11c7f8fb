# SPDX-License-Identifier: Apache-2.0
"""The site has every public name and every command, its links lead somewhere, and it builds."""

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from documented import ROOT, pages

import tersor
from tersor.cli import app
from tersor.factorization import methods, projections

REFERENCE = ROOT / "docs" / "reference"
COMMANDS = REFERENCE / "commands.md"
EVERYWHERE = {"--help", "--install-completion", "--show-completion"}


def shown():
    """The names that the pages of the reference ask mkdocstrings for."""
    found = (re.findall(r"^::: (\S+)", p.read_text(), re.MULTILINE) for p in REFERENCE.iterdir())
    return [name for names in found for name in names]


def test_every_public_name_is_on_one_page():
    names = [f"tersor.{name}" for name in tersor.__all__ if name != "__version__"]
    names += [f"tersor.export.{name}" for name in tersor.export.__all__]
    names += [f"tersor.lowrank.{name}" for name in tersor.lowrank.__all__]
    names += [f"tersor.factorization.{name}" for name in ("methods", "projections")]
    if importlib.util.find_spec("transformers"):
        module = importlib.import_module("tersor.transformers")
        names += [f"tersor.transformers.{name}" for name in module.__all__]
    assert sorted(shown()) == sorted(names)


def options(command, path="tersor"):
    """The options of a command and of those in it, by the path of the command."""
    names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    found = {path: {name for name in names if name.startswith("--")} - EVERYWHERE}
    for name, part in getattr(command, "commands", {}).items():
        found |= options(part, f"{path} {name}")
    return found


def test_every_command_is_on_the_page_of_commands():
    """`make docs` writes the page, from the program."""
    parts = re.split(r"^#+ `(.*)`$", COMMANDS.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for path, text in zip(parts[::2], parts[1::2], strict=True):
        lines = " ".join(re.findall(r"^\* `(-.*?)`", text, re.MULTILINE))
        found[path] = set(re.findall(r"--[\w-]+", lines)) - EVERYWHERE
    assert found == options(typer.main.get_command(app))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize(
    "page",
    [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target
        if page.is_relative_to(ROOT / "docs"):
            assert file.is_relative_to(ROOT / "docs"), f"{target} is not on the site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="pip install -r docs/requirements.txt")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "compression.html").read_text()
    assert 'id="tersor.compress"' in page and "target_size" in page
    home = (tmp_path / "site" / "index.html").read_text()
    assert "invisible-code-block" not in re.sub("<!--.*?-->", "", home, flags=re.DOTALL)


def test_every_method_and_projection_is_in_an_example():
    page = (REFERENCE / "methods.md").read_text()
    called = set(re.findall(r"((?:methods|projections)\.\w+)\(", page))
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (methods, projections)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    assert called == found and len(found) > 15
