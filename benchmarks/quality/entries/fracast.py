# SPDX-License-Identifier: Apache-2.0
"""Fracast-0: forecasts of time series by shared dilated convolutions; 85 thousand parameters."""

from __future__ import annotations

import csv
import json
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures

PACKAGE, DATA = "fracast==0.1.0", "statsmodels==0.15.0"
SERIES = {
    "co2": ("co2",),
    "elnino": (),
    "sunspots": ("SUNACTIVITY",),
    "macrodata": ("realgdp", "realcons", "realinv", "unemp", "cpi", "m1", "tbilrate"),
    "elec_equip": ("STS.M.I7.W.TOVT.NS0016.4.000",),
}
"""Files of statsmodels, and the columns that are series; none for a year in each row."""

CONTEXT, HORIZON, MEDIAN = 2048, 48, 4


class Forecaster(nn.Module):
    """Series (n, 1, 2048) and where they are known -> quantiles of what follows, (n, 48, 9)."""

    def __init__(self) -> None:
        super().__init__()
        folder = store.folder(PACKAGE) / "fracast" / "weights"
        settings = json.loads((folder / "config.json").read_text())
        make = store.module(PACKAGE, "fracast._core.model").build_from_cfg
        self.core, self.head = make({key: settings[key] for key in ("model", "pyramid")})
        self.load_state_dict(load_file(folder / "model.safetensors"))

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        hidden = self.core(values, known, known.float())
        found: Tensor = self.head.forward_horizon(
            hidden, last_obs=values[:, 0, -1:], ctx=values[:, 0], ctx_mask=known[:, 0]
        )
        return found


def build() -> nn.Module:
    return Forecaster().eval()


@cache
def series() -> list[np.ndarray]:
    found = []
    for name, columns in SERIES.items():
        path = store.folder(DATA) / "statsmodels" / "datasets" / name / f"{name}.csv"
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if columns:
            values = [[row[column] for row in rows] for column in columns]
        else:
            values = [[value for row in rows for value in list(row.values())[1:]]]
        found += [np.array([float(v) for v in line if v], dtype=np.float32) for line in values]
    return found


@cache
def windows(part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts from 0 to 1, where they are known, and the 48 values that follow.

    Those for evaluation begin behind the first half of a series, the others end before.
    """
    contexts, futures = [], []
    for values in series():
        half = len(values) // 2
        first, last = (half, len(values)) if part == "held out" else (48, half)
        for end in range(first, last - HORIZON + 1, 24):
            contexts.append(values[max(0, end - CONTEXT) : end])
            futures.append(values[end : end + HORIZON])
    shown = torch.zeros(len(contexts), 1, CONTEXT)
    known = torch.zeros(len(contexts), 1, CONTEXT, dtype=torch.bool)
    for number, context in enumerate(contexts):
        low, span = context.min(), max(1e-5, context.max() - context.min())
        shown[number, 0, -len(context) :] = torch.from_numpy((context - low) / span)
        known[number, 0, -len(context) :] = True
        futures[number] = (futures[number] - low) / span
    return shown, known, torch.from_numpy(np.stack(futures))


def batches(part: str) -> list[tuple[Tensor, Tensor]]:
    shown, known, _ = windows(part)
    return list(zip(shown.split(4), known.split(4), strict=True))[
        : 16 if part == "calibration" else None
    ]


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    shown, _, future = windows("held out")
    median = torch.cat([model(a, b)[..., MEDIAN] for a, b in batches("held out")])
    error, naive = (median - future).abs().mean(), (shown[:, 0, -1:] - future).abs().mean()
    return {"error saved, %": 100 * float(1 - error / naive)}


ENTRY = Entry(
    purpose="forecasts",
    packages=(PACKAGE, DATA),
    licence="Apache-2.0",
    measure="error saved against the last value, %, 48 steps of 11 series",
    build=build,
    batches=batches,
    quality=quality,
)
