# SPDX-License-Identifier: Apache-2.0
"""Verification of whole files."""

from samples import small_archive, to_file_bytes

from tersor.storage.verify import Verification
from tersor.storage.verify import verify as verify_file

DATA = to_file_bytes(small_archive())


def verify(data, **options):
    return verify_file(data, **options)


def test_an_intact_file():
    steps = []
    found = verify(DATA, progress=lambda name, done: steps.append((name, done)))
    assert found == Verification(4, len(DATA), ())
    assert steps == [("layer.weight", 0.0), ("layer.bias and 1 more", 0.5)]


def test_every_flip_and_truncation_is_found():
    for position in range(len(DATA)):
        for bit in range(8):
            flipped = DATA[:position] + bytes([DATA[position] ^ 1 << bit]) + DATA[position + 1 :]
            assert len(verify(flipped).problems) == 1, (position, bit)
        assert len(verify(DATA[:position]).problems) == 1, position
