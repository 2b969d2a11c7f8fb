# SPDX-License-Identifier: Apache-2.0
"""Terse tensors: make a trained PyTorch model many times smaller, and run it from its file."""

from importlib import import_module
from typing import TYPE_CHECKING

from tersor.version import __version__

if TYPE_CHECKING:
    from tersor import export as export
    from tersor import lowrank as lowrank
    from tersor.calibration.calibrate import Calibration, calibrate
    from tersor.calibration.folding import fold_normalization
    from tersor.calibration.normalization import match_normalization
    from tersor.calibration.output_error import held_out, output_error
    from tersor.compression.api import compress
    from tersor.compression.factorize import factorize
    from tersor.compression.reconstruction import reconstruct
    from tersor.errors import (
        BudgetError,
        FileFormatError,
        InputError,
        QualityWarning,
        TersorError,
        TrainingError,
    )
    from tersor.factorization.decompose import Solution
    from tersor.factors import Factors
    from tersor.inference.optimize import Optimized, optimize
    from tersor.io import inspect, load, load_state_dict, open, save
    from tersor.storage.opened import OpenFile
    from tersor.storage.summary import Report, TensorSummary
    from tersor.training.finetune import Finetuned, finetune
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
    "calibration.calibrate": "Calibration calibrate",
    "calibration.folding": "fold_normalization",
    "calibration.normalization": "match_normalization",
    "calibration.output_error": "held_out output_error",
    "compression.api": "compress",
    "compression.factorize": "factorize",
    "compression.reconstruction": "reconstruct",
    "errors": "BudgetError FileFormatError InputError QualityWarning TersorError TrainingError",
    "factorization.decompose": "Solution",
    "factors": "Factors",
    "inference.optimize": "Optimized optimize",
    "io": "inspect load load_state_dict open save",
    "storage.opened": "OpenFile",
    "storage.summary": "Report TensorSummary",
    "training.finetune": "Finetuned finetune",
    "training.groups": "parameter_groups",
    "training.projection": "Projection project",
    "training.rate_loss": "rate_loss",
}
"""Public names by the module that defines them. Each is imported when it is first used, since
torch takes seconds to import."""

_PACKAGES = ("export", "lowrank")
"""Public packages, imported when they are first used."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"tersor.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    value: object = getattr(import_module(f"tersor.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
