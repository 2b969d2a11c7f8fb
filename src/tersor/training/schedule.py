"""What changes during a run: learning rates, the budget, and when the latents stop moving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tersor.training.rounding import DIGITS

_WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

_TIGHTENING = 0.5
"""Share of the steps in which the budget goes from the first to the last size."""

MOVING = 0.85
"""Share of the steps in which latents move; codebooks and the rest adapt to them afterwards."""

_SETTLING = 0.95
"""Share of the steps after which running statistics are averaged instead of followed."""


@dataclass(frozen=True)
class Schedule:
    """Plan of a run.

    Parameters
    ----------
    steps
        Steps of the optimizer in all, 1 or more.
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
        """Factor of the learning rates: linear warm-up, then half a cosine (Loshchilov, 2017)."""
        warm_up = min(1.0, (step + 1) / max(1.0, _WARM_UP * self.steps))
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def size(self, step: int) -> float:
        """Bytes that the file may have; every step takes the same share away."""
        done = min(1.0, step / (_TIGHTENING * self.steps))
        return float(self.start_size * (self.target_size / self.start_size) ** done)

    def latents_move(self, step: int) -> bool:
        """Whether this step changes latents."""
        return step < MOVING * self.steps

    def settling(self, step: int) -> int:
        """Steps that statistics are averaged over, this one included; 0 before the first."""
        return max(0, step - math.ceil(_SETTLING * self.steps) + 1)
