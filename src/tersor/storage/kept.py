"""Tensors that are kept as they are, or rounded to bfloat16, in groups: the sections of a file.

A large tensor is cut into pieces and small ones share a group, so that threads can work on groups
of about one size, and little is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.errors import FileFormatError
from tersor.storage import planes
from tersor.storage.header import EXACT, Field
from tersor.storage.parallel import ordered
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


def decode_all(fields: Sequence[Field], sections: Iterable[bytes]) -> dict[str, Tensor]:
    """Kept tensors, as stored, by name; sections are taken one by one.

    Raises
    ------
    FileFormatError
        If a section does not hold what the fields say.
    """
    tensors = {f.name: torch.empty(f.shape, dtype=f.stored_dtype) for f in fields}
    whole = [elements(tensors[f.name], f.kind == EXACT) for f in fields]

    def decode(job: tuple[list[Piece], bytes]) -> None:
        pieces, section = job
        _fill([(fields[p.tensor], take(whole[p.tensor], p)) for p in pieces], section)

    groups = group(f.stored_bytes for f in fields)
    for _ in ordered(decode, zip(groups, sections, strict=True)):
        pass
    return tensors


def check(fields: Sequence[Field], pieces: Sequence[Piece], section: bytes) -> None:
    """Decode one group into memory of its own, and forget it.

    Raises
    ------
    FileFormatError
        If the section does not hold what the fields say.
    """
    members = []
    for tensor, start, stop in pieces:
        field = fields[tensor]
        scratch = torch.empty(
            (stop - start) // field.stored_dtype.itemsize, dtype=field.stored_dtype
        )
        members.append((field, elements(scratch, field.kind == EXACT)))
    _fill(members, section)


def _fill(members: Sequence[tuple[Field, Elements]], section: bytes) -> None:
    what = f"the group of {members[0][0].name!r}"
    planes.decode(section, [piece for _, piece in members], what)
    for field, piece in members:
        if field.dtype == torch.bool and piece.words.max() > 1:
            raise FileFormatError(f"{what} is damaged: a BOOL of {piece.words.max()}, not 0 or 1")
