# SPDX-License-Identifier: Apache-2.0
"""The known decompositions and the default, of one weight, by the same function, in one picture.

Writes results/unification.json, and from it docs/unification.md and its picture. With --page only
the page and the picture are made again. How bits are counted is what each function here says.

    python -m benchmarks.quality.unification [--page]
"""

from __future__ import annotations

import argparse
import inspect
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import tersor
from benchmarks.lib import parts, record
from benchmarks.lib.places import ROOT
from benchmarks.lib.template import fill
from benchmarks.lib.tensors import bound, samples, signal_to_noise
from tersor.factorization import methods
from tersor.factors import Factors

SOURCE, TENSOR = "resnet20", "layer3.1.conv1.weight"
PICTURE, PAGE = ROOT / "docs" / "unification.png", ROOT / "docs" / "unification.md"
REAL_BITS = (2, 3, 4, 6, 8)
"""Bits that real numbers are rounded to; those that suit a setting best count."""

WORTH = 4
"""What a bit per weight is worth in dB, about: slopes of these methods' curves are 3 to 5."""

SCALE_BITS = 16
LIMITS = (0.4, 3.6)
"""Bits per weight that are shown."""

Row = dict[str, Any]
NAMES = {
    "default": "tersor's default",
    "scalar": "scalar quantization",
    "additive": "additive VQ, 2 columns",
    "vq": "vector quantization",
    "sparse": "sparse PCA",
    "svd": "weight SVD",
    "own": "latents of powers of two",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="of the numbers that there are")
    if not parser.parse_args().page:
        measure()
    content = record.content("unification")
    picture(content)
    PAGE.write_text(page(content))
    print(f"wrote {PAGE.relative_to(ROOT)}")


def measure() -> None:
    weight = next(s.weight for s in samples(SOURCE) if s.name == TENSOR)
    rows = []
    for method in (default, scalar, vector_quantization, additive, sparse, svd, own):
        for row in method(weight):
            rows.append(row)
            print(f"{row['method']}, {row['setting']}: {row['bits']:.3f} bits, {row['snr']:.2f} dB")
    grid = [round(float(b), 3) for b in np.linspace(*LIMITS, 33)]
    bounds = [[b, bound(weight, b)] for b in grid]
    shape = list(weight.shape)
    facts = {"source": SOURCE, "tensor": TENSOR, "shape": shape, "row_gain": row_gain(weight)}
    record.write("unification", rows, measures=parts.SOLVER, **facts, bound=bounds)


def default(weight: Tensor) -> Iterator[Row]:
    """Coded bytes, everything included."""
    for bits in (0.5, 1, 1.5, 2, 2.5, 3):
        start = time.perf_counter()
        solution = tersor.factorize(weight, bits_per_weight=bits)
        factors, seconds = solution.factors, time.perf_counter() - start
        setting = f"bits_per_weight={bits}"
        found = row("default", setting, weight, factors, 8 * factors.nbytes, seconds)
        yield found | {"status": solution.status, "history": list(solution.history)}


def scalar(weight: Tensor) -> Iterator[Row]:
    """Coded bytes, everything included: integers by the entropy coder of the default."""
    deviation = float(weight.square().mean().sqrt())
    for share in (3, 2.2, 1.8, 1.4, 1.1, 0.9, 0.7, 0.5):
        step = float(f"{share * deviation:.2g}")
        start = time.perf_counter()
        solution = tersor.factorize(weight, method=methods.scalar(step), tile=1)
        factors, seconds = solution.factors, time.perf_counter() - start
        yield row("scalar", f"step={step}", weight, factors, 8 * factors.nbytes, seconds)


def vector_quantization(weight: Tensor) -> Iterator[Row]:
    """Entropy of the indices; codebook as real numbers."""
    settings = [(9, 2**i) for i in range(3, 8)] + [(4, 2**i) for i in range(4, 9)]
    for tile, columns in [*settings, (3, 128), (3, 256), (2, 32), (2, 64)]:
        start = time.perf_counter()
        method = methods.vector_quantization(columns)
        factors = tersor.factorize(weight, method=method, tile=tile).factors
        seconds = time.perf_counter() - start
        counts = factors.latent.double().sum(dim=1)
        index_bits = float(-(counts * (counts / counts.sum()).log2()).sum())
        setting = f"columns={columns}, tile={tile}"
        for real in REAL_BITS:
            codebook, spent = rounded(factors.codebook, real)
            built = replaced(factors, codebook, factors.latent)
            yield row("vq", setting, weight, built, index_bits + spent, seconds, real)


