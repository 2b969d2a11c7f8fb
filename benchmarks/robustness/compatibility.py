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

from benchmarks.lib import record
from benchmarks.lib.places import DOCS, ROOT, TESTS
from tersor.errors import InputError

PAGE = DOCS / "compatibility.md"
sys.path.insert(0, str(TESTS / "zoo"))

import examine  # noqa: E402

LIBRARIES = ("transformers", "diffusers")
PACKAGES = ("tersor", "torch", *LIBRARIES)
WAYS = {"data_free": False, "calibrated": True}

SHARING = "transpose in the same memory"
"""The one family whose tensors, given to torch, overwrite each other."""

Row = dict[str, Any]

TEXT = """# Compatibility

Models that were compressed, saved and loaded into a model of the same configuration with other
weights, with what came of it. `benchmarks/robustness/compatibility.py` makes this page, from
`benchmarks/results/compatibility.json`; the tests run the same table
([tests/zoo](../tests/zoo)). Models are small and random: the page says that what comes back is
right, not how good it is.

{versions}

For each family, data-free and calibrated with one random batch, it was checked that

- outputs and every tensor of the loaded model equal those of the compressed one, bit for bit:
  loaded in the same process, in another one, and after `copy.deepcopy`;
- `tersor.load_state_dict` gives the same tensors, and a model that gets them from torch the same
  outputs up to the order of sums (at most {difference:.1g} of the largest output apart; not for
  "{sharing}", see below);
- after `tersor.optimize(model, mode="factored")`, which never multiplies weights out, outputs are
  at most {factored:.1g} of the largest output apart;
- a lossless file gives another model every bit of the original;
- the file is no larger than asked.

"Factored" counts tensors, of all in the model; "outputs differ" is the largest difference between
outputs of the compressed and the original model, as a share of the largest output, data-free. All
that a model returns counts, states and EnCodec's codes too.
"""

LIMITS = """
## What to know

- Weights that a module computes from others (weight_norm, spectral_norm, other parametrizations,
  pruning) stay as they are, and `tersor.compress` warns. To compress these too, make them plain
  first: `torch.nn.utils.parametrize.remove_parametrizations(module, "weight")`, or for the older
  hooks `remove_weight_norm` and `remove_spectral_norm` of `torch.nn.utils`, and `prune.remove`.
- Buffers that are not persistent are in no file, as in torch: where a model draws them at random,
  the model that is loaded into has its own.
- A compressed module computes its weight when it is read. What assigns it, changes it in place, or
  takes it from `named_parameters()` in `forward` does not reach it. Of the methods of Hugging
  Face's models these are `resize_token_embeddings`, `tie_weights` and `save_pretrained`: call the
  first two before `tersor.compress`, and write files with `tersor.save`. `generate` and gradient
  checkpointing work.
- A model that also holds a weight outside of its parameters, in an attribute or a list, would go on
  to compute with the old one: it is refused. So are TorchScript, layers with packed weights
  (`quantize_dynamic`), and lazy layers before their first call; the messages say what to do.
- Memory that two parameters share only in part, or in another order, is stored for each of them;
  loaded by torch into parameters that share it, the last one counts.
"""


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
            record.merge("compatibility", [row], _place, seed=0, libraries=versions)


def _place(row: Row) -> int:
    return list(examine.FAMILIES).index(row["family"])


def page(content: dict[str, Any]) -> str:
    """The page, in Markdown."""
    rows = content["rows"]
    versions = {**content["versions"], **content["libraries"]}
    named = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
    found = [(row["family"], row[way]) for row in rows for way in WAYS if way in row]
    apart = [f["dense_difference"] for name, f in found if name != SHARING]
    text = TEXT.format(
        versions=f"Run with {named}, Python {versions['python']}, on "
        f"{content['machine']['processor']}.",
        difference=max(apart),
        factored=max(f["factored_difference"] for _, f in found),
        sharing=SHARING,
    )
    parts = [text]
    for library, title in {
        "transformers": "transformers",
        "diffusers": "diffusers",
        "torch": "Constructs of torch",
    }.items():
        parts.append(f"\n## {title}\n\n{table([r for r in rows if r['library'] == library])}\n")
    return "".join([*parts, LIMITS])


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
