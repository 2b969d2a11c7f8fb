# SPDX-License-Identifier: Apache-2.0
"""Summarize an archive or a file in numbers, for `inspect` and for tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tersor.coding.records import EncodedFactors
from tersor.storage import container, doubts, dtypes, header, label
from tersor.storage.archive import Archive
from tersor.storage.header import EXACT, Field, hundredths
from tersor.storage.layout import Layout


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a file.

    Parameters
    ----------
    name, shape, dtype
        As in the checkpoint; the data type by its safetensors name.
    nbytes
        Bytes of its sections; for unfactored tensors, bytes before compression; for aliases, 0.
    tile, rank, snr
        Tile size, rank and signal-to-noise ratio in dB of a factored tensor, else None. The ratio
        is also None if it was not measured, as after training.
    note
        How and why a tensor is unfactored; empty for factored ones.

    Examples
    --------
    >>> report = tersor.compress(torch.nn.Linear(64, 64), ratio=8)
    >>> weight, bias = report.tensors
    >>> weight.name, weight.shape, weight.dtype, weight.bits_per_weight < 4
    ('weight', (64, 64), 'F32', True)
    >>> bias.note
    'at 16 bits: ...'
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    tile: int | None = None
    rank: int | None = None
    snr: float | None = None
    note: str = ""

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def bits_per_weight(self) -> float:
        """Return ``8 * nbytes / numel``."""
        return 8 * self.nbytes / max(self.numel, 1)


@dataclass(frozen=True)
class Report:
    """The size and the quality of a file, or of an archive that is not written yet.

    Parameters
    ----------
    tensors
        Summaries of all tensors, in the order of the checkpoint.
    nbytes
        Size of the whole file in bytes.
    source_bytes
        Size in bytes of the checkpoint or model that was compressed.
    metadata
        Metadata of the file's author.
    content_hash
        As in `tersor.OpenFile.content_hash`; None for an archive that is not written yet.
    output_error
        Relative error of the model's outputs on batches that calibration did not use: the norm of
        the differences over the norm of the dense model's outputs. None if it was not measured.
    predicted_error
        Predicted relative error of the model's outputs: from calibration if there was one, else a
        rough estimate without data, from the signal-to-noise ratio of the weakest weight. None if
        there are no factors or a ratio is unknown.
    calibrated
        Whether ``predicted_error`` comes from calibration.
    warnings
        Sentences about what may have gone wrong and what to do.

    Examples
    --------
    >>> report = tersor.compress(torch.nn.Linear(64, 64), ratio=8)
    >>> report.ratio >= 8, report.weights, [tensor.name for tensor in report.factored]
    (True, 4160, ['weight'])
    """

    tensors: tuple[TensorSummary, ...]
    nbytes: int
    source_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_hash: str | None = None
    output_error: float | None = None
    predicted_error: float | None = None
    calibrated: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Return the size of the source divided by the size of the file."""
        return self.source_bytes / self.nbytes

    @property
    def weights(self) -> int:
        """Return the number of elements of all tensors, tied ones counted once."""
        return sum(t.numel for t in self.tensors if not t.note.startswith("same as"))

    @property
    def bits_per_weight(self) -> float:
        """Return the bits of the whole file divided by the number of weights."""
        return 8 * self.nbytes / max(self.weights, 1)

    @property
    def lossless(self) -> bool:
        """Return whether every tensor is stored exactly, to the last bit."""
        exact = ("exact", "same as")
        return all(t.tile is None and t.note.startswith(exact) for t in self.tensors)

    @property
    def factored(self) -> tuple[TensorSummary, ...]:
        """Return the tensors that are stored as factors."""
        return tuple(t for t in self.tensors if t.tile is not None)


def summarize(archive: Archive, nbytes: int | None = None) -> Report:
    """Return the summary of an archive.

    Parameters
    ----------
    archive
        What is to be written.
    nbytes
        Size in bytes of the file, if it is known already. By default the sections are encoded to
        measure it.
    """
    tensors = []
    for name, entry in archive.entries.items():
        content = entry.content
        size = content.coded_bytes if isinstance(content, EncodedFactors) else 0
        tensors.append(_summarize(header.field(name, entry), size))
    size = container.size(archive) if nbytes is None else nbytes
    return _report(tensors, size, archive.source_bytes, archive.metadata)


def summarize_file(found: Layout) -> Report:
    """Return the summary of a file, from its header alone."""
    sizes = {n: sum(found.stamps[i].size for i in s) for n, s in found.streams.items()}
    tensors = [_summarize(f, sizes.get(f.name, 0)) for f in found.fields]
    said = found.label
    content_hash = said.content_hash.hex() or None
    return _report(tensors, found.nbytes, found.source_bytes, said.metadata, content_hash)


def _report(
    tensors: Sequence[TensorSummary],
    nbytes: int,
    source_bytes: int,
    metadata: Mapping[str, str],
    content_hash: str | None = None,
) -> Report:
    measured, predicted = label.output_error(metadata), doubts.predicted_error(tensors)
    return Report(
        tuple(tensors),
        nbytes,
        source_bytes,
        metadata,
        content_hash,
        output_error=measured,
        predicted_error=predicted,
        warnings=doubts.doubts(tensors, predicted=predicted, measured=measured),
    )


def _summarize(field: Field, section_bytes: int) -> TensorSummary:
    """Return the summary of a tensor whose own sections, if any, take ``section_bytes`` bytes."""
    detail, dtype = field.detail, dtypes.NAMES[field.dtype]
    if isinstance(detail, str):
        return TensorSummary(field.name, field.shape, dtype, 0, note=f"same as {detail}")
    if isinstance(detail, EncodedFactors):
        # Rounded as in the file, so that figures shown before and after writing agree.
        snr = None if math.isnan(detail.snr) else hundredths(detail.snr) / 100
        return TensorSummary(
            field.name, field.shape, dtype, section_bytes, detail.tile, detail.rank, snr
        )
    note = f"{'exact' if field.kind == EXACT else 'at 16 bits'}: {detail.describe()}"
    return TensorSummary(field.name, field.shape, dtype, field.stored_bytes, note=note)


def unfactored_groups(report: Report) -> list[tuple[str, tuple[TensorSummary, ...]]]:
    """Return the unfactored tensors, grouped where names differ only in numbers.

    Members of a group have the same type and note. A group of one tensor has its name; the name of
    a larger group is a pattern with ``*`` in place of the numbers.
    """
    groups: dict[tuple[str, str, str], list[TensorSummary]] = {}
    for t in report.tensors:
        if t.tile is None:
            groups.setdefault((re.sub(r"\d+", "*", t.name), t.dtype, t.note), []).append(t)
    return [
        (members[0].name if len(members) == 1 else pattern, tuple(members))
        for (pattern, _, _), members in groups.items()
    ]
