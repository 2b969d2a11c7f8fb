# SPDX-License-Identifier: Apache-2.0
"""Make a model of fewer operations: layers of low rank in the place of its own."""

from tersor.lowrank.decompose import Decomposed, LayerSummary, decompose
from tersor.lowrank.layers import restructure
from tersor.lowrank.vbmf import Estimate, vbmf

__all__ = ["Decomposed", "Estimate", "LayerSummary", "decompose", "restructure", "vbmf"]
