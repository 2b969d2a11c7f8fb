# SPDX-License-Identifier: Apache-2.0
"""Compute the quantities that change in a run: learning rate, budget, and which parameters move."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.training.rounding import DIGITS

_WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

_TIGHTENING = 0.5
"""Share of the steps in which the budget goes from the first to the last size."""

MOVING = 0.85
"""Share of the steps in which latents move. After it the other parameters adapt to the latents."""

_SETTLING = 0.95
"""Share of the steps after which running statistics are a mean over all later batches."""


@dataclass(frozen=True)
class Schedule:
    """Schedule of a run.

    Parameters
    ----------
    steps
        Number of steps of the optimizer, 1 or more.
    start_size, target_size
        Bytes of the file at the beginning and at the end.
    digits
        Binary digits of biases and normalisation parameters.
    """

    steps: int
    start_size: int
    target_size: int
    digits: int = DIGITS

    def rate(self, step: int) -> float:
        """Return the factor of the learning rates.

        It is a linear warm-up, then half a cosine (Loshchilov, 2017).
        """
        warm_up = min(1.0, (step + 1) / max(1.0, _WARM_UP * self.steps))
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def size(self, step: int) -> float:
        """Return the bytes that the file may have. Each step multiplies them by the same factor."""
        done = min(1.0, step / (_TIGHTENING * self.steps))
        return float(self.start_size * (self.target_size / self.start_size) ** done)

    def latents_move(self, step: int) -> bool:
        """Return whether a step changes latents."""
        return step < MOVING * self.steps

    def statistics_average(self, step: int) -> int:
        """Return how many steps running statistics are averaged over so far, this one included.

        The number is 0 before the averaging begins.
        """
        return max(0, step - math.ceil(_SETTLING * self.steps) + 1)