def additive(weight: Tensor) -> Iterator[Row]:
    """log2 of the number of choices of a tile; codebook as real numbers."""
    settings = [(9, 2**i) for i in range(4, 8)] + [(4, 2**i) for i in range(4, 7)]
    for tile, columns in [*settings, (3, 16), (3, 32), (2, 8)]:
        start = time.perf_counter()
        method = methods.additive_vector_quantization(columns, 2)
        factors = tersor.factorize(weight, method=method, tile=tile).factors
        seconds = time.perf_counter() - start
        index_bits = factors.latent.shape[1] * math.log2(math.comb(columns, 2))
        setting = f"columns={columns}, count=2, tile={tile}"
        for real in REAL_BITS:
            codebook, spent = rounded(factors.codebook, real)
            built = replaced(factors, codebook, factors.latent)
            yield row("additive", setting, weight, built, index_bits + spent, seconds, real)


def sparse(weight: Tensor) -> Iterator[Row]:
    """log2 of the number of supports of a tile; codebook and nonzeros as real numbers."""
    for columns, nonzeros in (
        (9, 1),
        (16, 1),
        (32, 1),
        (64, 1),
        (9, 2),
        (16, 2),
        (32, 2),
        (64, 2),
        (16, 3),
        (32, 3),
    ):
        start = time.perf_counter()
        method = methods.dictionary_learning(columns, nonzeros, starts=1, restarts=0)
        factors = tersor.factorize(weight, method=method).factors
        seconds = time.perf_counter() - start
        tiles = factors.latent.shape[1]
        support_bits = tiles * math.log2(math.comb(columns, nonzeros))
        for real in REAL_BITS:
            codebook, spent = rounded(factors.codebook, real)
            latent, _ = rounded(factors.latent.T, real)
            bits = support_bits + spent + tiles * nonzeros * real + SCALE_BITS * columns
            built = replaced(factors, codebook, latent.T)
            setting = f"columns={columns}, nonzeros={nonzeros}"
            yield row("sparse", setting, weight, built, bits, seconds, real)


def svd(weight: Tensor) -> Iterator[Row]:
    """Both factors as real numbers."""
    inputs = weight[0].numel()
    for rank in (4, 6, 8, 12, 16, 24, 32, 40, 48):
        start = time.perf_counter()
        factors = tersor.factorize(weight, method=methods.weight_svd(rank), tile=inputs).factors
        seconds = time.perf_counter() - start
        for real in REAL_BITS:
            codebook, left = rounded(factors.codebook, real)
            latent, right = rounded(factors.latent.T, real)
            built = replaced(factors, codebook, latent.T)
            setting = f"rank={rank}, tile={inputs}"
            yield row("svd", setting, weight, built, left + right, seconds, real)


def powers_of_two(y: Tensor) -> Tensor:
    """The nearest of 0 and the powers of two from 1/8, of either sign."""
    nearest = 2 ** (y.abs() / 0.75).log2().floor().clamp_min(-3)
    return torch.where(y.abs() < 1 / 16, 0, y.sign() * nearest)


def own(weight: Tensor) -> Iterator[Row]:
    """Entropy of the latent, row by row; codebook as real numbers."""
    start = time.perf_counter()
    factors = tersor.factorize(weight, method=powers_of_two).factors
    seconds, spent_on_latent = time.perf_counter() - start, 0.0
    for latents in factors.latent:
        counts = latents.unique(return_counts=True)[1].double()
        spent_on_latent -= float((counts * (counts / counts.sum()).log2()).sum())
    for real in REAL_BITS:
        codebook, spent = rounded(factors.codebook, real)
        built = replaced(factors, codebook, factors.latent)
        yield row("own", "powers_of_two", weight, built, spent_on_latent + spent, seconds, real)


