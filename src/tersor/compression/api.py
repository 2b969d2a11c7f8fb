# SPDX-License-Identifier: Apache-2.0
"""Compress a model in place."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tersor.calibration.calibrate import Calibration
from tersor.compression.driver import compress_source
from tersor.compression.effort import Effort
from tersor.compression.overrides import Overrides
from tersor.compression.post_training import PostTraining, freeze_folded, labelled, prepare
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
    data: Iterable[Any] | None = None,
    effort: Effort = "balanced",
    output: Callable[[Any, Any], Any] | None = None,
    calibration: Calibration | None = None,
    keep: Sequence[str] = (),
    bits: Mapping[str, float] | None = None,
    lookup: Sequence[str] = (),
) -> Report:
    """Replace the weights of a model by factors, in place, so that its file has the requested size.

    The model stays an ordinary module and trains as before. It computes from the factors, which are
    exactly those that `tersor.save` writes. Biases and normalisation parameters are rounded to 16
    bits.

    Factors are held as numbers of 32 bits so that they can be trained. The model therefore takes
    about as much memory as before, and about as many bytes in a file of `torch.save`. `tersor.save`
    writes the small file.

    With ``data``, a thousand typical inputs, far less is lost, above all at high ratios. The inputs
    show which weights matter, and layers make up for the errors of those before them. Nothing is
    trained, and labels are not needed.

    Parameters
    ----------
    model
        Model with its trained weights, on any device and of any floating-point type.
    ratio
        Bytes of all parameters and buffers, tied ones counted once, divided by bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file divided by the number of weights. Exactly one of ``ratio``,
        ``target_size``, ``bits_per_weight`` and ``max_drop`` must be given.
    max_drop
        Largest allowed drop of ``evaluate`` from the given model to the result, in the units of
        ``evaluate``. The file is as small as that allows. At most six evaluations are made.
    evaluate
        Function that takes a copy of the model and returns a number, higher for better models. It
        is needed with ``max_drop`` only.
    data
        Batches of typical inputs, such as a list or a DataLoader, as for `tersor.calibrate`. All
        are in memory at once. An eighth of them is held out to measure ``Report.output_error``.
    effort
        What is done with the data. ``"fast"``: `tersor.calibrate`, and `tersor.match_normalization`
        after compression. ``"balanced"``: `tersor.reconstruct` after compression. ``"best"``: that
        up to four times, as long as the error on held-out batches falls. In all cases,
        `tersor.fold_normalization` comes first where it changes nothing; biases that become zero
        are frozen.
    output
        Function of the model's return value and the batch, which returns the tensor or tensors that
        matter, as for `tersor.calibrate`. It is needed with ``data`` only.
    calibration
        Result of `tersor.calibrate` for this model, in place of ``data``, to do the steps yourself.
        The error of the layers' outputs is then made small, instead of the error of their weights.
    keep
        Patterns of names, such as ``"head.*"``, of weights that stay as they are.
    bits
        Largest bits per weight by pattern of names: ``{"conv1*": 4}``. The other weights share the
        remaining bytes.
    lookup
        Patterns of names, such as ``"encoder.*"``, of matrices that are to run on look-up kernels.
        Their latents are binary, several of which `tersor.optimize` looks up at a time. This costs
        about as much accuracy as 0.2 bits per weight fewer at 1 bit per weight, and 0.4 fewer at 2.
        Their bits per weight are 16 divided by a whole number, so that a model of few such weights
        may use less than the requested size. Convolutions that match are factored like other
        weights. `tersor.finetune` turns binary latents into ordinary integers.

    Returns
    -------
    Report
        How each tensor is stored, and the size of the file.

    Raises
    ------
    BudgetError
        If the size cannot be reached or is not below that of the model, or if a file of half the
        model's size drops more than ``max_drop``.
    InputError
        If weights are NaN or infinite, if a module cannot hold factors, if a pattern matches no
        weight that would be factored, if patterns contradict each other, if ``evaluate`` raises
        an error or does not return one finite number, or if the model cannot be called with the
        data. The model is then unchanged.

    Warns
    -----
    QualityWarning
        If weights got no bits, if outputs are predicted to differ by a quarter or more, or if
        calibration saw no inputs of some weights. The prediction comes from calibration, or,
        without it, from the signal-to-noise ratio of the weakest weight. The texts are also in
        ``Report.warnings``.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=10)
    >>> report.nbytes <= 4 * (64 * 64 + 64) / 10
    True
    """
    overrides = Overrides(keep, {} if bits is None else bits, lookup)
    check_model(model)
    prepared = _prepared(model, data, effort, output, calibration)
    dense = model if prepared is None else prepared.dense
    quality = _quality(model, max_drop, evaluate, prepared)
    source = source_of(dense)
    check_modules(model, keep)
    if prepared is not None:
        calibration = prepared.calibrate()
    with shown("compressing") as progress:
        archive = compress_source(
            source,
            ratio=ratio,
            target_size=target_size,
            bits_per_weight=bits_per_weight,
            quality=quality,
            mend=None if prepared is None else prepared.mend,
            calibration=calibration,
            overrides=overrides,
            measured=False,
            progress=progress,
        )
    report = _report(archive, prepared)
    if calibration is not None:
        report = with_calibration(report, archive, source.load, calibration)
    fill(model, archive)
    freeze_folded(model, dense)
    for text in report.warnings if quality is None else ():  # `evaluate` has measured the quality
        warnings.warn(text, QualityWarning, stacklevel=2)
    return report


def _prepared(
    model: nn.Module,
    data: Iterable[Any] | None,
    effort: Effort,
    output: Callable[[Any, Any], Any] | None,
    calibration: Calibration | None,
) -> PostTraining | None:
    if data is None:
        return None
    if calibration is not None:
        raise InputError("data and calibration are both given; data is calibrated with, give one")
    return prepare(model, data, effort, output)


def _report(archive: Archive, prepared: PostTraining | None) -> Report:
    size = container.size(archive.unmeasured())
    error = None if prepared is None else prepared.error_of(archive)
    return summarize(archive if error is None else labelled(archive, error), size)


def _quality(
    model: nn.Module,
    max_drop: float | None,
    evaluate: Callable[[nn.Module], object] | None,
    prepared: PostTraining | None,
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

    return (
        Quality(max_drop, measure)
        if prepared is None
        else Quality(max_drop, measure, prepared.mend)
    )


def check_modules(model: nn.Module, keep: Sequence[str]) -> None:
    """Warn of weights that stay dense because their modules cannot hold factors.

    Parameters
    ----------
    model
        The dense model.
    keep
        Patterns of names of weights that stay dense in any case, and are not checked.

    Raises
    ------
    InputError
        If no weight of the model can be factored for this reason, or if a weight that can be
        factored is also used from outside of the model's parameters.

    Warns
    -----
    UserWarning
        If some weights cannot be factored, while others can.
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
