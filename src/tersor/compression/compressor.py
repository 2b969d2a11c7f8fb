# SPDX-License-Identifier: Apache-2.0
"""Compress one source to any number of sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from tersor.calibration.calibrate import Calibration
from tersor.coding.records import EncodedFactors
from tersor.compression.assembly import Assembler, override, survey, with_versions
from tersor.compression.attempts import Attempts, Weight
from tersor.compression.fill import Filling, Version
from tersor.compression.overrides import Overrides, Resolved
from tersor.compression.search import finest_fit, guess_step_size
from tersor.compression.sizes import SizeModel, step_size_for
from tersor.errors import BudgetError, InputError
from tersor.progress import Progress, silent
from tersor.storage import container
from tersor.storage.archive import Alias, Archive
from tersor.storage.checkpoint import Source
from tersor.storage.journal import Journal

Versions = Mapping[str, Version[EncodedFactors]]

NO_OVERRIDES = Overrides()


class Compressor:
    """Surveys a source once, and compresses it to sizes.

    Parameters
    ----------
    source
        Source of the tensors, which are loaded one at a time, several times.
    calibration
        Second moments of the inputs of weights, by the names of ``source``; by default none.
    overrides
        The user's decisions about single weights; by default none.
    blank
        Archive without entries, with the metadata of the file; by default there are none.
    measured
        Whether the file will contain the signal-to-noise ratios; by default it will.
    journal
        Store of results that outlive the process; by default none.
    progress
        Called with a message and the share of the work that is done.

    Raises
    ------
    InputError
        If a tensor has NaN or infinite weights, or if overrides match nothing or contradict each
        other.
    """

    def __init__(
        self,
        source: Source,
        *,
        calibration: Calibration | None = None,
        overrides: Overrides = NO_OVERRIDES,
        blank: Archive | None = None,
        measured: bool = True,
        journal: Journal | None = None,
        progress: Progress = silent,
    ) -> None:
        self._source, self._calibration, self._journal = source, calibration, journal
        self._measured, self._progress = measured, progress
        self._blank = Archive({}, source.nbytes) if blank is None else blank
        self._entries, found = survey(source, progress)
        resolved = override(self._entries, source, overrides)
        weights = [replace(w, lookup=w.name in resolved.lookup) for w in scaled(found, calibration)]
        self._weights = [w for w in weights if w.name not in resolved.keep | resolved.bits.keys()]
        self._own = [(w, bytes_of(w, resolved)) for w in weights if w.name in resolved.bits]

    @property
    def numel(self) -> int:
        """Number of elements of all tensors, tied ones counted once."""
        entries = self._entries.values()
        return sum(e.numel for e in entries if not isinstance(e.content, Alias))

    @property
    def least(self) -> int:
        """The smallest possible size of the file in bytes."""
        return self._assembler.size({})

    def within(self, target: int) -> Archive:
        """Return the archive of least error found whose file has at most ``target`` bytes.

        The result does not depend on earlier calls with other sizes.

        Parameters
        ----------
        target
            Bytes of the file, at most.

        Returns
        -------
        Archive
            All tensors of the source.

        Raises
        ------
        BudgetError
            If the target is below the smallest possible size.
        """
        assembler = self._assembler
        if target < self.least:
            own = sum(version.nbytes for version in self._own_versions.values())
            raise BudgetError(
                f"{target} bytes are too few: the smallest possible file has {self.least} bytes, "
                f"{assembler.unfactored_bytes} of them for tensors that are not factored"
                + (f", {own} for those whose bits are given" if self._own else "")
            )
        if not self._weights:
            return assembler.archive({})
        attempts, models, step_size = self._prepared(target)
        nothing = {w.name: attempts.nothing(w) for w in self._weights}
        filling = Filling(self._weights, models, attempts.solve, nothing, assembler.size)
        return assembler.archive(filling.within(target, step_size))

    def mended(self, target: int, mend: Callable[[Archive], Archive]) -> Archive:
        """Return the same after a change of each archive that may make it larger.

        Parameters
        ----------
        target
            Bytes of the file after the change, at most.
        mend
            Function that takes an archive and returns a changed one, a little larger at most.

        Raises
        ------
        BudgetError
            If the target is below the smallest possible size.
        """
        asked = target
        while True:
            archive = mend(self.within(asked))
            excess = container.size(archive if self._measured else archive.unmeasured()) - target
            if excess <= 0:
                return archive
            asked -= excess

    def predict(self, sizes: Sequence[int]) -> list[float]:
        """Return the expected squared error at each size, as a share of that of a file of zeros.

        The error falls as the size grows. All weights are factored at two step sizes, which suit
        the sizes a quarter of the way from either end of the list.

        Parameters
        ----------
        sizes
            Bytes of the whole file, in ascending order, above `least`.

        Returns
        -------
        list of float
            Share of the error for each size.

        Raises
        ------
        InputError
            If there are no weights to factor.
        """
        if not self._weights:
            raise InputError("no weight is factored: every file has the same size and quality")
        attempts, models, around = self._prepared(round(math.sqrt(sizes[0] * sizes[-1])))

        def step_size(size: int) -> float:
            return step_size_for([m.bytes for m in models.values()], size - self.least, around)

        for size in (sizes[len(sizes) // 4], sizes[-1 - len(sizes) // 4]):
            chosen = step_size(size)
            for weight, version in attempts.solve(self._weights, chosen, "predicting"):
                models[weight.name].learn(chosen, version.nbytes, version.error)
        whole = sum(attempts.nothing(w).error for w in self._weights)
        errors = list[float]()
        for size in reversed(sizes):
            chosen = step_size(size)
            error = sum(m.error(chosen) for m in models.values()) / whole
            errors.append(max([error, *errors[-1:]]))  # learned corrections may bend it
        return errors[::-1]

    def _prepared(self, target: int) -> tuple[Attempts, dict[str, SizeModel], float]:
        """Return attempts with tiles that suit a size, size models, and a first step size."""
        attempts = Attempts(self._source, self._calibration, self._progress, self._journal)
        known = [(w.numel, w.variance / w.scale**2) for w in self._weights]
        step_size = guess_step_size(known, 8 * (target - self.least))
        return attempts, attempts.prepare(self._weights, step_size), step_size

    @cached_property
    def _assembler(self) -> Assembler:
        """Assembler of all tensors that are the same at all sizes."""
        entries = with_versions(self._entries, self._own_versions)
        return Assembler(entries, self._blank, self._measured)

    @cached_property
    def _own_versions(self) -> Versions:
        return {weight.name: self._own_version(weight, target) for weight, target in self._own}

    def _own_version(self, weight: Weight, target: int) -> Version[EncodedFactors]:
        """Return the finest version of a weight of at most ``target`` bytes."""
        attempts = Attempts(self._source, self._calibration, self._not_counted, self._journal)
        guess = guess_step_size([(weight.numel, weight.variance / weight.scale**2)], 8 * target)
        attempts.prepare([weight], guess)

        def attempt(step_size: float) -> tuple[int, Version[EncodedFactors]]:
            [(_, version)] = attempts.solve([weight], step_size, "bits as given")
            return version.nbytes, version

        try:
            return finest_fit(attempt, target, guess)[1]
        except BudgetError:  # no step size that was tried fits
            return attempts.nothing(weight)

    def _not_counted(self, message: str, done: float) -> None:
        self._progress(message, 0.0)


def scaled(weights: Sequence[Weight], calibration: Calibration | None) -> list[Weight]:
    """Return the weights with scales that follow from their importance.

    A scale is proportional to the inverse square root of the importance, and 1 at the geometric
    mean of the importances over all elements. Weights of unknown importance get a scale of 1.
    """
    if calibration is None or not calibration.importance:
        return list(weights)
    known = [w for w in weights if w.name in calibration.importance]
    logs = {w.name: math.log(calibration.importance[w.name]) for w in known}
    typical = sum(logs[w.name] * w.numel for w in known) / max(1, sum(w.numel for w in known))
    return [replace(w, scale=math.exp((typical - logs.get(w.name, typical)) / 2)) for w in weights]


def bytes_of(weight: Weight, resolved: Resolved) -> int:
    """Return the bytes that a weight may take whose bits per weight are given.

    Raises
    ------
    BudgetError
        If the given bits are not fewer than those of the weight's data type.
    """
    bits = resolved.bits[weight.name]
    if bits >= 8 * weight.dtype.itemsize:
        raise BudgetError(
            f"{bits:g} bits are asked for each weight of {weight.name!r}, which has only "
            f"{8 * weight.dtype.itemsize}; ask for less, or keep it"
        )
    return int(bits * weight.numel / 8)
