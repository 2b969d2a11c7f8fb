# SPDX-License-Identifier: Apache-2.0
"""Do the work that commands share: open checkpoints, calibrate, evaluate, and resume."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tersor.cli.output import console, errors, note, say
from tersor.errors import BudgetError, TersorError

if TYPE_CHECKING:  # slow imports are done where they are used
    from torch import nn

    from tersor.calibration.calibrate import Calibration
    from tersor.compression.effort import Effort
    from tersor.compression.overrides import Overrides
    from tersor.compression.post_training import PostTraining
    from tersor.compression.quality import Measure, Quality
    from tersor.storage.archive import Archive
    from tersor.storage.checkpoint import Source
    from tersor.storage.journal import Journal
    from tersor.storage.summary import Report


Result = TypeVar("Result")

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
    for text in source.notes:
        note(text)
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
    """Results of the options --model, --data, --effort and --eval, before the work."""

    source: Source
    """Tensors of the checkpoint, with normalisation folded if there are data."""
    post_training: PostTraining | None
    mend: Mend
    measure: Measure | None


def prepared(
    source: Source, architecture: str | None, data: str | None, effort: Effort, evaluate: str | None
) -> Prepared:
    """Return what the options --model, --data, --effort and --eval give."""
    module = module_of(source, architecture, {"--data": data, "--eval": evaluate})
    source, post_training = with_data(source, module, data, effort, evaluate)
    measure = measure_of(source, module, evaluate)
    return Prepared(source, post_training, mending(post_training), measure)


def overrides_of(
    keep: Sequence[str] | None, bits: Sequence[str] | None, lookup: Sequence[str] | None
) -> Overrides:
    """Return the overrides that the options --keep, --bits and --lookup request."""
    from tersor.compression.overrides import Overrides, parse_bits

    return Overrides(keep or (), parse_bits(bits or ()), lookup or ())


@contextmanager
def _noted() -> Iterator[None]:
    """Print warnings as notes to standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"note: {message}", errors)
        yield


def with_data(
    source: Source,
    module: nn.Module | None,
    loader: str | None,
    effort: Effort,
    evaluate: str | None = None,
) -> tuple[Source, PostTraining | None]:
    """Return the source with the tensors of the folded model, and what --data requests.

    Parameters
    ----------
    source
        Tensors of the checkpoint.
    module
        Model with these tensors.
    loader, effort, evaluate
        Values of --data, --effort and --eval. Evaluations load other weights into the module.
    """
    if module is None or loader is None:
        return source, None
    from tersor.cli import user_code
    from tersor.compression.post_training import prepare

    found = prepare(module, user_code.batches_of(loader), effort)
    if found.dense is not module:
        return user_code.with_tensors_of(found.dense, source), found
    return source, replace(found, dense=copy.deepcopy(module)) if evaluate else found


def calibration_of(given: Prepared) -> Calibration | None:
    """Return the calibration with --data, by the names of the source; None without this option.

    Notes go to standard error.
    """
    if given.post_training is None:
        return None
    from tersor.cli.user_code import for_checkpoint

    with _noted():
        found = given.post_training.calibrate()
        calibration = for_checkpoint(found, given.post_training.dense, given.source)
    for name, reason in calibration.skipped.items():
        if name not in calibration.unseen:  # a warning names those
            note(f"{name} is compressed without calibration: {reason}")
    return calibration


def show(report: Report) -> None:
    """Print the summary of a file.

    If it is not printed to a terminal, warnings go to standard error too.
    """
    from tersor.report import table

    console.print(table.render(report))
    if console.quiet or not console.is_terminal:
        for text in report.warnings:
            say(f"warning: {text}", errors)


def mending(post_training: PostTraining | None) -> Mend:
    """Return a function that lets layers compensate, with --data, or returns its argument."""
    if post_training is None:
        return lambda archive: archive

    def mend(archive: Archive) -> Archive:
        with _noted():
            return post_training.mend(archive)

    return mend


def error_of(archive: Archive, post_training: PostTraining) -> float | None:
    """Return the error of the output on held-out batches; None if it cannot be measured."""
    from tersor.errors import InputError

    try:
        with _noted():
            return post_training.error_of(archive)
    except InputError as error:
        note(f"the error of the output is not known: {error}")
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
            note(journal.note)
        with _noted(), telling(path, lambda: len(journal) > 0, unless=BudgetError):
            yield journal


def with_room(
    write: Callable[[], Result], output: Path, nbytes: int, journal: Journal | None
) -> Result:
    """Write an output, and again without the journal if the disk is full because of that.

    Parameters
    ----------
    write
        Function that writes the output, and leaves nothing behind if it fails.
    output
        Path of the output.
    nbytes
        Bytes that are needed on the disk.
    journal
        Journal of the work, beside the output; None if there is none.

    Returns
    -------
    object
        Result of ``write``.
    """
    from tersor.storage.journal import FULL

    try:
        return write()
    except OSError as error:
        if journal is None or error.errno not in FULL:
            raise
        if nbytes > journal.nbytes + shutil.disk_usage(output.parent).free:
            raise  # it would not help, and the results so far are of use later
        journal.make_room(f"{error.strerror}")
    return write()


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
