# SPDX-License-Identifier: Apache-2.0
"""Pairs of sentences whose likeness people judged: STS-B."""

from __future__ import annotations

import csv
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.lib.places import data_folder

PAIRS = 500


def rows(split: str) -> list[list[str]]:
    with (data_folder() / f"sts-{split}.csv").open(encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def texts(part: str, count: int = 1024) -> list[list[str]]:
    """Sentences that come one by one, 32 of about one length in each list."""
    split = "train" if part == "calibration" else "dev"
    found = sorted([row[5] for row in rows(split)[:count]], key=len)
    return [found[i : i + 32] for i in range(0, len(found), 32)]


def spearman(embed: Callable[[list[str]], Tensor]) -> float:
    """Correlation of ranks, times 100, on the first pairs of the test split."""
    from scipy.stats import spearmanr

    pairs = sorted(rows("test")[:PAIRS], key=lambda row: len(row[5]))
    found: list[float] = []
    for i in range(0, PAIRS, 32):
        part = pairs[i : i + 32]
        one, other = (embed([row[n] for row in part]) for n in (5, 6))
        found += torch.cosine_similarity(one, other, dim=1).tolist()
    return 100 * float(spearmanr(found, [float(row[4]) for row in pairs]).statistic)
