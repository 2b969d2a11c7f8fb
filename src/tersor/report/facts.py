# SPDX-License-Identifier: Apache-2.0
"""Compute the figures of the page that are not in a file's summary, one layer at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tersor.coding import records
from tersor.errors import InputError
from tersor.factorization.products import inner
from tersor.factors import Factors, signal_to_noise
from tersor.progress import Progress, silent
from tersor.storage.checkpoint import Source, open_checkpoint
from tersor.storage.opened import OpenFile, open_file
from tersor.storage.summary import Report, TensorSummary, summarize_file
from tersor.tiling import as_float32, window_size

MAGNITUDES = ("0", "1", "2–3", "4–7", "8–15", "16–31", "32+")
"""Labels of the ranges of magnitude by which latents are counted. `_UPPER` holds the largest
magnitude of each range but the last."""

_UPPER = (0, 1, 3, 7, 15, 31)

MOST_ATOMS = 18
"""Largest number of codebook columns that are shown as images: those with the most energy."""

_LARGEST_SPECTRUM = 4096
"""Number of singular values that are computed within seconds."""

_LARGEST_ATOM = 200
"""Number of elements of a column up to which its image is readable."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Figures of a factored tensor.

    Parameters
    ----------
    summary
        Summary of `tersor.inspect`. If a checkpoint is given, its signal-to-noise ratio is replaced
        by a measured one.
    codebook_bytes
        Bytes of the codebook within ``summary.nbytes``; the others are those of the latent.
    spectrum
        Singular values of the tiles, the largest first. Empty if there are fewer than two or more
        than 4096, or if weights are not finite.
    latents
        Number of latents in each range of `MAGNITUDES`.
    atoms
        Columns of the codebook as windows, those with the most energy first: (number, windows of a
        tile, height, width). None if the tile does not consist of kernel windows.
    signal
        Sum of the squared weights, of the checkpoint if there is one, or else of the file.
    """

    summary: TensorSummary
    codebook_bytes: int
    spectrum: tuple[float, ...]
    latents: tuple[int, ...]
    atoms: Tensor | None
    signal: float


@dataclass(frozen=True, eq=False)
class Facts:
    """Figures of a file.

    Parameters
    ----------
    name
        Name of the file without its folder.
    report
        Summary of the file.
    header_bytes
        Bytes of the prefix, the header, and the data after the sections.
    layers
        Factored tensors, in the order of the file.
    dense
        Name of the checkpoint with which the file was compared; None if there was none.
    """

    name: str
    report: Report
    header_bytes: int
    layers: tuple[Layer, ...]
    dense: str | None

    def parts(self) -> dict[str, int]:
        """Return the bytes of each part of the file; their sum is its size."""
        codebooks = sum(layer.codebook_bytes for layer in self.layers)
        factors = sum(layer.summary.nbytes for layer in self.layers)
        return {
            "Latents": factors - codebooks,
            "Codebooks": codebooks,
            "Unfactored tensors": self.report.nbytes - factors - self.header_bytes,
            "Header": self.header_bytes,
        }

    def latents(self) -> tuple[int, ...]:
        """Return the number of latents of all layers in each range of `MAGNITUDES`."""
        counts = [layer.latents for layer in self.layers]
        return tuple(map(sum, zip(*counts, strict=True))) if counts else (0,) * len(MAGNITUDES)

    def snr(self) -> float | None:
        """Return the measured signal-to-noise ratio in dB of all factored weights, or None."""
        signal = sum(layer.signal for layer in self.layers)
        if self.dense is None or not signal:
            return None
        noise = sum(_noise(layer) for layer in self.layers)
        return 10 * math.log10(signal / noise) if noise else math.inf


def _noise(layer: Layer) -> float:
    snr = layer.summary.snr
    return layer.signal * 10 ** (-snr / 10) if layer.signal and snr is not None else 0.0


def gather(
    path: str | os.PathLike[str],
    dense: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    *,
    key: str | None = None,
    prefix: str | None = None,
    max_bytes: int | None = None,
) -> Facts:
    """Return the figures of a file.

    Parameters
    ----------
    path
        A ``.tersor`` file.
    dense
        Checkpoint from which the file was made. If it is given, spectra and signal-to-noise ratios
        are those of its weights. Its tensors are loaded one at a time.
    progress
        Function that is called with a message and the share of the work that is done.
    key, prefix
        See `tersor.storage.checkpoint.open_checkpoint`.
    max_bytes
        See `tersor.storage.opened.OpenFile`.

    Returns
    -------
    Facts
        The figures.

    Raises
    ------
    InputError
        If a file is missing, or the checkpoint lacks a weight or holds one of another shape.
    FileFormatError
        If the file is damaged.
    """
    with open_file(path, max_bytes=max_bytes) as file:
        source = None if dense is None else open_checkpoint(dense, key=key, prefix=prefix)
        report = summarize_file(file.layout)
        layers = tuple(_layers(file, report, source, progress))
        name = None if dense is None else Path(dense).name
        rest = report.nbytes - sum(s.size for s in file.layout.stamps)
        return Facts(Path(path).name, report, rest, layers, name)


def _layers(
    file: OpenFile, report: Report, source: Source | None, progress: Progress
) -> Iterator[Layer]:
    total, done = sum(t.numel for t in report.factored), 0
    for summary in report.factored:
        progress(summary.name, done / total)
        factors = file.factors(summary.name)
        yield _layer(summary, factors, None if source is None else _load(source, summary))
        done += summary.numel


def _load(source: Source, summary: TensorSummary) -> Tensor:
    """Return the weight of the checkpoint from which a factored tensor was made."""
    name = summary.name
    if name not in source.names:
        raise InputError(
            f"the checkpoint has no tensor {name!r}, which the file has; give the checkpoint that "
            "the file was made from"
        )
    weight = source.load(name)
    if tuple(weight.shape) != summary.shape:
        raise InputError(
            f"{name!r} has the shape {tuple(weight.shape)} in the checkpoint and {summary.shape} "
            "in the file; give the checkpoint that the file was made from"
        )
    weight = as_float32(weight)
    if not weight.isfinite().all():
        raise InputError(
            f"{name!r} has NaN or infinite weights in the checkpoint; give the checkpoint that the "
            "file was made from"
        )
    return weight


def _layer(summary: TensorSummary, factors: Factors, dense: Tensor | None) -> Layer:
    if dense is not None:
        summary = replace(summary, snr=signal_to_noise(dense, factors))
    weight = as_float32(factors.recompose()) if dense is None else dense
    return Layer(
        summary,
        records.codebook_bytes(factors),
        _spectrum(factors.tiling.split(weight)),
        _by_magnitude(factors.latent),
        _atoms(factors),
        float((weight**2).sum(dtype=torch.float64)),
    )


def _spectrum(tiles: Tensor) -> tuple[float, ...]:
    """Return singular values of tiles (d, n), from the eigenvalues of the smaller Gram matrix."""
    tall = tiles.T if tiles.shape[0] <= tiles.shape[1] else tiles
    if not 1 < tall.shape[1] <= _LARGEST_SPECTRUM:
        return ()
    gram = inner(tall, tall, torch.float64)
    if not gram.isfinite().all():
        return ()
    return tuple(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0).tolist())


def _by_magnitude(latent: Tensor) -> tuple[int, ...]:
    magnitude = latent.abs()
    below = [0, *(int((magnitude <= most).sum()) for most in _UPPER), latent.numel()]
    return tuple(b - a for a, b in pairwise(below))


def _atoms(factors: Factors) -> Tensor | None:
    window, d = window_size(factors.shape), factors.tiling.size
    if window == 1 or d % window or d > _LARGEST_ATOM or not factors.rank:
        return None
    energy = factors.codebook.double().square().sum(0) * factors.latent.double().square().sum(1)
    strongest = energy.argsort(descending=True, stable=True)[:MOST_ATOMS]
    columns = factors.codebook[:, strongest].T.double()
    columns = columns / columns.abs().amax(dim=1, keepdim=True).clamp_min(1)
    width = factors.shape[-1]
    return columns.reshape(len(columns), d // window, window // width, width)
