# SPDX-License-Identifier: Apache-2.0
"""SNR against bits of NNCodec (ISO/IEC 15938-17), in an environment of its own.

Needs numpy and nncodec only. Reads one weight; prints, as JSON, a list of [bits per weight, SNR in
dB] for each weight of the rate in the trellis search. NNCodec leaves that weight at zero unless
told otherwise; others do better at most rates. Dependent quantization is on; bits are those of the
whole bitstream.

    python benchmarks/lib/peers/nncodec_peer.py WEIGHT.npy LOW HIGH
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from nncodec import nnc

QP_PER_OCTAVE = 4
"""Quantization parameters from a step to half of it."""

RATE_WEIGHTS = (0.0, 0.5, 1.0, 1.5)
MOST_STEPS = 24

Point = tuple[float, float]


def measure(weight: np.ndarray, qp: int, rate_weight: float) -> Point:
    """Bits per weight and SNR at a quantization parameter, of the weight that is decoded."""
    bitstream = nnc.compress(
        {"weight": weight},
        bitstream_path=os.devnull,
        qp=qp,
        lambda_scale=rate_weight,
        use_dq=True,
        row_skipping=True,
        return_bitstream=True,
    )
    rebuilt = nnc.decompress(bytearray(bitstream))["weight"]
    noise = float(((weight - rebuilt).astype(np.float64) ** 2).sum())
    signal = float((weight.astype(np.float64) ** 2).sum())
    return 8 * len(bitstream) / weight.size, 10 * math.log10(signal / max(noise, 1e-30))


def sweep(weight: np.ndarray, rate_weight: float, low: float, high: float) -> list[Point]:
    """Points from below ``low`` to above ``high`` bits per weight, if there are such."""
    middle = round(QP_PER_OCTAVE * math.log2(float(weight.std())))
    points = walk(weight, rate_weight, range(middle, middle + MOST_STEPS), lambda b: b < low)
    points += walk(
        weight, rate_weight, range(middle - 1, middle - MOST_STEPS, -1), lambda b: b > high
    )
    return sorted(points)


def walk(
    weight: np.ndarray, rate_weight: float, parameters: range, done: Callable[[float], bool]
) -> list[Point]:
    """Points at these quantization parameters, until one's bits are beyond the range."""
    points: list[Point] = []
    for qp in parameters:
        points.append(measure(weight, qp, rate_weight))
        if done(points[-1][0]):
            break
    return points


def main() -> None:
    path, low, high = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        weight = np.load(path).astype(np.float32)
        os.chdir(folder)
        curves = {w: sweep(weight, w, float(low), float(high)) for w in RATE_WEIGHTS}
    print(json.dumps(curves))


if __name__ == "__main__":
    main()
