"""What the integers of a weight cost: worked out once for the loss, the budget and the search."""

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
    """Bits and prices of a latent as it is computed with.

    Parameters
    ----------
    analysis
        Bits of each row, and the prices at which a coder ends.
    states
        States of the trellis that it is coded with.
    """

    analysis: _native.Analysis
    states: int

    @property
    def bits(self) -> float:
        """Bits of the whole latent."""
        return float(sum(self.analysis.bits))


_LAST: WeakKeyDictionary[FactoredWeight, tuple[Tensor, int, Cost]] = WeakKeyDictionary()
"""Costs of projected latents, with these latents, and how often they had been written to."""


def cost_of(weight: FactoredWeight) -> Cost:
    """What the latent of a weight costs as it is computed with.

    Remembered until it is projected anew: a byte for each integer.
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
