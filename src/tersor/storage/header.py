# SPDX-License-Identifier: Apache-2.0
"""Encode the entries of an archive, without their sections, as the header of a file.

Fields stand in columns (all names, then all data types and so on), not tensor by tensor, because
similar neighbours compress better. docs/format.md lists the fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import torch

from tersor.coding.entropy import Coding
from tersor.coding.rate import TRELLISES
from tersor.coding.records import EncodedFactors, flaw
from tersor.errors import FileFormatError, InputError
from tersor.storage import dtypes
from tersor.storage.archive import Alias, Entry, Plain, Reason
from tersor.storage.cursor import Reader, Writer
from tersor.tiling import Tiling

EXACT, ROUNDED, FACTORS, ALIAS = range(4)
"""Kinds of entries, numbered as in the file."""

_LEAST_TENSOR = 6
"""Smallest number of bytes of a tensor in the header: two sizes for its name, its data type, its
kind, its number of axes, and at least one byte for the reason why it is unfactored or for other
details.
"""

_MAX_ELEMENTS = 1 << 48
_MAX_NAMES = 1 << 26
_LARGEST_SNR = 300
_STATES = (1, *sorted(TRELLISES))
_NO_SNR = 30001
_T = TypeVar("_T")


class Field(NamedTuple):  # a NamedTuple is made faster and takes less memory than a dataclass
    """The content of the header for one tensor.

    Parameters
    ----------
    name
        Name of the tensor.
    shape, dtype
        Shape and data type of the dense tensor.
    kind
        One of `EXACT`, `ROUNDED`, `FACTORS`, `ALIAS`.
    detail
        For an exact or rounded tensor, the reason why it is unfactored; for a factored one, its
        factors without their streams; for an alias, the name of the original tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: int
    detail: Reason | EncodedFactors | str

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return the data type of the values in the file, for an unfactored tensor."""
        return torch.bfloat16 if self.kind == ROUNDED else self.dtype

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of the values before compression, for an unfactored tensor."""
        return math.prod(self.shape) * self.stored_dtype.itemsize

    @property
    def decoded_bytes(self) -> int:
        """Return the bytes of the dense tensor and of its factors, if any, as 16-bit integers."""
        return math.prod(self.shape) * self.dtype.itemsize + self.factor_bytes

    @property
    def slices(self) -> int:
        """Return the number of slices in which the latent is coded; 0 for an unfactored tensor."""
        if not isinstance(self.detail, EncodedFactors):
            return 0
        slice_rows = self.detail.coding.slice_rows
        return self.shape[0] // slice_rows if slice_rows else 1

    @property
    def factor_bytes(self) -> int:
        """Return the bytes of the factors as 16-bit integers; 0 for an unfactored tensor."""
        if not isinstance(self.detail, EncodedFactors):
            return 0
        columns = Tiling(self.shape, self.detail.tile).count
        return 2 * self.detail.rank * (self.detail.tile + columns)


def kind(entry: Entry) -> int:
    """Return the kind of an entry in the file."""
    if isinstance(entry.content, Alias):
        return ALIAS
    if isinstance(entry.content, EncodedFactors):
        return FACTORS
    return EXACT if entry.content.values.dtype == entry.dtype else ROUNDED


def field(name: str, entry: Entry) -> Field:
    """Return what the header holds for an entry."""
    content = entry.content
    detail: Reason | EncodedFactors | str
    if isinstance(content, EncodedFactors):
        detail = content
    else:
        detail = content.target if isinstance(content, Alias) else content.reason
    return Field(name, entry.shape, entry.dtype, kind(entry), detail)


def write(out: Writer, entries: Mapping[str, Entry]) -> None:
    """Append the header of these entries.

    Raises
    ------
    InputError
        If a name is not valid Unicode.
    """
    positions = {name: i for i, name in enumerate(entries)}
    contents = [e.content for e in entries.values()]
    out.integer(len(entries))
    _write_names(out, list(entries))
    out.raw(bytes(dtypes.CODES.index(e.dtype) for e in entries.values()))
    out.raw(bytes(map(kind, entries.values())))
    out.raw(bytes(len(e.shape) for e in entries.values()))
    out.integers(n for e in entries.values() for n in e.shape)
    out.raw(bytes(c.reason for c in contents if isinstance(c, Plain)))
    out.integers(positions[c.target] for c in contents if isinstance(c, Alias))
    _write_records(out, [c for c in contents if isinstance(c, EncodedFactors)])


