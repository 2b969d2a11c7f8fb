# SPDX-License-Identifier: Apache-2.0
"""Compute the bits of a weight's integers once, for the loss, the budget and the search."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from tersor import _native
from tersor.coding.entropy import reachable, trellis_of
from tersor.coding.rate import analyse
from tersor.nn import FactoredWeight
from tersor.tiling import coding_order


class Cost(NamedTuple):
    """Rate of the latent that a weight computes with.

    Parameters
    ----------
    analysis
        Bits of each row, and the costs of single integers in the final state of the adaptive
        coder.
    states
        States of the trellis that the latent is encoded with; 1 if there is no trellis.
    """

    analysis: _native.Analysis
    states: int

    @property
    def bits(self) -> float:
        """Return the bits of the whole latent."""
        return float(sum(self.analysis.bits))


_LAST: WeakKeyDictionary[FactoredWeight, tuple[Tensor, int, Cost]] = WeakKeyDictionary()
"""Last cost of each weight, with the projected latent that it belongs to. The number is the version
of this tensor, which PyTorch increases when somebody writes to it."""


def cost_of(weight: FactoredWeight) -> Cost:
    """Return the cost of the latent that a weight computes with.

    The cost of a projected latent is cached until the latent is projected again. The cache takes
    one byte for each integer.
    """
    coded, last = weight.coded, _LAST.get(weight)
    if last is not None and last[0] is coded and last[1] == coded._version:
        return last[2]
    rows = weight.tiling.slices
    ordered = coding_order(weight.stored_latent, rows).cpu()
    usual = reachable(ordered, rows, weight.states)
    states = weight.states if usual else trellis_of(ordered, rows)
    cost = Cost(analyse(ordered, rows, states), states)
    if coded is not None:
        _LAST[weight] = coded, coded._version, cost
    return cost
