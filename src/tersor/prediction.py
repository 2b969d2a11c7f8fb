"""What calibration says of a compressed model: the error to expect, and inputs it never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from tersor.calibration import NOT_CALLED, Calibration
from tersor.moments import energy
from tersor.storage import doubts
from tersor.storage.archive import Archive
from tersor.storage.summary import Report
from tersor.tiling import as_float32


def with_calibration(
    report: Report, archive: Archive, load: Callable[[str], Tensor], calibration: Calibration
) -> Report:
    """A report with the error that follows from calibration, and what calibration never saw.

    Parameters
    ----------
    report, archive
        Of the compressed model.
    load
        Gives the dense weight of a name.
    calibration
        Of the dense model.
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
    """Relative error to expect of a model's outputs, if the errors of its weights add up.

    None where no importance is known.
    """
    known = [n for n in calibration.importance if n in archive.entries and archive.is_factored(n)]
    squares = [
        calibration.importance[name]
        * energy(
            as_float32(load(name)) - as_float32(archive.tensor(name)), calibration.metric(name)
        )
        for name in known
    ]
    return math.sqrt(sum(squares)) if squares else None


def unseen(calibration: Calibration) -> tuple[str, ...]:
    """Warnings about weights whose inputs calibration did not see."""
    skipped = [name for name, reason in calibration.skipped.items() if reason == NOT_CALLED]
    silent = [n for n, m in calibration.moments.items() if not m.diagonal(dim1=-2, dim2=-1).any()]
    return (
        *_unseen(skipped, "no input reached"),
        *_unseen(silent, "nothing but zeros reached"),
    )


def _unseen(names: Sequence[str], what: str) -> list[str]:
    if not names:
        return []
    return [
        f"{what} {doubts.listed(list(map(repr, names)))} in calibration, so that nobody knows "
        "whether errors there matter. Calibrate with batches that use all of the model and all of "
        "its inputs, or keep such weights (--keep)"
    ]
