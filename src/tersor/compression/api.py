"""Compress a model in place."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from tersor.calibration.calibrate import Calibration
from tersor.compression.driver import compress_source
from tersor.compression.overrides import Overrides
from tersor.compression.prediction import with_calibration
from tersor.compression.quality import Quality, evaluated
from tersor.errors import InputError, QualityWarning
from tersor.nn.checks import check_model, check_references, holding_problem
from tersor.nn.fill import fill
from tersor.nn.sites import find_sites
from tersor.nn.source import source_of
from tersor.progress import shown
from tersor.storage import container
from tersor.storage.archive import Archive
from tersor.storage.classify import FEWEST_WEIGHTS
from tersor.storage.summary import Report, summarize
from tersor.tiling import is_tileable


def compress(
    model: nn.Module,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
    max_drop: float | None = None,
    evaluate: Callable[[nn.Module], object] | None = None,
    calibration: Calibration | None = None,
    keep: Sequence[str] = (),
    bits: Mapping[str, float] | None = None,
    fast: Sequence[str] = (),
) -> Report:
    """Replace the weights of a model by factors, in place, so that its file has the asked size.

    The model stays an ordinary module, trains as before and computes from the factors: exactly what
    `tersor.save` writes. Biases and normalisation parameters are rounded to 16 bits.

    Factors are held as numbers of 32 bits, to be trained: in memory, and in files of `torch.save`,
    the model is about as large as before. `tersor.save` writes the small file.

    Parameters
    ----------
    model
        Model with its trained weights, of any device and floating-point type.
    ratio
        Bytes of all parameters and buffers, tied ones once, over bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file over the number of weights. Exactly one of the three, or
        ``max_drop``, is to be given.
    max_drop
        How much lower ``evaluate`` may be for the result than for the model as it is, in its units:
        the file is as small as that allows. At most six evaluations are made.
    evaluate
        Takes a copy of the model and returns a number, higher for better models.
    calibration
        What `tersor.calibrate` saw in this model: the error of what the layers compute is then made
        small, instead of that of their weights.
    keep
        Patterns of names, such as ``"head.*"``, of weights that are to stay as they are.
    bits
        Bits per weight, at most, by patterns of names: ``{"conv1*": 4}``. The other weights share
        what is left.
    fast
        Patterns of names, such as ``"encoder.*"``, of matrices that are to be multiplied by fast:
        their latents are signs, which `tersor.optimize` looks up several at a time. That costs
        about as much accuracy as 0.2 bits per weight less do at 1 bit, and 0.4 at 2. Their bits
        come in steps (16 over the whole numbers), so that of few such weights less of the size may
        be used. Convolutions that match are factored as others are; `tersor.finetune` makes
        ordinary integers of signs.

    Returns
    -------
    Report
        What became of each tensor, and the size of the file.

    Raises
    ------
    BudgetError
        If the size cannot be reached, or is not below that of the model, or if half the size of the
        model drops more than it may.
    InputError
        If weights are NaN or infinite, a module cannot hold factors, a pattern matches no weight
        that would be factored, patterns contradict each other, or ``evaluate`` raises or does not
        return one finite number. The model is unchanged.

    Warns
    -----
    QualityWarning
        If weights got no bits, if outputs are predicted to differ by a quarter or more, from
        calibration or without data from the signal-to-noise ratio of the weakest weight, or if
        calibration saw no inputs of some weights. The texts are in ``Report.warnings`` too.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=10)
    >>> report.nbytes <= 4 * (64 * 64 + 64) / 10
    True
    """
    overrides = Overrides(keep, {} if bits is None else bits, fast)
    quality = _quality(model, max_drop, evaluate)
    check_model(model)
    source = source_of(model)
    check_modules(model, keep)
    with shown("compressing") as progress:
        archive = compress_source(
            source,
            ratio=ratio,
            target_size=target_size,
            bits_per_weight=bits_per_weight,
            quality=quality,
            calibration=calibration,
            overrides=overrides,
            measured=False,
            progress=progress,
        )
    report = summarize(archive, container.size(archive.unmeasured()))
    if calibration is not None:
        report = with_calibration(report, archive, source.load, calibration)
    fill(model, archive)
    for text in report.warnings if quality is None else ():  # else the user has measured it
        warnings.warn(text, QualityWarning, stacklevel=2)
    return report


def _quality(
    model: nn.Module, max_drop: float | None, evaluate: Callable[[nn.Module], object] | None
) -> Quality | None:
    if max_drop is None and evaluate is None:
        return None
    if max_drop is None or not callable(evaluate):
        raise InputError(
            "max_drop and evaluate, a function of the model, are needed together; got "
            f"{max_drop!r} and {evaluate!r}"
        )

    def measure(archive: Archive | None) -> float:
        trial = copy.deepcopy(model)
        if archive is not None:
            fill(trial, archive)
        return evaluated(evaluate, trial, "evaluate")

    return Quality(max_drop, measure)


def check_modules(model: nn.Module, keep: Sequence[str]) -> None:
    """Warn of weights that stay dense since their modules cannot hold factors; refuse only such.

    Those that are to be kept in any case, by patterns of names, are left out.

    Raises
    ------
    InputError
        If no weight of the model could be factored.
    """
    large = {
        name: site
        for name, site in find_sites(model).items()
        if is_tileable(site.weight.shape) and math.prod(site.weight.shape) >= FEWEST_WEIGHTS
        if not any(fnmatchcase(name, pattern) for pattern in keep)
    }
    problems = {name: holding_problem(site) for name, site in large.items()}
    unfactored = {n: p for n, p in problems.items() if p}
    check_references(model, (site.weight for n, site in large.items() if n not in unfactored))
    if not unfactored:
        return
    name, problem = next(iter(unfactored.items()))
    told = f"{name!r} belongs to a {type(large[name].module).__name__} {problem}"
    if len(unfactored) == len(large):
        raise InputError(told)
    others = f"; as do {len(unfactored) - 1} others" if len(unfactored) > 1 else ""
    warnings.warn(f"a weight stays as it is, uncompressed: {told}{others}", stacklevel=3)
