# SPDX-License-Identifier: Apache-2.0
"""Find weights of which the batches say nothing, and warn of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tersor.text import some

if TYPE_CHECKING:
    from tersor.calibration.calibrate import Calibration

SMALLEST = 1e-36
"""Mean squares below this count as zero, because their ridge would not be a normal number."""

NOT_CALLED = "no input reached it: its module was not called"

UNUSED = "the output does not depend on it"


def unseen_weights(found: Calibration, idle: Iterable[str], *, all_tried: bool) -> dict[str, str]:
    """Return the reason, by name, for weights without information or without effect."""
    reasons = {name: why for name, why in found.skipped.items() if why == NOT_CALLED}
    for name, moments in found.moments.items():
        if float(moments.diagonal(dim1=-2, dim2=-1).max()) <= SMALLEST:
            reasons[name] = "all its inputs were zero"
    if not found.importance:
        return reasons
    for name in idle:
        seen = all_tried and name in found.moments
        reasons.setdefault(name, UNUSED if seen else "noise in it does not change the output")
    return {name: reasons[name] for name in idle}  # a parent module reads the others


def warn_of_unseen(unseen: Mapping[str, str]) -> None:
    """Warn of weights without information, and of those without effect."""
    unknown = [f"{name!r} ({why})" for name, why in unseen.items() if why != UNUSED]
    unused = [repr(name) for name, why in unseen.items() if why == UNUSED]
    if unknown:
        warnings.warn(
            f"calibration says nothing about {some(unknown)}: compressed as without it. Give "
            "batches that reach all weights, with all arguments that the model takes",
            stacklevel=3,
        )
    if unused:
        warnings.warn(
            f"what the model returns does not depend on {some(unused)}: few bytes go there. "
            "Give batches, and a function 'output', for which it does, or keep these weights",
            stacklevel=3,
        )
