"""Do the work that commands share: open checkpoints, calibrate, evaluate, and resume."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tersor.cli.app import console, errors, say
from tersor.errors import BudgetError, TersorError

if TYPE_CHECKING:  # slow imports are done where they are used
    from torch import nn

    from tersor.calibration.calibrate import Calibration
    from tersor.compression.overrides import Overrides
    from tersor.compression.quality import Measure, Quality
    from tersor.storage.archive import Archive
    from tersor.storage.checkpoint import Source
    from tersor.storage.journal import Journal
    from tersor.storage.summary import Report


Mend = Callable[["Archive"], "Archive"]
"""Function that lets the layers of a compressed model compensate for each other's errors."""


def opened(
    model: Path,
    outputs: Sequence[Path],
    key: str | None,
    prefix: str | None,
    *,
    exact: bool = False,
) -> Source:
    """Return the checkpoint that a command names, and print notes about it to standard error.

    Parameters
    ----------
    model
        Path of the checkpoint.
    outputs
        Files that the command will write.
    key, prefix, exact
        See `tersor.storage.checkpoint.open_checkpoint`.

    Raises
    ------
    InputError
        If the checkpoint cannot be read, or an output is one of its files, of which there may be
        several.
    """
    from tersor.storage.atomic import check_writable
    from tersor.storage.checkpoint import open_checkpoint

    source = open_checkpoint(model, key=key, prefix=prefix, exact=exact)
    for output, file in product(outputs, source.files):
        check_writable(output, file)
    for note in source.notes:
        say(f"note: {note}", errors)
    return source


def module_of(
    source: Source, architecture: str | None, uses: Mapping[str, str | None]
) -> nn.Module | None:
    """Return the model that --model names, with the checkpoint's weights; None without --model.

    Parameters
    ----------
    source
        Tensors of the checkpoint.
    architecture
        Value of --model.
    uses
        Values of the options that need the model, by their names.

    Raises
    ------
    InputError
        If --model is given without such an option, or the other way round, or does not fit.
    """
    from tersor.cli.user_code import model_of
    from tersor.errors import InputError

    given = [option for option, value in uses.items() if value is not None]
    if architecture is None:
        if given:
            raise InputError(f"{given[0]} is given without --model; both are needed")
        return None
    if not given:
        raise InputError(f"--model is given without {' or '.join(uses)}; it has no other use")
    return model_of(source, architecture)


class Prepared(NamedTuple):
    """What the options --model, --calibrate and --eval give, before the work."""

    module: nn.Module | None
    batches: list[Any] | None
    """Batches to calibrate with."""
    held: list[Any]
    """Batches to measure the error of the output with."""
    dense: nn.Module | None
    mend: Mend
    measure: Measure | None


def prepared(
    source: Source, architecture: str | None, calibrate: str | None, evaluate: str | None
) -> Prepared:
    """Return what the options --model, --calibrate and --eval give; parts are None without them."""
    module = module_of(source, architecture, {"--calibrate": calibrate, "--eval": evaluate})
    batches, held = batches_of(calibrate)
    dense = dense_of(module, evaluate)
    measure = measure_of(source, module, evaluate)
    return Prepared(module, batches, held, dense, mending(dense, batches), measure)


def overrides_of(
    keep: Sequence[str] | None, bits: Sequence[str] | None, lookup: Sequence[str] | None
) -> Overrides:
    """Return the overrides that the options --keep, --bits and --lookup request."""
    from tersor.compression.overrides import Overrides, parse_bits

    return Overrides(keep or (), parse_bits(bits or ()), lookup or ())


def batches_of(loader: str | None) -> tuple[list[Any] | None, list[Any]]:
    """Return the batches to calibrate with, and those held out to measure the error of the output.

    The batches come from --calibrate. Without this option the first ones are None.
    """
    if loader is None:
        return None, []
    from tersor.calibration.output_error import held_out
    from tersor.cli import user_code

    return held_out(user_code.batches_of(loader))


