# SPDX-License-Identifier: Apache-2.0
"""Which architectures come back from a file exactly? All those of tests/zoo.

Each is compressed data-free and calibrated with one random batch, and put through what the tests
put it through (tests/zoo/examine.py). Writes results/compatibility.json, and from it
docs/compatibility.md. With --page only the page; names of families run these only, the others stay.

    python -m benchmarks.robustness.compatibility [--page] [FAMILY ...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import multiprocessing
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib import parts, record
from benchmarks.lib.places import DOCS, ROOT, TESTS
from benchmarks.lib.template import fill
from tersor.errors import InputError

PAGE = DOCS / "compatibility.md"
sys.path.insert(0, str(TESTS / "zoo"))

import examine  # noqa: E402

LIBRARIES = ("transformers", "diffusers")
PACKAGES = ("tersor", "torch", *LIBRARIES)
TITLES = {
    "transformers": "transformers",
    "diffusers": "diffusers",
    "torch": "Constructs of torch",
}
WAYS = {"data_free": False, "calibrated": True}

SHARING = "transpose in the same memory"
"""The one family whose tensors, given to torch, overwrite each other."""

Row = dict[str, Any]


def run(name: str, elsewhere: examine.Elsewhere) -> Row:
    """What came of a family."""
    family = examine.FAMILIES[name]
    start = time.perf_counter()
    row: Row = {"family": name, "library": family.library, "kind": family.kind, "error": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            examine.is_unlike(name)
            examine.keep_all(name, Path(folder))
            for way, calibrated in WAYS.items():
                row[way] = examine.examine(name, Path(folder), elsewhere, calibrated=calibrated)
        except (InputError, AssertionError) as error:
            told = isinstance(error, InputError)
            row["error"] = f"refused: {error}" if told else f"wrong: {error!r}"
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def measure(names: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        for name in names:
            row = run(name, lambda n, path: pool.submit(examine.loaded, n, path).result())
            print(f"{name:40} {row['error'] or 'exact'}", flush=True)
            record.merge(
                "compatibility", [row], _place, measures=parts.INFERENCE, seed=0, libraries=versions
            )


def _place(row: Row) -> int:
    return list(examine.FAMILIES).index(row["family"])


def page(content: dict[str, Any]) -> str:
    """The page, in Markdown."""
    rows = content["rows"]
    versions = {**content["versions"], **content["libraries"]}
    named = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
    found = [(row["family"], row[way]) for row in rows for way in WAYS if way in row]
    apart = [f["dense_difference"] for name, f in found if name != SHARING]
    tables = {
        title: table([r for r in rows if r["library"] == library])
        for library, title in TITLES.items()
    }
    return fill(
        "compatibility.md",
        versions=f"Run with {named}, Python {versions['python']}, on "
        f"{content['machine']['processor']}.",
        difference=max(apart),
        factored=max(f["factored_difference"] for _, f in found),
        sharing=SHARING,
        tables=tables,
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| family | class | parameters | factored | size | outputs differ | result |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    return "\n".join([*lines, *map(line, rows)])


def line(row: Row) -> str:
    kind = f"`{row['kind']}`" if row["kind"] else ""
    if row["error"]:
        return f"| {row['family']} | {kind} | | | | | {row['error']} |"
    found = row["data_free"]
    name = found["warning"] and found["warning"].split("'")[1]
    result = f"exact; with a warning, `{name}` stays dense" if name else "exact"
    return (
        f"| {row['family']} | {kind} | {found['parameters']:,} | {found['factored']} of "
        f"{found['tensors']} | 1/{found['ratio']:.1f} | {100 * found['output_error']:.2g} % "
        f"| {result} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    if unknown := [name for name in options.families if name not in examine.FAMILIES]:
        parser.error(f"no such families: {unknown}; there are {list(examine.FAMILIES)}")
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        parser.error(f"needs {' and '.join(missing)}: pip install -r requirements-dev.txt")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not options.page:
        measure(options.families or list(examine.FAMILIES))
    content = record.content("compatibility")
    PAGE.write_text(page(content))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