def read(reader: Reader) -> list[Field]:
    """Parse and check the fields that `write` wrote.

    Raises
    ------
    FileFormatError
        If a field is missing, is unknown or contradicts another field.
    """
    count = reader.integer(limit=reader.left // _LEAST_TENSOR)
    names = _read_names(reader, count)
    types = [_choose(dtypes.CODES, b, "data type") for b in reader.raw(count)]
    kinds = [_choose([EXACT, ROUNDED, FACTORS, ALIAS], b, "kind") for b in reader.raw(count)]
    shapes = _read_shapes(reader, count)
    reasons = reader.raw(sum(kind in (EXACT, ROUNDED) for kind in kinds))
    known = {b: Reason(b) for b in set(reasons)}
    kept = iter([known[b] for b in reasons])
    aliases = iter(reader.integers(kinds.count(ALIAS)))
    weights = [(shapes[i], types[i]) for i in range(count) if kinds[i] == FACTORS]
    encoded = iter(_read_records(reader, weights))
    fields: list[Field] = []
    for name, shape, dtype, kind in zip(names, shapes, types, kinds, strict=True):
        detail: Reason | EncodedFactors | str
        if kind == ALIAS:
            detail = _alias_target(fields, next(aliases), shape, dtype)
        else:
            detail = next(encoded) if kind == FACTORS else next(kept)
        if kind == ROUNDED and dtype not in (torch.float32, torch.float64):
            raise FileFormatError(f"{name!r} of type {dtype} cannot have been rounded to bfloat16")
        fields.append(Field(name, shape, dtype, kind, detail))
    return fields


def _choose(values: Sequence[_T], position: int, what: str) -> _T:
    if position >= len(values):
        raise FileFormatError(f"unknown {what} {position} in the header")
    return values[position]


def _read_shapes(reader: Reader, count: int) -> list[tuple[int, ...]]:
    axes = reader.raw(count)
    if max(axes, default=0) > dtypes.MAX_AXES:
        raise FileFormatError(f"a tensor of {max(axes)} axes; {dtypes.MAX_AXES} are allowed")
    lengths = iter(reader.integers(sum(axes)))
    shapes = [tuple(islice(lengths, n)) for n in axes]
    for shape in shapes:  # counting an empty axis as 1 finds strides of other axes that overflow
        if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
            raise FileFormatError(f"a tensor of shape {shape} is too large")
    return shapes


def _alias_target(
    before: list[Field], position: int, shape: tuple[int, ...], dtype: torch.dtype
) -> str:
    target = _choose(before, position, "tensor")
    if target.kind == ALIAS or (target.shape, target.dtype) != (shape, dtype):
        raise FileFormatError(f"an alias of {target.name!r} differs from it in shape or type")
    return target.name


def _write_names(out: Writer, names: list[str]) -> None:
    previous = b""
    for name in map(_encode_name, names):
        shared = _shared_prefix(previous, name)
        out.integers([shared, len(name) - shared])
        out.raw(name[shared:])
        previous = name


def _encode_name(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the tensor name {name!r} is not valid Unicode; rename it") from None


def _shared_prefix(a: bytes, b: bytes) -> int:
    """Return the number of bytes at the beginning that two names have in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _read_names(reader: Reader, count: int) -> list[str]:
    names: list[str] = []
    previous, total = b"", 0
    for _ in range(count):
        shared, added = reader.integers(2)
        if shared > len(previous):
            raise FileFormatError("a name shares more bytes than the name before it has")
        previous = previous[:shared] + reader.raw(added)
        if (total := total + len(previous)) > _MAX_NAMES:
            raise FileFormatError(f"the names take more than {_MAX_NAMES} bytes")
        try:
            names.append(previous.decode())
        except UnicodeDecodeError:
            raise FileFormatError("a tensor name is not UTF-8") from None
    if len(set(names)) != count:
        raise FileFormatError("two tensors have the same name")
    return names


def _write_records(out: Writer, factors: list[EncodedFactors]) -> None:
    out.integers(f.tile for f in factors)
    out.integers(f.rank for f in factors)
    for f in factors:
        out.pack("f", f.scale)
    for f in factors:
        out.pack("h", hundredths(f.snr))
    out.raw(bytes(_STATES.index(f.coding.states) for f in factors))
    out.raw(bytes(f.coding.codebook_start for f in factors))
    out.raw(bytes(f.coding.latent_start for f in factors))
    out.integers(f.coding.slice_rows for f in factors)


def hundredths(snr: float) -> int:
    """Return a signal-to-noise ratio in hundredths of a decibel, or the code for NaN."""
    return _NO_SNR if math.isnan(snr) else round(100 * min(max(snr, -_LARGEST_SNR), _LARGEST_SNR))


def _read_records(
    reader: Reader, weights: list[tuple[tuple[int, ...], torch.dtype]]
) -> list[EncodedFactors]:
    tiles = reader.integers(len(weights))
    ranks = reader.integers(len(weights))
    scales = [reader.unpack("f")[0] for _ in weights]
    snrs = [reader.unpack("h")[0] for _ in weights]
    for snr in snrs:
        if abs(snr) > 100 * _LARGEST_SNR and snr != _NO_SNR:
            raise FileFormatError(f"a signal-to-noise ratio of {snr} hundredths of a decibel")
    states = [_choose(_STATES, b, "trellis") for b in reader.raw(len(weights))]
    codebook_starts, latent_starts = (reader.raw(len(weights)) for _ in range(2))
    slice_rows = reader.integers(len(weights))
    for (shape, dtype), d, scale, rows in zip(weights, tiles, scales, slice_rows, strict=True):
        if problem := flaw(shape, dtype, d, scale, rows):
            raise FileFormatError(f"invalid factors: {problem}")
    codings = map(Coding, states, codebook_starts, latent_starts, slice_rows)
    return [
        EncodedFactors(*f[:4], (), math.nan if f[4] == _NO_SNR else f[4] / 100)
        for f in zip(tiles, scales, ranks, codings, snrs, strict=True)
    ]
