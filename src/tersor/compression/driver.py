# SPDX-License-Identifier: Apache-2.0
"""Compress the tensors of a source to the requested size, or without loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tersor.calibration.calibrate import Calibration
from tersor.compression.budget import target_bytes
from tersor.compression.compressor import NO_OVERRIDES, Compressor
from tersor.compression.overrides import Overrides
from tersor.compression.quality import Quality, smallest
from tersor.errors import InputError
from tersor.progress import Progress, silent
from tersor.storage import classify
from tersor.storage.archive import Alias, Archive, Entry
from tersor.storage.checkpoint import Source
from tersor.storage.journal import Journal


def compress_source(
    source: Source,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
    quality: Quality | None = None,
    mend: Callable[[Archive], Archive] | None = None,
    lossless: bool = False,
    calibration: Calibration | None = None,
    overrides: Overrides = NO_OVERRIDES,
    metadata: Mapping[str, str] | None = None,
    hashed: bool = False,
    measured: bool = True,
    journal: Journal | None = None,
    progress: Progress = silent,
) -> Archive:
    """Compress named tensors into an archive of at most the requested size.

    Parameters
    ----------
    source
        Source of the tensors, which are loaded one at a time, several times.
    ratio, target_size, bits_per_weight
        The budget, of which exactly one form is given. See
        `tersor.compression.budget.target_bytes`.
    quality
        Quality that the result must keep, instead of a budget. The file is as small as that allows.
    mend
        Function that changes the archive within the budget, see `Compressor.mended`; by default
        none. With ``quality``, that has its own.
    lossless
        Whether every bit of every tensor is kept, without a budget or calibration; by default not.
    calibration
        Second moments of the inputs of weights, by the names of `source`; see `tersor.calibrate`.
        By default there are none.
    overrides
        The user's decisions about single weights; by default none.
    metadata, hashed
        Metadata and content hash of the file, as in `tersor.storage.archive.Archive`; by default
        none.
    measured
        Whether the file will contain the signal-to-noise ratios; by default it will. The file of a
        model does not.
    journal
        Store of results that outlive the process. Those that it already contains are not computed
        again. By default there is none.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    Archive
        Archive whose file has at most the requested bytes, and usually at least 99.7 % of them.

    Raises
    ------
    BudgetError
        If the target is not below the input's size or is below the smallest possible size, or if no
        file of half the input's size keeps the quality.
    InputError
        If a tensor has NaN or infinite weights, if overrides match nothing, or if options
        contradict each other.
    """
    given = (ratio, target_size, bits_per_weight, quality)
    blank = Archive({}, source.nbytes, metadata or {}, hashed)
    if lossless:
        check_lossless(given, calibration, overrides)
        return replace(blank, entries=keep_all(source, progress).entries)
    if quality is not None and any(budget is not None for budget in given[:-1]):
        raise InputError(
            "a largest drop decides the size; leave out ratio, target size and bits per weight"
        )
    compressor = Compressor(
        source,
        calibration=calibration,
        overrides=overrides,
        blank=blank,
        measured=measured,
        journal=journal,
        progress=progress,
    )
    if quality is not None:
        return smallest(compressor, source.nbytes, quality)
    target = target_bytes(
        source.nbytes,
        compressor.numel,
        ratio=ratio,
        target_size=target_size,
        bits_per_weight=bits_per_weight,
    )
    return compressor.within(target) if mend is None else compressor.mended(target, mend)


def check_lossless(
    budgets: Sequence[object], calibration: object, overrides: Overrides = NO_OVERRIDES
) -> None:
    """Raise an error if options contradict lossless compression.

    Parameters
    ----------
    budgets
        Options that choose the size; None for those that are not given.
    calibration
        A calibration, or None.
    overrides
        The user's decisions about single weights; by default none.

    Raises
    ------
    InputError
        If a budget, a calibration or overrides are given.
    """
    if any(budget is not None for budget in budgets):
        raise InputError(
            "lossless keeps every bit, so that the size cannot be chosen; give either lossless or "
            "one of ratio, target size, bits per weight and largest drop"
        )
    if calibration is not None:
        raise InputError("lossless changes no weight: calibration has no use; leave it out")
    if overrides.keep or overrides.bits or overrides.lookup:
        raise InputError(
            "lossless changes no weight: patterns of weights to keep, of their bits, or of those "
            "for look-up kernels, have no use; leave them out"
        )


def keep_all(source: Source, progress: Progress = silent) -> Archive:
    """Return an archive with every bit of all tensors.

    Parameters
    ----------
    source
        Source of the tensors, which are loaded one at a time.
    progress
        Called with a message and the share of the work that is done.

    Returns
    -------
    Archive
        All tensors of the source.

    Raises
    ------
    InputError
        If a tensor cannot be stored.
    """
    entries: dict[str, Entry] = {}
    for position, name in enumerate(source.names):
        progress(f"reading {name}", position / len(source.names))
        entry = classify.keep_exactly(name, source.load(name))
        if name in source.aliases:
            entry = replace(entry, content=Alias(source.aliases[name]))
        entries[name] = entry
    return Archive(entries, source.nbytes)
