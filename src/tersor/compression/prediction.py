# SPDX-License-Identifier: Apache-2.0
"""Predict the error of a compressed model from calibration, and warn of inputs it never saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tersor.calibration.calibrate import Calibration
from tersor.calibration.moments import energy
from tersor.storage import doubts
from tersor.storage.archive import Archive
from tersor.storage.summary import Report
from tersor.tiling import as_float32


def with_calibration(
    report: Report, archive: Archive, load: Callable[[str], Tensor], calibration: Calibration
) -> Report:
    """Return the report with the predicted error and the warnings that follow from calibration.

    Parameters
    ----------
    report, archive
        Report and archive of the compressed model.
    load
        Function that returns the dense weight of a name.
    calibration
        Calibration of the dense model.

    Returns
    -------
    Report
        The report with new predicted error and warnings. The old predicted error stays if
        calibration has measured no importance.
    """
    predicted = predicted_error(archive, load, calibration)
    calibrated = predicted is not None
    if predicted is None:
        predicted = report.predicted_error
    found = doubts.doubts(
        report.tensors,
        predicted=predicted,
        measured=report.output_error,
        calibrated=calibrated,
    )
    found += unseen(calibration)
    return replace(report, predicted_error=predicted, calibrated=calibrated, warnings=found)


def predicted_error(
    archive: Archive, load: Callable[[str], Tensor], calibration: Calibration
) -> float | None:
    """Return the expected relative error of a model's outputs, or None if no importance is known.

    The squared errors that the weights cause are taken to add up. The result is the square root of
    their sum.

    Parameters
    ----------
    archive
        Archive of the compressed model.
    load
        Function that returns the dense weight of a name.
    calibration
        Calibration of the dense model.

    Returns
    -------
    float or None
        Relative error: the norm of the difference divided by the norm of the dense outputs.
    """
    known = [n for n in calibration.importance if n in archive.entries and archive.is_factored(n)]
    errors = ((n, as_float32(load(n)) - as_float32(archive.tensor(n))) for n in known)
    squares = [
        calibration.importance[name]
        * energy(calibration.oriented(name, error), calibration.metric(name))
        for name, error in errors
    ]
    return math.sqrt(sum(squares)) if squares else None


def unseen(calibration: Calibration) -> tuple[str, ...]:
    """Return warnings about weights that calibration says nothing about, one for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in calibration.unseen.items():
        by_reason.setdefault(reason, []).append(repr(name))
    return tuple(
        f"calibration did not see whether errors of {doubts.listed(names)} matter: {reason}. Give "
        "batches that use all of the model and of its inputs, or keep such weights (--keep)"
        for reason, names in by_reason.items()
    )
