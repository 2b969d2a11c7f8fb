# SPDX-License-Identifier: Apache-2.0
"""Encode and decode the unfactored tensors in groups.

An unfactored tensor is stored exactly or rounded to bfloat16. A large tensor is cut into pieces and
small ones share a group, so that threads work on groups of about the same size and need little
memory. Each group is a section of the file.
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
"""Most bytes of a group of pieces. It is a multiple of the size of every element type, and so large
that separate codes for each group cost almost nothing."""


class Piece(NamedTuple):
    """Bytes ``start`` to ``stop`` of the tensor with the number ``tensor``."""

    tensor: int
    start: int
    stop: int


def group(sizes: Iterable[int]) -> Iterator[list[Piece]]:
    """Yield groups of pieces of consecutive tensors.

    Parameters
    ----------
    sizes
        Size in bytes of each tensor.

    Yields
    ------
    list
        Pieces that share a group, together at most `GROUP_BYTES` bytes.
    """
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
    """Return a piece of a tensor's elements."""
    size = whole.words.itemsize
    return whole._replace(words=whole.words[piece.start // size : piece.stop // size])


def encode_all(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[bytes]:
    """Yield the sections of unfactored tensors, one for each group, encoded when asked for.

    The bytes are the same with any number of threads.

    Parameters
    ----------
    tensors
        Each tensor, and whether it is stored exactly.
    """
    return ordered(planes.encode, _gather(tensors))


def _gather(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[list[Elements]]:
    whole: dict[int, Elements] = {}  # holds one tensor, so that the others can be freed
    for pieces in group(t.nbytes for t, _ in tensors):
        members = []
        for piece in pieces:
            if piece.tensor not in whole:
                whole = {piece.tensor: elements(*tensors[piece.tensor])}
            members.append(take(whole[piece.tensor], piece))
        yield members


def check_claims(fields: Sequence[Field], sizes: Iterable[int]) -> None:
    """Refuse tensors that sections of these sizes cannot hold, before memory is allocated.

    Parameters
    ----------
    fields
        All unfactored tensors of the file.
    sizes
        Size in bytes of the section of each group.

    Raises
    ------
    FileFormatError
        If a section is too small; the message names the first tensor of its group.
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
    """Yield unfactored tensors in their stored types, each as soon as its last piece is decoded.

    Groups are decoded in threads; the order is that of the fields, but empty tensors come first.

    Parameters
    ----------
    fields
        All unfactored tensors of the file.
    wanted
        Names of the tensors to decode.
    section
        Returns the section of the group of that number; called for groups that hold a wanted
        tensor.

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
    """A group to decode: where its pieces go, and which tensors are complete afterwards."""

    group: int
    members: list[tuple[Field, Elements]]
    complete: list[tuple[Field, Tensor]]


def _jobs(fields: Sequence[Field], wanted: Collection[str]) -> Iterator[_Job]:
    tensor = torch.empty(0)  # the tensor of the latest piece
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
    """Return memory for a piece whose tensor is not wanted."""
    size = (piece.stop - piece.start) // field.stored_dtype.itemsize
    return field, elements(torch.empty(size, dtype=field.stored_dtype), field.kind == EXACT)


def check(fields: Sequence[Field], pieces: Sequence[Piece], section: bytes) -> None:
    """Decode one group into temporary memory, to check it.

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
