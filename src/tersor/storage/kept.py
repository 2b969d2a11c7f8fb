"""Tensors that are kept as they are, or rounded to bfloat16, in groups: the sections of a file.

A large tensor is cut into pieces and small ones share a group, so that threads can work on groups
of about one size, and little is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.errors import FileFormatError
from tersor.parallel import ordered
from tersor.storage import planes
from tersor.storage.header import EXACT, Field
from tersor.storage.planes import Elements, elements

GROUP_BYTES = 1 << 20
"""Most bytes of a piece, and of the pieces that share a group: a multiple of the size of any
element, and large enough for codes of their own to cost nothing."""


class Piece(NamedTuple):
    """Bytes ``start`` to ``stop`` of the tensor of that number."""

    tensor: int
    start: int
    stop: int


def group(sizes: Iterable[int]) -> Iterator[list[Piece]]:
    """Pieces of consecutive tensors, of these sizes in bytes, that share a group."""
    members: list[Piece] = []
    total = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, GROUP_BYTES):
            piece = Piece(tensor, start, min(start + GROUP_BYTES, size))
            if total + piece.stop - piece.start > GROUP_BYTES:
                yield members
                members, total = [], 0
            members.append(piece)
            total += piece.stop - piece.start
    if members:
        yield members


def take(whole: Elements, piece: Piece) -> Elements:
    """A piece of a tensor's elements."""
    size = whole.words.itemsize
    return whole._replace(words=whole.words[piece.start // size : piece.stop // size])


def encode_all(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[bytes]:
    """The sections of tensors, and whether each is exact, one for each group, as they are needed.

    They are the same on any number of threads.
    """
    return ordered(planes.encode, _gather(tensors))


def _gather(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[list[Elements]]:
    whole: dict[int, Elements] = {}  # of one tensor: others need not stay in memory
    for pieces in group(t.nbytes for t, _ in tensors):
        members = []
        for piece in pieces:
            if piece.tensor not in whole:
                whole = {piece.tensor: elements(*tensors[piece.tensor])}
            members.append(take(whole[piece.tensor], piece))
        yield members


def check_claims(fields: Sequence[Field], sizes: Iterable[int]) -> None:
    """Refuse tensors that sections of these sizes cannot hold, before any memory is taken for them.

    Raises
    ------
    FileFormatError
        Naming the first tensor of the group.
    """
    for pieces, size in zip(group(f.stored_bytes for f in fields), sizes, strict=True):
        claimed = sum(p.stop - p.start for p in pieces)
        if claimed > planes.MOST_EXPANSION * size:
            raise FileFormatError(
                f"the group of {fields[pieces[0].tensor].name!r} is damaged: "
                f"{size} bytes cannot hold {claimed}"
            )


def decode(
    fields: Sequence[Field], wanted: Collection[str], section: Callable[[int], bytes]
) -> Iterator[tuple[Field, Tensor]]:
    """Kept tensors, as stored, each when its last piece is decoded; in threads, in order.

    Parameters
    ----------
    fields
        All kept tensors of the file.
    wanted
        Names of those to decode.
    section
        Gives the section of the group of that number; called for groups with something wanted.

    Raises
    ------
    FileFormatError
        If a section does not hold what the fields say.
    """

    def work(job: _Job) -> list[tuple[Field, Tensor]]:
        _fill(job.members, section(job.group))
        return job.complete

    yield from ((f, _empty(f)) for f in fields if f.name in wanted and not f.stored_bytes)
    for complete in ordered(work, _jobs(fields, wanted)):
        yield from complete


class _Job(NamedTuple):
    """A group to decode: where its pieces go, and which tensors are complete then."""

    group: int
    members: list[tuple[Field, Elements]]
    complete: list[tuple[Field, Tensor]]


def _jobs(fields: Sequence[Field], wanted: Collection[str]) -> Iterator[_Job]:
    tensor = torch.empty(0)  # the one that the latest piece is of
    for number, pieces in enumerate(group(f.stored_bytes for f in fields)):
        if not any(fields[p.tensor].name in wanted for p in pieces):
            continue
        job = _Job(number, [], [])
        for piece in pieces:
            field = fields[piece.tensor]
            if field.name not in wanted:
                job.members.append(_scratch(field, piece))
                continue
            if piece.start == 0:
                tensor = _empty(field)
            job.members.append((field, take(elements(tensor, field.kind == EXACT), piece)))
            if piece.stop == field.stored_bytes:
                job.complete.append((field, tensor))
        yield job


def _empty(field: Field) -> Tensor:
    return torch.empty(field.shape, dtype=field.stored_dtype)


def _scratch(field: Field, piece: Piece) -> tuple[Field, Elements]:
    """Memory for a piece that nobody asked for."""
    size = (piece.stop - piece.start) // field.stored_dtype.itemsize
    return field, elements(torch.empty(size, dtype=field.stored_dtype), field.kind == EXACT)


def check(fields: Sequence[Field], pieces: Sequence[Piece], section: bytes) -> None:
    """Decode one group into memory of its own, and forget it.

    Raises
    ------
    FileFormatError
        If the section does not hold what the fields say.
    """
    _fill([_scratch(fields[piece.tensor], piece) for piece in pieces], section)


def _fill(members: Sequence[tuple[Field, Elements]], section: bytes) -> None:
    what = f"the group of {members[0][0].name!r}"
    planes.decode(section, [piece for _, piece in members], what)
    for field, piece in members:
        if field.dtype == torch.bool and piece.words.max() > 1:
            raise FileFormatError(f"{what} is damaged: a BOOL of {piece.words.max()}, not 0 or 1")
