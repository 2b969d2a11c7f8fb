# SPDX-License-Identifier: Apache-2.0
"""Other ways to quantize a weight, each as curves of SNR against bits per weight.

- `scalar`: rounding to a uniform grid; bytes of this project's coder, one table for the weight.
- `kmeans`: scikit-learn's k-means on tiles of 4, 8 or 9 weights; bits are the empirical entropy of
  the indices and 16 bits for each element of the codebook.
- `additive`: sums of two columns of a codebook, as AQLM without calibration; fixed-length indices
  and 16 bits for each element of the codebook. Weights above `SUBSET` are represented by so many of
  their tiles (which favours the method, as it is fitted to them); bits are those of the whole.
- `nncodec`: the ISO neural network codec with dependent quantization; bits of its bitstream.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Generator, Tensor

from benchmarks.lib import environments
from benchmarks.lib.tensors import SEED, Sample, signal_to_noise
from tersor.factorization import methods
from tersor.factorization.additive import additive_bits
from tersor.factorization.decompose import decompose
from tersor.factorization.solve import Start
from tersor.tiling import Tiling

Point = tuple[float, float]
"""Bits per weight, SNR in dB."""

Curves = dict[str, list[Point]]
"""Points in order of their bits, by the setting that they were made with."""

TILES = (4, 8, 9)
CODEBOOK_BITS = 16
SUBSET = 1 << 16
"""Weights that additive quantization is fitted to."""

MOST_COLUMNS = {"kmeans": 8192, "additive": 512}
EXACT_KMEANS = 10_000_000
"""Distances of one iteration up to which k-means starts from k-means++ on all tiles."""

Floats = NDArray[np.float32]


def scalar(sample: Sample) -> Curves:
    """Steps apart by a factor of 2**(1/4), about a quarter of a bit."""
    low, high = span(sample.rates)
    step, points = 4 * float(sample.weight.std()), [(0.0, 0.0)]
    while points[-1][0] < high:
        factors = decompose(sample.weight, methods.scalar(step), tile=1).factors
        if factors.rank:
            bits = 8 * factors.nbytes / sample.numel
            points.append((bits, signal_to_noise(sample.weight, factors.recompose())))
        step *= 2**-0.25
    return {"": [p for p, after in pairwise(points) if after[0] > low]}


def span(rates: Sequence[float]) -> tuple[float, float]:
    """Bits per weight between which a curve is needed."""
    return 0.9 * min(rates), 1.05 * max(rates)


def kmeans(sample: Sample) -> Curves:
    """Numbers of columns that land just below and just above each rate."""
    return {f"tile {d}": kmeans_curve(sample, d) for d in TILES}


def kmeans_curve(sample: Sample, d: int) -> list[Point]:
    points: dict[int, Point] = {}
    for rate in sample.rates:
        aim = 1.03 * rate
        for _ in range(4):
            columns = columns_for(aim, d, sample)
            if columns is None:
                break
            points[columns] = points.get(columns) or kmeans_point(sample, d, columns)
            if encloses(points.values(), rate):
                break
            bits = points[columns][0]
            aim += 1.3 * (rate - bits) if bits < rate else 0.97 * rate - bits
    return sorted(points.values())


def encloses(points: Iterable[Point], rate: float) -> bool:
    """Whether there are points closely below and above a rate."""
    bits = [b for b, _ in points]
    return any(0.92 < b / rate < 0.99 for b in bits) and any(1 <= b / rate < 1.1 for b in bits)


def columns_for(aim: float, d: int, sample: Sample) -> int | None:
    """Columns whose codebook and fixed-length indices take ``aim`` bits; None if out of reach."""
    tiles = Tiling(tuple(sample.weight.shape), d).count
    possible = range(2, min(MOST_COLUMNS["kmeans"], tiles // 2))

    def bits(k: int) -> float:
        return (tiles * math.log2(k) + CODEBOOK_BITS * d * k) / sample.numel

    place = bisect_left(possible, aim, key=bits)
    return possible[place] if place < len(possible) else None


def kmeans_point(sample: Sample, d: int, columns: int) -> Point:
    tiling = Tiling(tuple(sample.weight.shape), d)
    tiles = tiling.split(sample.weight).T.contiguous().numpy()
    centers, labels = cluster(tiles, columns)
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    index_bits = -float((shares * np.log2(shares)).sum()) * len(labels)
    rebuilt = tiling.join(torch.from_numpy(centers.astype(np.float16)[labels].T.astype(np.float32)))
    bits = (index_bits + CODEBOOK_BITS * d * columns) / sample.numel
    return bits, signal_to_noise(sample.weight, rebuilt)


def cluster(tiles: Floats, columns: int) -> tuple[Floats, NDArray[np.int32]]:
    """K-means; for many tiles and columns, on from where mini-batches lead."""
    if len(tiles) * columns <= EXACT_KMEANS:
        found = KMeans(columns, n_init=1, max_iter=50, random_state=SEED).fit(tiles)
        return found.cluster_centers_, found.labels_
    batches = {"batch_size": 8192, "init_size": 3 * columns, "max_iter": 5, "reassignment_ratio": 0}
    start = MiniBatchKMeans(columns, n_init=1, random_state=SEED, **batches).fit(tiles)
    found = KMeans(columns, init=start.cluster_centers_, n_init=1, max_iter=8).fit(tiles)
    return found.cluster_centers_, found.labels_


def additive(sample: Sample) -> Curves:
    """The most columns that fit into 0.97 of each rate, and the least that exceed it."""
    return {f"tile {d}": additive_curve(sample, d) for d in TILES}


def additive_curve(sample: Sample, d: int) -> list[Point]:
    tiles = Tiling(tuple(sample.weight.shape), d).count

    def bits(columns: int) -> float:
        return additive_bits(columns, 2, d, tiles) / sample.numel

    possible = range(3, min(MOST_COLUMNS["additive"], tiles // 4))
    places = {bisect_left(possible, 0.97 * r, key=bits) - 1 for r in sample.rates}
    places |= {bisect_left(possible, r, key=bits) for r in sample.rates}
    counts = [possible[p] for p in sorted(places) if 0 <= p < len(possible)]
    part = some_tiles(sample.weight, d)
    return [(bits(columns), additive_snr(part, columns)) for columns in counts]


def some_tiles(weight: Tensor, d: int) -> Tensor:
    """Evenly spaced tiles, one in a row, as many as `SUBSET` weights hold."""
    tiles = Tiling(tuple(weight.shape), d).split(weight).T
    count = min(len(tiles), SUBSET // d)
    return tiles[torch.arange(count) * len(tiles) // count].contiguous()


def additive_snr(tiles: Tensor, columns: int) -> float:
    method = methods.additive_vector_quantization(columns, 2)
    method = replace(method, start=residual_start(columns), iterations=25, dtype=torch.float32)
    factors = decompose(tiles, method, tile=tiles.shape[1], seed=SEED).factors
    return signal_to_noise(tiles, factors.recompose())


def residual_start(columns: int) -> Callable[[Tensor, Generator], Start]:
    """K-means with half of the columns, then with the others on what is left."""

    def start(tiles: Tensor, generator: Generator) -> Start:
        codebooks, latents, left = [], [], tiles
        for share in (columns // 2, columns - columns // 2):
            found = KMeans(share, n_init=1, max_iter=25, random_state=SEED).fit(left.T.numpy())
            codebook = torch.from_numpy(found.cluster_centers_.T.copy())
            labels = torch.from_numpy(found.labels_).long()
            codebooks.append(codebook)
            latents.append(torch.zeros(share, len(labels)).scatter(0, labels[None], 1.0))
            left = left - codebook[:, labels]
        return torch.cat(codebooks, dim=1), torch.cat(latents)

    return start


def nncodec(sample: Sample) -> Curves:
    """Every quantization parameter between the rates, for several weights of the rate."""
    low, high = span(sample.rates)
    program = Path(__file__).with_name("nncodec_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weight.npy"
        np.save(path, sample.weight.numpy())
        command = [environments.python_with("nncodec"), program, path, str(low), str(high)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    curves = json.loads(output)
    return {f"rate weight {w}": [(b, s) for b, s in points] for w, points in curves.items()}


PEERS: dict[str, Callable[[Sample], Curves]] = {
    "kmeans": kmeans,
    "scalar": scalar,
    "additive": additive,
    "nncodec": nncodec,
}
