# SPDX-License-Identifier: Apache-2.0
import hashlib
import struct
from dataclasses import replace

import pytest
import specified
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import archives, plain, random_factors, small_archive, to_file_bytes

from tersor.coding import records
from tersor.errors import FileFormatError, InputError
from tersor.io import dense_tensors
from tersor.storage import label
from tersor.storage.archive import Archive, Entry, Reason
from tersor.storage.label import Label
from tersor.storage.opened import OpenFile
from tersor.storage.verify import verify

KEYS = st.text(min_size=1, max_size=50)


@given(st.dictionaries(KEYS, st.text(max_size=300), max_size=64), st.booleans())
def test_labels_come_back(metadata, hashed):
    given = Label(metadata, hashlib.sha256(b"").digest() if hashed else b"")
    data = label.write(given)
    assert label.read(data) == given and len(data) == label.size(metadata, hashed)
    assert list(label.read(data).metadata) == list(metadata)  # in their order


def test_nothing_takes_no_bytes():
    assert label.write(Label()) == b"" and label.size({}, False) == 0
    plain, said = (to_file_bytes(replace(small_archive(), hashed=h)) for h in (False, True))
    assert len(said) - len(plain) <= 4 + 34 + 2


@pytest.mark.parametrize(
    "metadata, problem",
    [
        ({"": "x"}, "the key '' has 0 bytes, not 1 to 255"),
        ({"é" * 128: "x"}, "has 256 bytes"),
        ({"k": "x" * 2**16}, "it has 65537 bytes, more than 65536"),
        ({str(i): "" for i in range(65)}, "there are 65 entries, at most 64"),
        ({"k": 3}, "must be text, got 3"),
        ({"k": "\ud800"}, "is not valid Unicode"),
    ],
)
def test_what_cannot_be_stored_is_refused(metadata, problem):
    with pytest.raises(InputError, match=problem):
        label.check_metadata(metadata)


def test_limits_are_allowed():
    label.check_metadata({"k" * 255: "x" * (2**16 - 255)} | {str(i): "" for i in range(0)})
    label.check_metadata({str(i): "" for i in range(64)})


def test_texts_become_metadata():
    assert label.parse_metadata(["a=b", "c==", "d="]) == {"a": "b", "c": "=", "d": ""}
    for texts in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(InputError):
            label.parse_metadata(texts)


@given(archives())
def test_the_hash_is_that_of_the_specification(archive):
    tensors = dense_tensors(archive)
    described = {
        name: (specified.TYPES[str(t.dtype).removeprefix("torch.")], list(t.shape), raw(t))
        for name, t in tensors.items()
    }
    assert label.content_hash(archive) == specified.content_hash(described)


def raw(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_of_equal_tensors_have_equal_hashes():
    """Whatever the order, and however they are stored."""
    archive = small_archive()
    tensors = dense_tensors(archive)
    exact = Archive({n: plain(tensors[n], Reason.LOSSLESS) for n in reversed(tensors)}, 7)
    hashes = [label.content_hash(OpenFile(to_file_bytes(a))) for a in (archive, exact)]
    assert hashes[0] == hashes[1] == label.content_hash(archive)
    changed = {**exact.entries, "layer.bias": plain(torch.zeros(4), Reason.LOSSLESS)}
    assert label.content_hash(Archive(changed, 7)) != hashes[0]
    renamed = {f"{n}_": e for n, e in exact.entries.items()}
    assert label.content_hash(Archive(renamed, 7)) != hashes[0]


def test_a_large_weight_is_hashed_in_pieces():
    shape = (700, 1000)
    entry = Entry(shape, torch.float32, records.encode(random_factors(shape, 100, 2)))
    archive = Archive({"w": entry}, 1)
    (weight,) = dense_tensors(archive).values()
    assert label.content_hash(archive) == specified.content_hash({"w": (1, [*shape], raw(weight))})


def test_verify_compares_the_hash():
    data = to_file_bytes(replace(small_archive(), hashed=True))
    assert not verify(data).problems
    other = bytearray(data)
    other[-1] ^= 1
    assert "follows the sections is damaged" in verify(bytes(other)).problems[0]
    other[-38:-34] = struct.pack("<I", specified.zlib.crc32(bytes(other[-34:])))
    (problem,) = verify(bytes(other)).problems
    assert problem.startswith("the tensors are not those of its content hash")
    assert dense_tensors(OpenFile(bytes(other)))  # which reading does not compare


def test_a_reader_says_what_it_does_not_know():
    with pytest.raises(FileFormatError, match="unknown tag 9: reading the file takes a later"):
        label.read(b"\x09\x00")
