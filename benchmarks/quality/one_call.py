# SPDX-License-Identifier: Apache-2.0
"""What does one call with data give, by its effort, and what does it cost?

``tersor.compress(model, ratio=..., data=...)`` on the networks of `post_training`, with their
calibration inputs, of which an eighth is held out. Files are written, and evaluated when loaded
back in a fresh process. Rows that are there already are not measured again.

    python -m benchmarks.quality.one_call [--networks resnet20 ...] [--ratios 20 ...]
        [--efforts balanced ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, get_args

import torch

import tersor
from benchmarks.lib import parts, record
from benchmarks.quality.post_training import CASES, batches, evaluate_file
from tersor.compression.effort import Effort

NAME = "one_call"
EFFORTS = get_args(Effort)


def case_of(row: dict[str, Any]) -> tuple[str, float, int]:
    return row["network"], row["asked"], EFFORTS.index(row["effort"])


def measure(network: str, ratio: float, effort: Effort) -> dict[str, Any]:
    """Compress with one call, and evaluate the file."""
    case = CASES[network]()
    model, data = case.load(), batches(case)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = tersor.compress(model, ratio=ratio, data=data, effort=effort, output=case.output)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tersor"
        tersor.save(model, path)
        size, quality = path.stat().st_size, evaluate_file(network, path)
    return {
        "network": network,
        "asked": ratio,
        "effort": effort,
        "bytes": size,
        "quality": quality,
        "output_error": report.output_error,
        "processor_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=["resnet20", "resnet8"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[10, 16, 20, 32])
    parser.add_argument("--efforts", nargs="+", choices=EFFORTS, default=list(EFFORTS))
    options = parser.parse_args()
    torch.manual_seed(0)
    done = {case_of(row) for row in record.load(NAME)}
    for network in options.networks:
        for ratio in options.ratios:
            for effort in options.efforts:
                if (network, ratio, EFFORTS.index(effort)) in done:
                    continue
                row = measure(network, ratio, effort)
                told = (f"{name} {value}" for name, value in row.items())
                print(", ".join(told), flush=True)
                record.merge(NAME, [row], case_of, measures=parts.MODELS, seed=0)


if __name__ == "__main__":
    main()
