# SPDX-License-Identifier: Apache-2.0
"""Layers with random factors, and what times them: in turn, with weights that no cache holds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from tersor.factorization.weights import BINARY
from tersor.factors import Factors
from tersor.nn.frozen import LookupWeight, PackedWeight

CACHE = 64_000_000
"""Bytes of weights to rotate among: more than the caches of common processors."""

SPREADS = {4: 2.0, 2: 0.37}
"""Standard deviation of the latent before rounding, by bits of a code."""

LAYERS: list[tuple[type[PackedWeight], int]] = [
    *((PackedWeight, bits) for bits in SPREADS),
    *((LookupWeight, bits) for bits in (2, 1)),
]
"""Forms of layers, and bits per weight."""

Product = Callable[[Tensor], Tensor]


def factors_of(form: type[PackedWeight], size: int, bits: int) -> Factors:
    return binary_of(size, bits) if form is LookupWeight else integers_of(size, bits)


def binary_of(size: int, bits: int) -> Factors:
    tile = BINARY // bits
    latent = (torch.randint(0, 2, (BINARY, size * -(-size // tile))) * 2 - 1).to(torch.int16)
    codebook = torch.randint(-100, 101, (tile, BINARY)).to(torch.int16)
    return Factors(codebook, latent, 1e-3, (size, size))


def integers_of(size: int, bits: int) -> Factors:
    tile = 32
    latent = torch.randn(tile, size * -(-size // tile)) * SPREADS[bits]
    codebook = torch.randint(-40, 41, (tile, tile)).to(torch.int16)
    return Factors(codebook, latent.round().to(torch.int16), 1e-3, (size, size))


def copies(nbytes: float) -> int:
    return max(2, min(200, round(CACHE / nbytes)))


def in_turn(products: list[Product], x: Tensor) -> Callable[[], Tensor]:
    """Another of the products in each call."""
    left = itertools.cycle(products)
    return lambda: next(left)(x)


def ratio(times: dict[str, list[float]], name: str) -> float:
    pairs = zip(times[name], times["tersor"], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)