@contextmanager
def _noted() -> Iterator[None]:
    """Print warnings as notes to standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"note: {message}", errors)
        yield


def calibration_of(
    source: Source, module: nn.Module | None, batches: list[Any] | None
) -> Calibration | None:
    """Return the calibration on the batches of --calibrate; None without this option.

    Notes go to standard error.
    """
    if module is None or batches is None:
        return None
    from tersor.cli.user_code import calibrate_source

    with _noted():
        calibration = calibrate_source(source, module, batches)
    for name, reason in calibration.skipped.items():
        if name not in calibration.unseen:  # a warning names those
            say(f"note: {name} is compressed without calibration: {reason}", errors)
    return calibration


def show(report: Report) -> None:
    """Print the summary of a file.

    If standard output is no terminal, warnings go to standard error too.
    """
    from tersor.report import table

    console.print(table.render(report))
    if not console.is_terminal:
        for text in report.warnings:
            say(f"warning: {text}", errors)


def dense_of(module: nn.Module | None, evaluate: str | None) -> nn.Module | None:
    """Return the dense model.

    It is a copy if there are evaluations, because these load other weights into the module.
    """
    return copy.deepcopy(module) if evaluate is not None else module


def mending(dense: nn.Module | None, batches: list[Any] | None) -> Mend:
    """Return a function that reconstructs an archive with the batches of --calibrate.

    Without these batches the function returns the archive unchanged.
    """
    if dense is None or batches is None:
        return lambda archive: archive
    from tersor.cli.user_code import reconstructed

    def mend(archive: Archive) -> Archive:
        try:
            with _noted():
                return reconstructed(archive, dense, batches)
        except BudgetError as error:
            say(f"note: layers are not reconstructed: {error}", errors)
            return archive

    return mend


def error_of(archive: Archive, dense: nn.Module | None, held: list[Any]) -> float | None:
    """Return the error of the output on held-out batches; None if it cannot be measured.

    See `tersor.calibration.output_error.output_error`.
    """
    if dense is None or not held:
        return None
    from tersor.calibration.output_error import output_error
    from tersor.cli.user_code import compressed
    from tersor.errors import InputError

    try:
        with _noted():
            return output_error(compressed(archive, dense), dense, held)
    except InputError as error:
        say(f"note: the error of the output is not known: {error}", errors)
        return None


def measure_of(source: Source, module: nn.Module | None, evaluate: str | None) -> Measure | None:
    """Return the evaluation that --eval names; None without this option.

    Each result is printed to standard error.
    """
    if module is None or evaluate is None:
        return None
    from tersor.cli.user_code import measure_of
    from tersor.storage import container

    measure = measure_of(source, module, evaluate)

    def told(archive: Archive | None) -> float:
        value = measure(archive)
        what = "dense" if archive is None else f"at {container.size(archive)} bytes"
        say(f"{evaluate}: {value:.6g} {what}", errors)
        return value

    return told


def quality_of(measure: Measure | None, max_drop: float | None, mend: Mend) -> Quality | None:
    """Return the quality that --max-drop and --eval request; None if neither is given.

    Raises
    ------
    InputError
        If only one of them is given.
    """
    from tersor.compression.quality import Quality
    from tersor.errors import InputError

    if max_drop is None and measure is None:
        return None
    if max_drop is None or measure is None:
        given, missing = ("--max-drop", "--eval") if measure is None else ("--eval", "--max-drop")
        raise InputError(f"{given} is given without {missing}; both are needed")
    return Quality(max_drop, measure, mend)


@contextmanager
def resuming(
    output: Path,
    source: Source,
    calibration: Calibration | None,
    options: Sequence[object],
) -> Iterator[Journal]:
    """Yield the journal of an output, in which intermediate results are saved.

    The journal is a file beside the output. If the work stops, a message says how to continue.

    Parameters
    ----------
    output
        File that the command will write.
    source, calibration, options
        Input of the work. The journal is used only if it belongs to the same input.

    Yields
    ------
    Journal
        The journal, with the results of an earlier call if there are any.
    """
    from tersor.compression.resume import identity
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
    """Say how to continue from a file if the work stops.

    Parameters
    ----------
    path
        File with intermediate results.
    is_of_use
        Function that returns whether the file holds anything to continue from.
    unless
        Type of errors after which nothing is said; by default `TersorError`.
    """
    try:
        yield
    except unless:
        raise
    except BaseException:
        if is_of_use():
            say(f"what is done is in {path}: to go on, run the same command again", errors)
        raise
