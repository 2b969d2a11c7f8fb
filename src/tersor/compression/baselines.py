# SPDX-License-Identifier: Apache-2.0
"""Compress with baseline methods, stored as tightly as tersor's factors, within the same bytes.

- `scalar`: every weight is rounded to a multiple of one step size, and the integers are
  entropy-coded like those of tersor.
- `vector_quantization`: tiles are clustered by k-means, the codebook has 8 bits per element, and
  the indices are entropy-coded. Each layer gets the number of columns that lowers the total squared
  error most per byte.

Unfactored tensors and the header count as many bytes as in tersor's file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.coding import records
from tersor.compression.assembly import survey
from tersor.compression.search import finest_fit
from tersor.errors import MissingExtraError
from tersor.factors import Factors
from tersor.storage import container
from tersor.storage.archive import Archive
from tersor.storage.checkpoint import Source
from tersor.tiling import Tiling, as_float32, window_size

State = dict[str, Tensor]
Stored = tuple[int, State]
"""Bytes of the file, and the weights that are read back from it."""


def scalar(source: Source, targets: Sequence[int]) -> list[Stored]:
    """Quantize all weights with one uniform step size, for files of at most the target bytes.

    Parameters
    ----------
    source
        Source of the tensors.
    targets
        Largest size of each file in bytes.

    Returns
    -------
    list of tuple
        For each target the bytes of the file, and the weights that are read back from it, by name.

    Raises
    ------
    BudgetError
        If a target cannot be reached.
    """
    entries, weights = survey(source)
    tensors = {w.name: as_float32(source.load(w.name)) for w in weights}
    fixed = container.size(Archive(entries, source.nbytes))
    guess = 0.5 * math.sqrt(sum(float((t**2).mean()) for t in tensors.values()) / len(tensors))

    def attempt(step_size: float) -> tuple[int, Stored]:
        factors = {name: _rounded(tensor, step_size) for name, tensor in tensors.items()}
        size = fixed + sum(records.encode(f).nbytes for f in factors.values())
        return size, (size, {name: f.recompose() for name, f in factors.items()})

    return [finest_fit(attempt, target, guess)[1] for target in targets]


def _rounded(weight: Tensor, step_size: float) -> Factors:
    latent = (weight / step_size).round().reshape(1, -1).to(torch.int16)
    return Factors(torch.ones(1, 1, dtype=torch.int16), latent, step_size, tuple(weight.shape))


@dataclass(frozen=True)
class _Point:
    """One k-means solution of one layer."""

    nbytes: int
    error: float
    weight: Tensor


def vector_quantization(source: Source, targets: Sequence[int], *, seed: int = 0) -> list[Stored]:
    """Quantize tiles by k-means: tiles of one kernel window, or of 8 inputs of a matrix.

    Parameters
    ----------
    source
        Source of the tensors.
    targets
        Largest size of each file in bytes.
    seed
        Seed of the k-means++ starts; 0 by default.

    Returns
    -------
    list of tuple
        For each target the bytes of the file, and the weights that are read back from it, by name.

    Raises
    ------
    MissingExtraError
        If scikit-learn is not installed.
    """
    entries, weights = survey(source)
    fixed = container.size(Archive(entries, source.nbytes))
    curves = {
        w.name: _kmeans_points(as_float32(source.load(w.name)), max(targets), seed) for w in weights
    }
    return [_allocate(curves, fixed, target) for target in targets]


def _allocate(curves: dict[str, list[_Point]], fixed: int, target: int) -> Stored:
    """Choose the points of least error plus λ times bytes, with λ from bisection."""
    best = {name: points[0] for name, points in curves.items()}
    low, high = 1e-12, 1e6
    for _ in range(60):
        lagrangian = math.sqrt(low * high)
        chosen = {
            n: min(c, key=lambda p: p.error + lagrangian * p.nbytes) for n, c in curves.items()
        }
        if fixed + sum(p.nbytes for p in chosen.values()) <= target:
            high, best = lagrangian, chosen
        else:
            low = lagrangian
    best = _spend(best, curves, target - fixed)
    return fixed + sum(p.nbytes for p in best.values()), {n: p.weight for n, p in best.items()}


def _spend(
    chosen: dict[str, _Point], curves: dict[str, list[_Point]], budget: int
) -> dict[str, _Point]:
    """Spend the bytes that remain: make the exchange that lowers the error most, while one fits."""
    chosen = dict(chosen)
    while True:
        left = budget - sum(p.nbytes for p in chosen.values())
        swaps = [
            (chosen[name].error - point.error, name, point)
            for name, points in curves.items()
            for point in points
            if point.nbytes - chosen[name].nbytes <= left and point.error < chosen[name].error
        ]
        if not swaps:
            return chosen
        _, name, point = max(swaps, key=lambda s: s[0])
        chosen[name] = point


def _kmeans_points(weight: Tensor, most: int, seed: int) -> list[_Point]:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtraError(
            "vector quantization needs scikit-learn: pip install 'tersor[demo]'"
        ) from None
    shape = tuple(weight.shape)
    tiling = Tiling(shape, min(max(window_size(shape), 8), math.prod(shape[1:])))
    tiles = tiling.split(weight).T.contiguous().numpy()
    zero = _Point(0, float((weight**2).sum()), torch.zeros_like(weight))
    points = [zero]
    for columns in _column_counts(len(tiles)):
        kmeans = KMeans(columns, n_init=1, max_iter=50, random_state=seed).fit(tiles)
        codebook, size = _at_8_bits(kmeans.cluster_centers_)
        size += _index_bytes(kmeans.labels_, columns)
        if size > most:
            break
        rebuilt = tiling.join(torch.from_numpy(codebook[kmeans.labels_].T.copy()))
        points.append(_Point(size, float(((weight - rebuilt) ** 2).sum()), rebuilt))
    return points


def _column_counts(tiles: int) -> Iterable[int]:
    counts = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    return [k for k in counts if 2 * k <= tiles]


def _at_8_bits(codebook: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the codebook on a uniform grid of 8 bits, and its bytes including the scale."""
    scale = max(float(np.abs(codebook).max()), 1e-30) / 127
    return (np.rint(codebook / scale) * scale).astype(np.float32), codebook.size + 4


def _index_bytes(indices: np.ndarray, columns: int) -> int:
    """Return the bytes of the indices at their entropy, plus a byte per column for frequencies."""
    counts = np.bincount(indices, minlength=columns)
    shares = counts[counts > 0] / len(indices)
    return math.ceil(-len(indices) * float((shares * np.log2(shares)).sum()) / 8) + columns
