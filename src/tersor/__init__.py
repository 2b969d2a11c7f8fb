"""Terse tensors: make a trained PyTorch model many times smaller, and run it from its file."""

from tersor.calibration import Calibration, calibrate
from tersor.errors import BudgetError, FileFormatError, InputError, TersorError, TrainingError
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
from tersor.version import __version__

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
