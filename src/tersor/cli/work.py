"""What commands about a checkpoint share: calibration, and going on where one was stopped."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.cli.app import errors, say
from tersor.errors import BudgetError, TersorError

if TYPE_CHECKING:  # what makes the start slow is imported where it is used
    from torch import nn

    from tersor.calibration import Calibration
    from tersor.plan.overrides import Overrides
    from tersor.quality import Measure, Quality
    from tersor.storage.archive import Archive
    from tersor.storage.checkpoint import Source
    from tersor.storage.journal import Journal


def module_of(
    source: Source, architecture: str | None, uses: Mapping[str, str | None]
) -> nn.Module | None:
    """The model that --model names, which the options of ``uses`` need; None if none is needed."""
    from tersor.errors import InputError
    from tersor.user_code import model_of

    given = [option for option, value in uses.items() if value is not None]
    if architecture is None:
        if given:
            raise InputError(f"{given[0]} is given without --model; both are needed")
        return None
    if not given:
        raise InputError(f"--model is given without {' or '.join(uses)}; it has no other use")
    return model_of(source, architecture)


def overrides_of(
    keep: Sequence[str] | None, bits: Sequence[str] | None, fast: Sequence[str] | None
) -> Overrides:
    """What the options --keep, --bits and --fast say."""
    from tersor.plan.overrides import Overrides, parse_bits

    return Overrides(keep or (), parse_bits(bits or ()), fast or ())


def batches_of(loader: str | None) -> list[Any] | None:
    """What the option --calibrate names."""
    if loader is None:
        return None
    from tersor import user_code

    return user_code.batches_of(loader)


def calibration_of(
    source: Source, module: nn.Module | None, batches: list[Any] | None
) -> Calibration | None:
    """What the option --calibrate asks for; notes go to standard error."""
    if module is None or batches is None:
        return None
    from tersor.user_code import calibrate_source

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"note: {message}", errors)
        calibration = calibrate_source(source, module, batches)
    for name, reason in calibration.skipped.items():
        say(f"note: {name} is compressed without calibration: {reason}", errors)
    return calibration


Mend = Callable[["Archive"], "Archive"]
"""Has the layers of a compressed model make up for each other's errors."""


def mending(module: nn.Module | None, batches: list[Any] | None, evaluate: str | None) -> Mend:
    """Reconstruction with the batches of --calibrate; without these, archives stay as they are."""
    if module is None or batches is None:
        return lambda archive: archive
    from tersor.user_code import reconstructed

    # Evaluations load other weights into the module.
    dense = module if evaluate is None else copy.deepcopy(module)

    def mend(archive: Archive) -> Archive:
        try:
            return reconstructed(archive, dense, batches)
        except BudgetError as error:
            say(f"note: layers are not reconstructed: {error}", errors)
            return archive

    return mend


def measure_of(
    source: Source, module: nn.Module | None, evaluate: str | None, mend: Mend
) -> Measure | None:
    """What the option --eval asks for, of mended models; each result is told on standard error."""
    if module is None or evaluate is None:
        return None
    from tersor.storage import container
    from tersor.user_code import measure_of

    measure = measure_of(source, module, evaluate)

    def told(archive: Archive | None) -> float:
        value = measure(archive and mend(archive))
        what = "dense" if archive is None else f"at {container.size(archive)} bytes"
        say(f"{evaluate}: {value:.6g} {what}", errors)
        return value

    return told


def quality_of(
    source: Source,
    module: nn.Module | None,
    evaluate: str | None,
    max_drop: float | None,
    mend: Mend,
) -> Quality | None:
    """What the options --max-drop and --eval ask for."""
    from tersor.errors import InputError
    from tersor.quality import Quality

    measure = measure_of(source, module, evaluate, mend)
    if max_drop is None and measure is None:
        return None
    if max_drop is None or measure is None:
        given, missing = ("--max-drop", "--eval") if measure is None else ("--eval", "--max-drop")
        raise InputError(f"{given} is given without {missing}; both are needed")
    return Quality(max_drop, measure)


@contextmanager
def resuming(
    output: Path,
    source: Source,
    calibration: Calibration | None,
    options: Sequence[object],
) -> Iterator[Journal]:
    """The journal of what is worked out for an output, beside it; says how to go on if stopped."""
    from tersor.resume import identity
    from tersor.storage.journal import journaling

    path = output.with_name(f"{output.name}.partial")
    with journaling(path, identity(source, calibration, options)) as journal:
        if journal.note:
            say(f"note: {journal.note}", errors)
        with telling(path, lambda: len(journal) > 0, unless=BudgetError):
            yield journal


@contextmanager
def telling(
    path: Path, is_of_use: Callable[[], bool], unless: type[Exception] = TersorError
) -> Iterator[None]:
    """Say how to go on from a file that is of use if the work stops, unless by some error."""
    try:
        yield
    except unless:
        raise
    except BaseException:
        if is_of_use():
            say(f"what is done is in {path}: to go on, run the same command again", errors)
        raise
