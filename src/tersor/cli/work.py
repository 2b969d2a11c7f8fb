"""What commands about a checkpoint share: calibration, and going on where one was stopped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.cli.app import errors, say

if TYPE_CHECKING:  # what makes the start slow is imported where it is used
    from tersor.calibration import Calibration
    from tersor.storage.checkpoint import Source
    from tersor.storage.journal import Journal


def calibration_of(source: Source, model: str | None, loader: str | None) -> Calibration | None:
    """What the options --model and --calibrate ask for; notes go to standard error."""
    if model is None and loader is None:
        return None
    from tersor.user_code import calibrate_source

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"note: {message}", errors)
        calibration = calibrate_source(source, model, loader)
    for name, reason in calibration.skipped.items():
        say(f"note: {name} is compressed without calibration: {reason}", errors)
    return calibration


@contextmanager
def resuming(
    output: Path,
    source: Source,
    calibration: Calibration | None,
    options: Mapping[str, object],
) -> Iterator[Journal]:
    """The journal of what is worked out for an output, beside it; says how to go on if stopped."""
    from tersor.resume import identity
    from tersor.storage.journal import journaling

    path = output.with_name(f"{output.name}.partial")
    with journaling(path, identity(source, calibration, options)) as journal:
        if journal.note:
            say(f"note: {journal.note}", errors)
        try:
            yield journal
        except (KeyboardInterrupt, OSError, MemoryError):
            if len(journal):
                say(f"what is done is in {path}: to go on, run the same command again", errors)
            raise
