# SPDX-License-Identifier: Apache-2.0
"""Sort the tensors of a source into unfactored and factored ones, and assemble archives of them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from tersor.calibration.moments import energy
from tersor.coding import records
from tersor.coding.records import EncodedFactors
from tersor.compression.attempts import Weight
from tersor.compression.fill import Version
from tersor.compression.overrides import Overrides, Resolved
from tersor.progress import Progress, silent
from tersor.storage import classify, container
from tersor.storage.archive import Alias, Archive, Entry, Reason
from tersor.storage.checkpoint import Source
from tersor.tiling import row_blocks


def survey(source: Source, progress: Progress = silent) -> tuple[dict[str, Entry], list[Weight]]:
    """Return the entries of all tensors, and the weights that will be factored.

    Parameters
    ----------
    source
        Source of the tensors, which are loaded one at a time.
    progress
        Called with a message for each tensor.

    Returns
    -------
    dict
        Entry of each tensor by name. Factored weights are still represented by zeros.
    list
        Weights that are not all zeros, the largest first.
    """
    entries: dict[str, Entry] = {}
    weights: list[Weight] = []
    for name in source.names:
        progress(f"reading {name}", 0.0)
        tensor = source.rows(name)
        reason = classify.reason_to_keep(name, tensor)
        if reason is None and name in source.unchanged:
            reason = Reason.LEFT_DENSE
        shape, dtype = tuple(tensor.shape), tensor.dtype
        if name in source.aliases:
            entries[name] = Entry(shape, dtype, Alias(source.aliases[name]))
        elif reason is not None:
            entries[name] = classify.keep(name, source.load(name), reason)
        else:
            squares = sum(energy(block.detach(), None) for block in row_blocks(tensor))
            variance = squares / math.prod(shape)
            entries[name] = Entry(
                shape, dtype, records.zero(shape, dtype, 0 if variance else math.inf)
            )
            if variance:
                weights.append(Weight(name, shape, dtype, variance))
    return entries, sorted(weights, key=lambda w: -w.numel)


def override(entries: dict[str, Entry], source: Source, overrides: Overrides) -> Resolved:
    """Resolve the user's patterns, and set the entries of weights that they keep.

    Parameters
    ----------
    entries
        Entries of all tensors, by name. Those of weights to keep are replaced.
    source
        Source of the tensors.
    overrides
        The user's patterns.

    Returns
    -------
    Resolved
        Names of the weights that the patterns match.

    Raises
    ------
    InputError
        If a pattern matches no weight that would be factored, or patterns contradict each other.
    """
    factored = [n for n, e in entries.items() if isinstance(e.content, EncodedFactors)]
    names = {name: [name] for name in factored}
    for alias, name in source.aliases.items():
        if name in names:
            names[name].append(alias)
    spared = [p for p in overrides.keep if fnmatch.filter(source.unchanged, p)]
    keep = [p for p in overrides.keep if p not in spared]  # spared tensors are kept in any case
    keep += [p for p in spared if fnmatch.filter(chain(*names.values()), p)]
    resolved = replace(overrides, keep=keep).resolve(
        names, {n for n in factored if len(entries[n].shape) == 2}
    )
    for name in resolved.keep:
        entries[name] = classify.keep(name, source.load(name), Reason.LEFT_DENSE)
    return resolved


class Assembler:
    """Builds archives from versions of the factored weights, and computes the size of their files.

    Parameters
    ----------
    entries
        Entries of all tensors by name, which weights without a version retain.
    blank
        Archive without entries, of which the others have everything else.
    measured
        Whether the file will contain the signal-to-noise ratios.
    """

    def __init__(self, entries: Mapping[str, Entry], blank: Archive, measured: bool) -> None:
        self._entries, self._blank, self._measured = entries, blank, measured
        sections = container.unfactored_sections(self.archive({}))
        self._kept = [container.stamp(section) for section in sections]

    @property
    def unfactored_bytes(self) -> int:
        """Return the bytes of the sections of the unfactored tensors."""
        return sum(stamp.size for stamp in self._kept)

    def archive(self, versions: Mapping[str, Version[EncodedFactors]]) -> Archive:
        """Return the archive of all tensors with these versions of the weights."""
        return replace(self._blank, entries=with_versions(self._entries, versions))

    def size(self, versions: Mapping[str, Version[EncodedFactors]]) -> int:
        """Return the bytes of the file with these versions of the weights."""
        archive = self.archive(versions)
        return container.size(archive if self._measured else archive.unmeasured(), self._kept)


def with_versions(
    entries: Mapping[str, Entry], versions: Mapping[str, Version[EncodedFactors]]
) -> dict[str, Entry]:
    """Return the entries with these versions in place of zeros."""
    filled = dict(entries)
    for name, version in versions.items():
        if version.content.rank:  # rank 0 means zeros, which the entry already holds
            filled[name] = replace(filled[name], content=version.content)
    return filled
