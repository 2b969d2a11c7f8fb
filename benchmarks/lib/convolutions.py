# SPDX-License-Identifier: Apache-2.0
"""Rows about convolutions for `speed.kernels`: a layer from its factors, against torch in fp32.

Factors by lists, of random ones with 16 columns and a spread at which a tile of 3 x 3 has about two
nonzeros or one, and of those that the default finds for normal weights; and the same weight dense,
by Winograd's algorithm. The baseline is torch with images and weights channels last, which is
the faster of its two orders.
"""

from __future__ import annotations

import copy
import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from benchmarks.lib.layers import Product, copies, in_turn, ratio
from benchmarks.lib.turns import seconds
from tersor.factors import Factors
from tersor.nn.convolution import LargeTiledWeight, ListedWeight, PackedConvolution, TiledWeight

CASES = [(256, 14, "k = 16", 0.30), (256, 14, "k = 16", 0.24), (256, 14, "default", 1.0),
         (64, 8, "default", 1.0), (16, 32, "default", 1.0)]  # fmt: skip
"""Channels, height and width, factors, and their spread or bits of a weight."""

FORMS: dict[str, type[PackedConvolution]] = {
    "lists": ListedWeight,
    "winograd 2": TiledWeight,
    "winograd 4": LargeTiledWeight,
}


def factors_of(channels: int, kind: str, number: float) -> Factors:
    shape = (channels, channels, 3, 3)
    if kind == "default":
        return tersor.factorize(torch.randn(shape), bits_per_weight=number).factors
    latent = (torch.randn(16, channels * channels) * number).round().to(torch.int16)
    return Factors(torch.randint(-40, 41, (9, 16)).to(torch.int16), latent, 1e-3, shape)


def ours(form: type[PackedConvolution], factors: Factors) -> list[Product]:
    module = nn.Conv2d(factors.shape[1], factors.shape[0], 3, padding=1, bias=False)
    first = form(factors, torch.float32)
    held = [first, *(copy.deepcopy(first) for _ in range(copies(first.nbytes) - 1))]
    return [lambda x, weight=weight: weight.convolve(module, x) for weight in held]


def by_torch(weight: Tensor, dtype: torch.dtype) -> list[Product]:
    last = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    weights = [last.clone() for _ in range(copies(last.nbytes))]
    if dtype == torch.float32:
        return [lambda x, w=w: F.conv2d(x, w, padding=1) for w in weights]
    return [lambda x, w=w: F.conv2d(x.to(dtype), w, padding=1).float() for w in weights]


def rows_of(case: tuple[int, int, str, float], runs: int) -> list[dict[str, object]]:
    channels, size, kind, number = case
    torch.manual_seed(0)  # the same factors, whatever was drawn before
    factors = factors_of(channels, kind, number)
    weight = factors.recompose()
    x = torch.randn(1, channels, size, size).relu()
    last = x.contiguous(memory_format=torch.channels_last)
    wanted = F.conv2d(x, weight, padding=1)
    kinds = {name: ours(form, factors) for name, form in FORMS.items()}
    theirs = {"torch fp32": by_torch(weight, torch.float32)}
    theirs |= {"torch bf16": by_torch(weight, torch.bfloat16)}
    times: dict[str, list[float]] = {name: [] for name in kinds | theirs}
    each = {name: in_turn(products, x) for name, products in kinds.items()}
    each |= {name: in_turn(products, last) for name, products in theirs.items()}
    for turn in range(-1, runs):  # what a first call prepares is not timed
        for name, run in each.items():
            spent = seconds(run, torch.get_num_threads())
            times[name] += [spent] if turn >= 0 else []
    found: list[dict[str, object]] = []
    for name, products in kinds.items():
        error = float((products[0](x) - wanted).norm() / wanted.norm())
        assert error < 1e-3, error
        against = {other: ratio(times | {"tersor": times[name]}, other) for other in theirs}
        found.append(
            {
                "op": "conv2d",
                "kernel": name,
                "shape": list(factors.shape),
                "image": [size, size],
                "batch": 1,
                "factors": f"{kind}, d = {factors.tiling.size}, k = {factors.rank}",
                "bits": factors.bits_per_weight,
                "threads": torch.get_num_threads(),
                "seconds": statistics.median(times[name]),
                "ratio_fp32": against["torch fp32"],
                "best_peer": "torch bf16",
                "ratio_best_peer": against["torch bf16"],
                "error": error,
            }
        )
        print(
            f"3 x 3, {channels} channels, {size} x {size}, {found[-1]['factors']}, "
            f"{factors.bits_per_weight:.2f} bits, {name}, {found[-1]['threads']} threads: "
            f"{statistics.median(times[name]) * 1e3:.3f} ms, "
            f"{against['torch fp32']:.2f} x fp32, error {error:.5f}",
            flush=True,
        )
    return found


def rows(runs: int) -> list[dict[str, object]]:
    """Of all cases, with as many threads as torch has."""
    return [row for case in CASES for row in rows_of(case, runs)]
