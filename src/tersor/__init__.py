"""Terse tensors: make a trained PyTorch model many times smaller, and run it from its file."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from tersor.version import __version__

if TYPE_CHECKING:
    from tersor.calibration import Calibration, calibrate
    from tersor.errors import (
        BudgetError,
        FileFormatError,
        InputError,
        QualityWarning,
        TersorError,
        TrainingError,
    )
    from tersor.factoring import factorize
    from tersor.factorization.decompose import Solution
    from tersor.factors import Factors
    from tersor.files import inspect, load, load_state_dict, open, save
    from tersor.finetune import Finetuned, finetune
    from tersor.folding import fold_normalization
    from tersor.models import compress
    from tersor.normalization import match_normalization
    from tersor.optimize import Optimized, optimize
    from tersor.output_error import held_out, output_error
    from tersor.reconstruction import reconstruct
    from tersor.storage.opened import OpenFile
    from tersor.storage.summary import Report, TensorSummary
    from tersor.training.groups import parameter_groups
    from tersor.training.projection import Projection, project
    from tersor.training.rate_loss import rate_loss

__all__ = [
    "BudgetError",
    "Calibration",
    "Factors",
    "FileFormatError",
    "Finetuned",
    "InputError",
    "OpenFile",
    "Optimized",
    "Projection",
    "QualityWarning",
    "Report",
    "Solution",
    "TensorSummary",
    "TersorError",
    "TrainingError",
    "__version__",
    "calibrate",
    "compress",
    "factorize",
    "finetune",
    "fold_normalization",
    "held_out",
    "inspect",
    "load",
    "load_state_dict",
    "match_normalization",
    "open",
    "optimize",
    "output_error",
    "parameter_groups",
    "project",
    "rate_loss",
    "reconstruct",
    "save",
]

_HOMES = {
    "calibration": "Calibration calibrate",
    "errors": "BudgetError FileFormatError InputError QualityWarning TersorError TrainingError",
    "factoring": "factorize",
    "factorization.decompose": "Solution",
    "factors": "Factors",
    "files": "inspect load load_state_dict open save",
    "finetune": "Finetuned finetune",
    "folding": "fold_normalization",
    "models": "compress",
    "normalization": "match_normalization",
    "optimize": "Optimized optimize",
    "output_error": "held_out output_error",
    "reconstruction": "reconstruct",
    "storage.opened": "OpenFile",
    "storage.summary": "Report TensorSummary",
    "training.groups": "parameter_groups",
    "training.projection": "Projection project",
    "training.rate_loss": "rate_loss",
}
"""Public names by the module that has them, imported at first use: torch takes seconds to start."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    value: object = getattr(import_module(f"tersor.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps public functions from being hidden by modules of the same names, once imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
