"""Is a file intact? Everything in it is checked and decoded, and all that is wrong is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from tersor.errors import FileFormatError
from tersor.storage import container, kept, records
from tersor.storage.container import Layout
from tersor.storage.header import Field
from tersor.storage.records import EncodedFactors

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Verification:
    """What was found in a file.

    Parameters
    ----------
    tensors
        Number of tensors that the header lists; 0 if it cannot be read.
    nbytes
        Size of the file in bytes.
    problems
        All that is wrong with it, in words; none if it is intact.
    """

    tensors: int
    nbytes: int
    problems: tuple[str, ...]


def verify(
    file: BinaryIO,
    *,
    max_bytes: int = container.MAX_BYTES,
    progress: Progress = lambda message, done: None,
) -> Verification:
    """Check every byte of a file: magic number, header, checksums, and that each section decodes.

    A file whose header is damaged has one problem; else each section may have one.

    Parameters
    ----------
    file
        Open for reading, in binary mode; memory is taken for one section at a time.
    max_bytes
        As for `tersor.storage.container.read`: to ask for more is a problem, too.
    progress
        Called with the name of each tensor and the share of the sections that are done.
    """
    nbytes = file.seek(0, os.SEEK_END)
    try:
        layout = container.layout(file, max_bytes)
    except FileFormatError as error:
        return Verification(0, nbytes, (str(error),))
    return Verification(len(layout.fields), nbytes, tuple(_problems(file, layout, progress)))


def _problems(file: BinaryIO, layout: Layout, progress: Progress) -> Iterator[str]:
    checks = list(_checks(layout))
    for position, (name, check) in enumerate(checks):
        progress(name, position / len(checks))
        try:
            check(container.section(file, position, layout.stamps[position]))
        except FileFormatError as error:
            yield f"{name}: {error}"


def _checks(layout: Layout) -> Iterator[tuple[str, Callable[[bytes], object]]]:
    """For each section whose it is, and what decodes it."""
    for field in layout.factored:
        yield field.name, partial(_decode_factors, field)
    for pieces in kept.group(f.stored_bytes for f in layout.plain):
        names = dict.fromkeys(layout.plain[p.tensor].name for p in pieces)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{next(iter(names))}{others}", partial(kept.check, layout.plain, pieces)


def _decode_factors(field: Field, section: bytes) -> None:
    assert isinstance(field.detail, EncodedFactors)  # the kind says so
    records.decode(replace(field.detail, payload=section), field.shape, field.dtype)
