# SPDX-License-Identifier: Apache-2.0
"""Check whether a file is intact: check and decode all its parts, and report every problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tersor.coding import records
from tersor.coding.records import EncodedFactors
from tersor.errors import FileFormatError
from tersor.storage import label, layout, unfactored
from tersor.storage.header import Field
from tersor.storage.layout import Data, Layout
from tersor.storage.opened import OpenFile
from tersor.text import printable

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Verification:
    """The result of checking a file.

    Parameters
    ----------
    tensors
        Number of tensors that the header lists; 0 if the header cannot be read.
    nbytes
        Size of the file in bytes.
    problems
        One sentence for each problem; empty if the file is intact.
    """

    tensors: int
    nbytes: int
    problems: tuple[str, ...]


def verify(
    data: Data,
    *,
    max_bytes: int | None = None,
    progress: Progress = lambda message, done: None,
) -> Verification:
    """Check every byte of a file: magic number, header, checksums, and that each section decodes.

    If all this is intact and the file holds a hash of its content, the hash is compared too. A file
    with a damaged header is reported with one problem; otherwise each section may have one.

    Parameters
    ----------
    data
        All bytes of the file. One section at a time is decoded in memory.
    max_bytes
        Limit as in `tersor.storage.opened.OpenFile`; a file that needs more is reported as a
        problem.
    progress
        Called with the name of each tensor and the share of the sections that are done, from 0 to
        1.

    Returns
    -------
    Verification
        The number of tensors, the size and the problems found.
    """
    try:
        found = layout.read(data, max_bytes)
    except FileFormatError as error:
        return Verification(0, len(data), (str(error),))
    problems = tuple(_problems(data, found, progress))
    if found.label.content_hash and not problems:
        problems = tuple(_difference(data, found, max_bytes, progress))
    return Verification(len(found.fields), len(data), problems)


def _difference(
    data: Data, found: Layout, max_bytes: int | None, progress: Progress
) -> Iterator[str]:
    progress("content hash", 1.0)
    content_hash = label.content_hash(OpenFile(data, max_bytes=max_bytes))
    if content_hash != found.label.content_hash:
        yield (
            f"the tensors are not those of its content hash: {found.label.content_hash.hex()} in "
            f"the file, {content_hash.hex()} of the tensors"
        )


def _problems(data: Data, found: Layout, progress: Progress) -> Iterator[str]:
    checks = list(_checks(found))
    for done, (name, positions, check) in enumerate(checks):
        progress(name, done / len(checks))
        try:
            check([found.section(data, position) for position in positions])
        except FileFormatError as error:
            yield f"{printable(name)}: {error}"


def _checks(found: Layout) -> Iterator[tuple[str, Sequence[int], Callable[[list[bytes]], object]]]:
    """Yield a name, the positions of sections that belong together, and their decoder."""
    for field in found.factored:
        yield field.name, found.streams[field.name], partial(_decode, field)
    groups = unfactored.group(f.stored_bytes for f in found.plain)
    for position, pieces in zip(found.groups, groups, strict=True):
        names = dict.fromkeys(found.plain[p.tensor].name for p in pieces)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{next(iter(names))}{others}", [position], partial(_inflate, found.plain, pieces)


def _inflate(fields: list[Field], pieces: list[unfactored.Piece], sections: list[bytes]) -> None:
    (section,) = sections
    unfactored.check(fields, pieces, section)


def _decode(field: Field, sections: list[bytes]) -> None:
    assert isinstance(field.detail, EncodedFactors)
    encoded = replace(field.detail, streams=tuple(sections))
    records.decode(encoded, field.shape, field.dtype)
