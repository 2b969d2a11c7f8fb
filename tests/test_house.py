# SPDX-License-Identifier: Apache-2.0
"""The map in CONTRIBUTING is that of the import contract."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in Python 3.11 and newer")
def test_the_map_shows_the_layers_in_their_order():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    shown = [{Path(name).stem for name in re.findall("`(.*?)`", row)} for row in rows]
    assert shown == [set(layer.split(" : ")) for layer in reversed(layers)]


def test_the_package_has_few_modules_of_its_own():
    names = {path.name for path in (ROOT / "src" / "tersor").glob("*.py")}
    assert len(names - {"__init__.py", "__main__.py"}) <= 12


def test_the_method_page_names_modules_that_are_there():
    page = (ROOT / "docs" / "method.md").read_text()
    named = re.findall(r"`([a-z_/]+\.py)`", page)
    assert len(named) > 10
    assert [n for n in named if not (ROOT / "src" / "tersor" / n).exists()] == []


def test_every_source_names_its_licence():
    folders = ("src", "csrc", "tests", "benchmarks", "examples")
    endings = {".py", ".pyi", ".c", ".h", ".cpp", ".hpp"}
    paths = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in endings]
    without = [p for p in paths if p.stat().st_size and "SPDX-License" not in p.read_text()[:200]]
    assert len(paths) > 300 and without == []
