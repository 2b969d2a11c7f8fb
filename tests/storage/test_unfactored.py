# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import bits, generator

from tersor.errors import FileFormatError
from tersor.storage import unfactored
from tersor.storage.archive import Reason
from tersor.storage.header import EXACT, ROUNDED, Field


def fields_of(tensors, kind=EXACT):
    types = [torch.float32 if kind == ROUNDED else t.dtype for t in tensors]
    return [
        Field(str(i), tuple(t.shape), dtype, kind, Reason.VECTOR)
        for i, (t, dtype) in enumerate(zip(tensors, types, strict=True))
    ]


def sections_of(tensors, exact=True):
    return list(unfactored.encode_all([(t, exact) for t in tensors]))


def decode_all(fields, sections):
    names = [f.name for f in fields]
    found = {f.name: t for f, t in unfactored.decode(fields, names, sections.__getitem__)}
    return {name: found[name] for name in names}


@given(st.lists(st.integers(0, 400_000).map(lambda n: 8 * n), max_size=12))
def test_pieces_are_consecutive_and_limited(sizes):
    groups = list(unfactored.group(sizes))
    ends = [0] * len(sizes)
    order = []
    for members in groups:
        total = sum(p.stop - p.start for p in members)
        assert 0 < total <= unfactored.GROUP_BYTES
        for piece in members:
            assert piece.start == ends[piece.tensor] < piece.stop
            ends[piece.tensor] = piece.stop
            order.append(piece.tensor)
    assert ends == sizes and order == sorted(order)


def test_groups_are_filled():
    """A piece begins a new group only if it does not fit the one before."""
    groups = list(unfactored.group([8, 2**20, 2**20 + 8, 2**19, 0, 2**20 - 2**19 - 8, 8]))
    assert groups == [
        [(0, 0, 8)],
        [(1, 0, 2**20)],
        [(2, 0, 2**20)],
        [(2, 2**20, 2**20 + 8), (3, 0, 2**19), (5, 0, 2**19 - 8)],
        [(6, 0, 8)],
    ]


@pytest.mark.parametrize("kind", [EXACT, ROUNDED])
def test_large_tensors_come_back_from_their_pieces(kind):
    draw = generator()
    large = torch.randn(701, 1009, generator=draw).T
    tensors = [torch.ones(3), large, torch.zeros(0, 4), torch.randn(5, generator=draw)]
    if kind == ROUNDED:
        tensors = [t.bfloat16() for t in tensors]
    sections = sections_of(tensors, kind == EXACT)
    assert len(sections) == 1 + -(-large.numel() * tensors[1].itemsize // unfactored.GROUP_BYTES)
    back = decode_all(fields_of(tensors, kind), sections)
    assert [bits(t) for t in back.values()] == [bits(t) for t in tensors]


def test_the_same_sections_on_any_number_of_threads():
    tensors = [torch.randn(400_000, generator=generator(i)) for i in range(3)]
    expected = sections_of(tensors)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert sections_of(tensors) == expected
    finally:
        torch.set_num_threads(threads)


def test_claims_beyond_what_a_section_can_hold_are_refused():
    fields = [Field("w", (2**16,), torch.float32, EXACT, Reason.VECTOR)]
    unfactored.check_claims(fields, [255])
    with pytest.raises(FileFormatError, match="group of 'w' is damaged: 254 bytes cannot hold 262"):
        unfactored.check_claims(fields, [254])


def test_damaged_sections_are_named():
    tensors = [torch.randn(300_000), torch.randn(9)]
    sections = sections_of(tensors)
    with pytest.raises(FileFormatError, match="the group of '0' is damaged"):
        decode_all(fields_of(tensors), [sections[0], sections[0]])


def test_empty_tensors_need_no_section():
    tensors = [torch.zeros(0, 3), torch.zeros(2, 0, dtype=torch.int64)]
    assert sections_of(tensors) == []
    assert decode_all(fields_of(tensors), []).keys() == {"0", "1"}