def rounded(columns: Tensor, bits: int) -> tuple[Tensor, float]:
    """Columns on a uniform grid each, its scale the best of a few; the bits that they take."""
    largest = 2 ** (bits - 1) - 1
    step = columns.abs().amax(dim=0).clamp_min(1e-30) / largest
    best, least = columns, torch.full_like(step, math.inf)
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        grid = (columns / (share * step)).round().clamp(-largest, largest) * share * step
        error = (grid - columns).square().sum(dim=0)
        best, least = torch.where(error < least, grid, best), torch.minimum(error, least)
    return best, float(bits * columns.numel() + SCALE_BITS * columns.shape[1])


def replaced(factors: Factors, codebook: Tensor, latent: Tensor) -> Factors:
    return Factors(codebook, latent, factors.scale, factors.shape, factors.dtype)


def row(
    method: str,
    setting: str,
    weight: Tensor,
    factors: Factors,
    bits: float,
    seconds: float,
    real: int | None = None,
) -> Row:
    per_weight = bits / weight.numel()
    snr = signal_to_noise(weight, factors.recompose())
    size = {"bits": per_weight, "real_bits": real, "snr": snr, "bound": bound(weight, per_weight)}
    shape = {"tile": factors.tiling.size, "rank": factors.rank}
    return {"method": method, "setting": setting, **size, **shape, "seconds": round(seconds, 2)}


def best_of_settings(rows: list[Row], method: str) -> list[Row]:
    """Each setting with the bits of real numbers that suit it best, without those that another
    setting equals with fewer bits.

    Best is the greatest SNR less that of all bits that are spent: `WORTH` each, per weight.
    """
    settings: dict[str, Row] = {}
    for r in (r for r in rows if r["method"] == method):
        known = settings.setdefault(r["setting"], r)
        if gain(r) > gain(known):
            settings[r["setting"]] = r
    kept: list[Row] = []
    for r in sorted(settings.values(), key=lambda r: (r["bits"], -r["snr"])):
        if LIMITS[0] <= r["bits"] <= LIMITS[1] and (not kept or r["snr"] > kept[-1]["snr"]):
            kept.append(r)
    return kept


def gain(r: Row) -> float:
    return float(r["snr"] - WORTH * r["bits"])


def row_gain(weight: Tensor) -> float:
    """Arithmetic over geometric mean of the rows' variances, dB: worth so much at high rates."""
    variances = weight.double().flatten(1).square().mean(dim=1)
    return float(10 * (variances.mean().log10() - variances.log10().mean()))


def picture(content: Row) -> None:
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*content["bound"], strict=True), "k-", label="Gaussian bound")
    for (method, name), marker in zip(NAMES.items(), "o^Dsvx*", strict=True):
        points = best_of_settings(content["rows"], method)
        bits, snr = [r["bits"] for r in points], [r["snr"] for r in points]
        axes.plot(bits, snr, marker=marker, markersize=5, linewidth=1.2, label=name)
    shape = "x".join(map(str, content["shape"]))
    title = f"{content['tensor'].removesuffix('.weight')} of ResNet-20, {shape}"
    axes.set(title=title, xlabel="bits per weight", ylabel="SNR, dB", xlim=LIMITS)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=150)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def table(rows: list[Row], method: str) -> str:
    """Rows of the front, at most so many, evenly spaced."""
    points = best_of_settings(rows, method)
    if len(points) > 6:
        points = [points[round(i * (len(points) - 1) / 5)] for i in range(6)]
    real = points[0]["real_bits"] is not None
    head = ["setting", *(["bits of a real number"] if real else []), "bits per weight", "SNR, dB"]
    lines = ["| " + " | ".join([*head, "below the bound, dB"]) + " |"]
    lines.append("| --- |" + " ---: |" * len(head))
    for r in points:
        cells = [f"`{r['setting']}`", *([str(r["real_bits"])] if real else [])]
        cells += [f"{r['bits']:.3f}", f"{r['snr']:.2f}", f"{r['bound'] - r['snr']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(content: Row) -> str:
    """The page, in Markdown."""
    rows = content["rows"]
    return fill(
        "unification.md",
        **content,
        shown=next(r for r in rows if r["setting"] == "bits_per_weight=1.5"),
        tables={method: table(rows, method) for method in NAMES},
        scale_bits=SCALE_BITS,
        real_bits=REAL_BITS,
        powers_of_two=inspect.getsource(powers_of_two).strip(),
    )


if __name__ == "__main__":
    main()
