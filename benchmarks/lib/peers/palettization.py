# SPDX-License-Identifier: Apache-2.0
"""Palettization by coremltools with bits chosen for each weight, for files of given bytes.

Every weight is clustered with every one of `SETTINGS` that coremltools takes for it; which of them
it gets is decided as for our own factors, by a knapsack over errors and bytes. All weights that we
factor are palettized, as the convolutions that they are, or as 1x1 convolutions. Bytes are those of
Core ML's weight.bin, without the program beside it, and what our file takes for the tensors that it
keeps.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, from_numpy

import tersor
from benchmarks.lib import environments
from tersor.calibration.moments import energy
from tersor.compression import knapsack
from tersor.compression.assembly import survey
from tersor.storage import container
from tersor.storage.archive import Archive
from tersor.storage.checkpoint import Source
from tersor.tiling import as_float32

Setting = tuple[int, int, int]
"""Bits of an index, weights that share it, output channels that share a table (0: all)."""

Plan = dict[str, Setting]
State = dict[str, Tensor]

SETTINGS: tuple[Setting, ...] = (
    *((bits, 1, 0) for bits in (1, 2, 3, 4, 6, 8)),
    *((bits, 1, channels) for bits in (1, 2, 3, 4, 6) for channels in (4, 16)),
    *((bits, 2, 0) for bits in (3, 4, 6, 8)),
    *((bits, 4, 0) for bits in (2, 3, 4, 6, 8)),
)

HEADER = 64
"""Bytes before the first blob of weight.bin."""

INLINE = 10
"""Centers from which on a table is in weight.bin."""


class Palettizer:
    """The weights of a checkpoint, and the errors that each setting makes in each of them.

    Errors are measured in two ways: squared, and as a calibration measures them (in the outputs of
    the layer, times the importance of the layer).
    """

    def __init__(self, source: Source, calibration: tersor.Calibration) -> None:
        entries, weights = survey(source)
        self.weights = {w.name: as_float32(source.load(w.name)) for w in weights}
        kept = {name: e for name, e in entries.items() if name not in self.weights}
        self.fixed = container.size(Archive(kept, source.nbytes))
        plans: list[Plan] = [
            {n: setting for n, w in self.weights.items() if applies(setting, tuple(w.shape))}
            for setting in SETTINGS
        ]
        self.options: dict[str, list[Setting]] = {
            name: [p[name] for p in plans if name in p] for name in self.weights
        }
        self.errors: dict[str, list[tuple[float, float]]] = {name: [] for name in self.weights}
        with palettized(self.weights, plans) as made:
            for _, state in made:
                for name, rebuilt in state.items():
                    noise = self.weights[name] - rebuilt
                    importance = calibration.importance.get(name, 1.0)
                    felt = importance * energy(
                        calibration.oriented(name, noise), calibration.metric(name)
                    )
                    self.errors[name].append((energy(noise, None), felt))

    def fit(self, target: int) -> list[tuple[int, State]]:
        """Bytes, and weights, of the least error that fits, by each measure; nothing if none do."""
        budget = target - self.fixed - HEADER
        plans = [plan for measure in (0, 1) if (plan := self._choose(budget, measure))]
        with palettized(self.weights, plans) as made:
            found = [(self.fixed + nbytes, state) for nbytes, state in made]
        assert all(nbytes <= target for nbytes, _ in found)
        return found

    def _choose(self, budget: int, measure: int) -> Plan | None:
        groups = [
            [
                (estimated_bytes(setting, tuple(weight.shape)), errors[measure])
                for setting, errors in zip(self.options[name], self.errors[name], strict=True)
            ]
            for name, weight in self.weights.items()
        ]
        chosen = knapsack.choose(groups, budget)
        if chosen is None:
            return None
        pairs = zip(self.weights, chosen, strict=True)
        return {name: self.options[name][place] for name, place in pairs}


def applies(setting: Setting, shape: tuple[int, ...]) -> bool:
    """Whether coremltools takes a setting for a weight: whole groups, more weights than centers."""
    bits, length, channels = setting
    group = channels or shape[0]
    clustered = group * math.prod(shape[1:]) // length
    return shape[0] % group == 0 and shape[0] % length == 0 and clustered >= 2**bits


def estimated_bytes(setting: Setting, shape: tuple[int, ...]) -> int:
    """Bytes in weight.bin: indices and 16-bit centers, each with a header and padded to 64."""
    bits, length, channels = setting
    tables = shape[0] // channels if channels else 1
    centers = tables * length * 2**bits
    return blob(math.ceil(math.prod(shape) // length * bits / 8)) + (
        blob(2 * centers) if centers >= INLINE else 0
    )


def blob(nbytes: int) -> int:
    return 64 + 64 * math.ceil(nbytes / 64)


@contextmanager
def palettized(weights: State, plans: list[Plan]) -> Iterator[Iterator[tuple[int, State]]]:
    """For each plan the bytes of Core ML's weights, and what they decompress to."""
    program = Path(__file__).with_name("coremltools_peer.py")
    python = environments.python_with("coremltools", "scikit-learn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays = {n: w.reshape(*w.shape, *[1] * (4 - w.ndim)).numpy() for n, w in weights.items()}
        np.savez(folder / "weights.npz", **arrays)
        (folder / "plans.json").write_text(json.dumps(plans))
        command = [python, program, folder / "weights.npz", folder / "plans.json", folder]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        def read(number: int) -> State:
            with np.load(folder / f"{number}.npz") as made:
                return {n: from_numpy(made[n]).reshape(weights[n].shape) for n in made}

        sizes = json.loads(output)
        yield ((size, read(number)) for number, size in enumerate(sizes))
