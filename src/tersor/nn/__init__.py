# SPDX-License-Identifier: Apache-2.0
"""Hold factors in models instead of dense weights: dense model <-> factored model."""

from tersor.nn.convert import insert_factors, state
from tersor.nn.held import HeldWeight
from tersor.nn.weight import FactoredWeight

__all__ = ["FactoredWeight", "HeldWeight", "insert_factors", "state"]
