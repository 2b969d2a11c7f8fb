"""The driver: tensors in, factors of the asked size out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tersor.attempts import Attempts, Weight, energy
from tersor.calibration import Calibration
from tersor.errors import BudgetError, InputError
from tersor.plan import classify
from tersor.plan.budget import target_bytes
from tersor.plan.fill import Filling, Version
from tersor.plan.progress import Progress, silent
from tersor.plan.search import guess_step
from tersor.storage import container, records
from tersor.storage.archive import Alias, Archive, Entry, Kept
from tersor.storage.checkpoint import Source
from tersor.storage.records import EncodedFactors


def compress_source(
    source: Source,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
    lossless: bool = False,
    calibration: Calibration | None = None,
    measured: bool = True,
    progress: Progress = silent,
) -> Archive:
    """Compress named tensors into an archive of at most the asked size.

    Parameters
    ----------
    source
        Where the tensors come from; they are loaded one at a time, several times.
    ratio, target_size, bits_per_weight
        The budget; exactly one of them. See `tersor.plan.budget.target_bytes`.
    lossless
        Keep every bit of every tensor instead, without budget or calibration.
    calibration
        Second moments of the inputs of weights, by the names of `source`; see `tersor.calibrate`.
    measured
        Whether the file will tell the signal-to-noise ratios; that of a model will not.
    progress
        Called as the work goes on.

    Returns
    -------
    Archive
        Its file has at most the bytes asked for, usually at least 99.7 % of them.

    Raises
    ------
    BudgetError
        If the target is not below the input's size, or below the smallest possible size.
    InputError
        If a tensor has NaN or infinite weights, or options contradict each other.
    """
    if lossless:
        check_lossless(ratio, target_size, bits_per_weight, calibration)
        return keep_all(source, progress)
    entries, weights = survey(source, progress)
    numel = sum(e.numel for e in entries.values() if not isinstance(e.content, Alias))
    target = target_bytes(
        source.nbytes,
        numel,
        ratio=ratio,
        target_size=target_size,
        bits_per_weight=bits_per_weight,
    )
    assembler = _Assembler(entries, source.nbytes, measured)
    least = assembler.size({})
    if target < least:
        raise BudgetError(
            f"{target} bytes are too few: the smallest possible file has {least} bytes, "
            f"{assembler.kept_bytes} of them for tensors that are not factored"
        )
    if not weights:
        return assembler.archive({})
    attempts = Attempts(source, calibration, progress)
    step = guess_step([(w.numel, w.variance) for w in weights], 8 * (target - least))
    models = attempts.prepare(weights, step)
    nothing = {w.name: attempts.nothing(w) for w in weights}
    filling = Filling(weights, models, attempts.solve, nothing, assembler.size)
    return assembler.archive(filling.within(target, step))


def check_lossless(
    ratio: float | None,
    target_size: str | int | None,
    bits_per_weight: float | None,
    calibration: object,
) -> None:
    """Refuse what contradicts lossless.

    Raises
    ------
    InputError
        If a budget or a calibration is given.
    """
    if any(budget is not None for budget in (ratio, target_size, bits_per_weight)):
        raise InputError(
            "lossless keeps every bit, so that the size cannot be chosen; give either lossless or "
            "one of ratio, target size and bits per weight"
        )
    if calibration is not None:
        raise InputError("lossless changes no weight: calibration has no use; leave it out")


def keep_all(source: Source, progress: Progress = silent) -> Archive:
    """An archive with every bit of all tensors.

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


def survey(source: Source, progress: Progress = silent) -> tuple[dict[str, Entry], list[Weight]]:
    """Entries of all tensors, factored ones still as zeros, and what will be factored."""
    entries: dict[str, Entry] = {}
    weights: list[Weight] = []
    for name in source.names:
        progress(f"reading {name}", 0.0)
        tensor = source.load(name)
        reason = classify.reason_to_keep(name, tensor)
        if reason is None and name in source.unchanged:
            reason = Kept.LEFT_DENSE
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if name in source.aliases:
            entries[name] = Entry(shape, dtype, Alias(source.aliases[name]))
        elif reason is not None:
            entries[name] = classify.keep(name, tensor, reason)
        else:
            variance = energy(tensor.detach(), None) / tensor.numel()
            entries[name] = Entry(
                shape, dtype, records.zero(shape, dtype, 0 if variance else math.inf)
            )
            if variance:
                weights.append(Weight(name, shape, dtype, variance))
    return entries, sorted(weights, key=lambda w: -w.numel)


class _Assembler:
    """Puts versions of the factored weights into the archive, and knows the size of its file."""

    def __init__(self, entries: Mapping[str, Entry], source_bytes: int, measured: bool) -> None:
        self._entries, self._source_bytes, self._measured = entries, source_bytes, measured
        sections = container.kept_sections(self.archive({}))
        self._kept = [container.stamp(section) for section in sections]

    @property
    def kept_bytes(self) -> int:
        """Bytes of the sections of the tensors that are kept."""
        return sum(stamp.size for stamp in self._kept)

    def archive(self, versions: Mapping[str, Version[EncodedFactors]]) -> Archive:
        """The archive of all tensors; weights without a version are zeros."""
        entries = dict(self._entries)
        for name, version in versions.items():
            if version.content.rank:  # else zeros, which are there already
                entries[name] = replace(entries[name], content=version.content)
        return Archive(entries, self._source_bytes)

    def size(self, versions: Mapping[str, Version[EncodedFactors]]) -> int:
        """Bytes of the file."""
        archive = self.archive(versions)
        return container.size(archive if self._measured else archive.unmeasured(), self._kept)
