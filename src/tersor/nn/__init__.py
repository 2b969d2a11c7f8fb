"""Models that hold factors instead of dense weights: dense model <-> factored model."""

from tersor.nn.convert import insert_factors, set_mode, state
from tersor.nn.held import HeldWeight
from tersor.nn.weight import FactoredWeight, Mode

__all__ = ["FactoredWeight", "HeldWeight", "Mode", "insert_factors", "set_mode", "state"]
