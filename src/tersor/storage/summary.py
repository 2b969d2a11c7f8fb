"""What an archive holds, in numbers: what `inspect` gives and the tables print."""

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
        Bytes of its sections; for kept tensors, before compression; 0 for aliases.
    tile, rank, snr
        Tile size, rank and signal-to-noise ratio in dB of a factored tensor, else None. The ratio
        is None too where it was not measured, as after training.
    note
        How and why a tensor is kept; empty for factored ones.
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
        """Number of elements."""
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def bits_per_weight(self) -> float:
        """``8 * nbytes / numel``."""
        return 8 * self.nbytes / max(self.numel, 1)


@dataclass(frozen=True)
class Report:
    """A file, or what will be one.

    Parameters
    ----------
    tensors
        In the order of the checkpoint.
    nbytes
        Size of the file, everything included.
    source_bytes
        Size of what was compressed.
    metadata
        What its maker says of it.
    content_hash
        As in `tersor.OpenFile.content_hash`; None also for what is not a file yet.
    output_error
        Relative error of the model's outputs, the norm of the differences over that of the dense
        model's, on batches held out from calibration; None where it was not measured.
    predicted_error
        The same, predicted: from calibration if there was one, else without data from the
        signal-to-noise ratio of the weakest weight, which is a rough guess. None
        where there is no factor, or a ratio is not known.
    calibrated
        Whether ``predicted_error`` is from calibration.
    warnings
        What may have gone wrong, in sentences that say what to do.
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
        """Size of the source over the size of the file."""
        return self.source_bytes / self.nbytes

    @property
    def weights(self) -> int:
        """Number of elements of all tensors, tied ones once."""
        return sum(t.numel for t in self.tensors if not t.note.startswith("same as"))

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file over the number of weights."""
        return 8 * self.nbytes / max(self.weights, 1)

    @property
    def lossless(self) -> bool:
        """Whether every tensor is kept exactly, to the last bit."""
        exact = ("exact", "same as")
        return all(t.tile is None and t.note.startswith(exact) for t in self.tensors)

    @property
    def factored(self) -> tuple[TensorSummary, ...]:
        """The tensors that are stored as factors."""
        return tuple(t for t in self.tensors if t.tile is not None)


def summarize(archive: Archive, nbytes: int | None = None) -> Report:
    """Summary of an archive, of which the size in bytes of its file may be known already."""
    tensors = []
    for name, entry in archive.entries.items():
        content = entry.content
        size = content.coded_bytes if isinstance(content, EncodedFactors) else 0
        tensors.append(_summarize(header.field(name, entry), size))
    size = container.size(archive) if nbytes is None else nbytes
    return _report(tensors, size, archive.source_bytes, archive.metadata)


def summarize_file(found: Layout) -> Report:
    """Summary of a file from its header alone."""
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
    """Summary of a tensor whose own sections, if it has some, are of so many bytes."""
    detail, dtype = field.detail, dtypes.NAMES[field.dtype]
    if isinstance(detail, str):
        return TensorSummary(field.name, field.shape, dtype, 0, note=f"same as {detail}")
    if isinstance(detail, EncodedFactors):
        # As the file has it, or what is shown now and later would differ.
        snr = None if math.isnan(detail.snr) else hundredths(detail.snr) / 100
        return TensorSummary(
            field.name, field.shape, dtype, section_bytes, detail.tile, detail.rank, snr
        )
    note = f"{'exact' if field.kind == EXACT else 'at 16 bits'}: {detail.describe()}"
    return TensorSummary(field.name, field.shape, dtype, field.stored_bytes, note=note)


def kept_groups(report: Report) -> list[tuple[str, tuple[TensorSummary, ...]]]:
    """Tensors that are not factored: those whose names differ in numbers only, under one name.

    Members of a group have the same type and note. A group of one goes by its tensor's name, others
    by a pattern with ``*`` for the numbers.
    """
    groups: dict[tuple[str, str, str], list[TensorSummary]] = {}
    for t in report.tensors:
        if t.tile is None:
            groups.setdefault((re.sub(r"\d+", "*", t.name), t.dtype, t.note), []).append(t)
    return [
        (members[0].name if len(members) == 1 else pattern, tuple(members))
        for (pattern, _, _), members in groups.items()
    ]
