# SPDX-License-Identifier: Apache-2.0
"""How much smaller is the error of a layer's output if it, not the weight's error, is minimised?

Linear layers of MiniLM-L6, factored at equal bytes with and without second moments of their inputs.
These come from sentences of the STS training split; errors are measured with the moments of the dev
split, which neither solver has seen.

    python -m benchmarks.quality.calibration [--bits 1 2] [--sentences 512] [--layers 0 3 5]
"""

from __future__ import annotations

import argparse
import csv
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tersor
from benchmarks.lib import minilm, parts, record
from benchmarks.lib.places import data_folder
from tersor.coding import records
from tersor.factorization import tiles
from tersor.factorization.weights import factorize_weight


def batches(split: str, count: int, tokenizer: Any) -> Iterator[dict[str, Tensor]]:
    with (data_folder() / f"sts-{split}.csv").open(encoding="utf-8") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        sentences = [row[5] for row, _ in zip(rows, range(count), strict=False)]
    for start in range(0, count, 32):
        part = sentences[start : start + 32]
        yield dict(tokenizer(part, padding=True, return_tensors="pt"))


def output_error(weight: Tensor, restored: Tensor, moments: Tensor) -> float:
    """Error of the outputs over their power, in dB."""

    def power(matrix: Tensor) -> float:
        return float(((matrix @ moments) * matrix).sum(dtype=torch.float64))

    return 10 * math.log10(power(weight - restored) / power(weight))


def curve(weight: Tensor, moments: Tensor | None, seen: Tensor, bits: float) -> tuple[Any, Any]:
    """Bits per weight and output errors at steps around the asked rate."""
    step = float(weight.std()) * 2.0 ** (1 - bits)
    points = []
    size = tiles.choose(weight, step)
    for factor in (0.5, 0.7, 1.0, 1.4, 2.0):
        factors = factorize_weight(weight, size, factor * step, moments=moments)
        rate = 8 * records.encode(factors).nbytes / weight.numel()
        points.append((rate, output_error(weight, factors.recompose(), seen)))
    return tuple(np.array(sorted(points)).T)


def compare(name: str, weight: Tensor, known: Tensor, seen: Tensor, bits: float) -> dict[str, Any]:
    plain, calibrated = (
        float(np.interp(bits, *curve(weight, m, seen, bits))) for m in (None, known)
    )
    print(f"{name:48} {bits:g} bits: {plain:7.2f} dB, calibrated {calibrated:7.2f} dB", flush=True)
    return {"tensor": name, "bits": bits, "plain_db": plain, "calibrated_db": calibrated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 5])
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm.model_folder())
    model: nn.Module = AutoModel.from_pretrained(minilm.model_folder()).eval()
    known, seen = (
        tersor.calibrate(model, batches(split, options.sentences, tokenizer))
        for split in ("train", "dev")
    )
    wanted = tuple(f"encoder.layer.{i}." for i in options.layers)
    names = [n for n in known.moments if n.startswith(wanted)]
    weights = dict(model.named_parameters())
    rows = [
        compare(n, weights[n].detach(), known.regularized(n), seen.moments[n], bits)
        for bits in options.bits
        for n in names
    ]
    for bits in options.bits:
        gains = [r["plain_db"] - r["calibrated_db"] for r in rows if r["bits"] == bits]
        print(f"{bits:g} bits: {sum(gains) / len(gains):.2f} dB lower on average of {len(gains)}")
    record.write("calibration", rows, measures=parts.CALIBRATED, sentences=options.sentences)


if __name__ == "__main__":
    main()
