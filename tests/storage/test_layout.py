# SPDX-License-Identifier: Apache-2.0
"""What is refused before any tensor is decoded."""

import re
import tracemalloc

import pytest
import torch
from samples import plain, small_archive, to_file_bytes

import tersor
from tersor.coding import records
from tersor.errors import FileFormatError, InputError
from tersor.storage import container, memory
from tersor.storage.archive import Archive, Entry, Plain, Reason
from tersor.storage.opened import OpenFile, open_file


def test_every_truncation_is_refused():
    data = to_file_bytes(small_archive())
    for length in range(len(data)):
        with pytest.raises(FileFormatError):
            OpenFile(data[:length])


def test_every_flipped_bit_is_refused():
    data = to_file_bytes(small_archive())
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(FileFormatError):
            OpenFile(bytes(flipped)).check_sections()


@pytest.mark.parametrize("extra", [b"\0", b"x" * 100])
def test_longer_files_are_refused(extra):
    with pytest.raises(FileFormatError, match="its header says"):
        OpenFile(to_file_bytes(small_archive()) + extra)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a tersor file"),
        (b"plain text, not a model", "not a tersor file"),
        (container.MAGIC, "ends within its first 21 bytes"),
        (container.MAGIC + b"\7" + bytes(12), "format version 7; this release reads version 1"),
        (container.MAGIC + b"\1" + b"\0\0\0\0\xff\xff\xff\xff" + bytes(4), "header of 4294967295"),
        (container.MAGIC + b"\1" + bytes(12), "the header is damaged"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(FileFormatError, match=message):
        OpenFile(data)


def test_more_than_the_limit_is_refused():
    archive = Archive({"w": plain(torch.zeros(1000), Reason.VECTOR)}, 1)
    data = to_file_bytes(archive)
    with pytest.raises(FileFormatError, match="decoding takes 4000 bytes; at most 3999"):
        OpenFile(data, max_bytes=3999)
    assert len(OpenFile(data, max_bytes=4000)) == 1


def zeros(count):
    """Weights of a megabyte each, in a few bytes."""
    weight = records.zero((2**18, 1), torch.float32, 0.0)
    entries = {str(i): Entry((2**18, 1), torch.float32, weight) for i in range(count)}
    return to_file_bytes(Archive(entries, 1))


def test_without_a_limit_the_memory_of_the_machine_is_one(monkeypatch, tmp_path):
    """For each tensor, twice what it takes; for all of them, where all are held."""
    monkeypatch.setattr(memory, "available", lambda: 2**21 - 1)
    with pytest.raises(FileFormatError, match="decoding '0' takes 2097152 bytes, and 2097151 are"):
        OpenFile(zeros(1))
    monkeypatch.setattr(memory, "available", lambda: 2**21)
    with OpenFile(zeros(3)) as file:
        assert len(file) == 3 and not file["2"].any()
        with pytest.raises(FileFormatError, match=f"takes {3 * 2**20} bytes, and 2097152 are left"):
            file.check_room()
    path = tmp_path / "zeros.tersor"
    path.write_bytes(zeros(3))
    with pytest.raises(FileFormatError, match=r"zeros\.tersor: .* give 3145728 as max_bytes"):
        tersor.load_state_dict(path)
    assert len(tersor.load_state_dict(path, max_bytes="3 MiB")) == 3


def many(count):
    """Empty tensors, which cost a file nearly nothing."""
    entries = {f"{i:06}": plain(torch.empty(0), Reason.EMPTY) for i in range(count)}
    return to_file_bytes(Archive(entries, 1))


def test_a_header_far_larger_than_its_file_needs_a_limit():
    data = many(40_000)
    assert len(data) < 4000
    with pytest.raises(
        FileFormatError, match=r"if you trust the file, give \d+ as max_bytes"
    ) as refused:
        OpenFile(data)
    needed = int(re.search(r"give (\d+)", str(refused.value))[1])
    with pytest.raises(FileFormatError, match="lists more than the file can hold"):
        OpenFile(data, max_bytes=needed - 1)
    assert len(OpenFile(data, max_bytes=needed)) == 40_000


def test_many_tensors_are_no_reason_to_refuse():
    assert len(OpenFile(many(20_000))) == 20_000


def test_factors_count_for_the_limit():
    """Six columns of rank 3 for tiles of 4 take more than the weight itself."""
    data = to_file_bytes(Archive({"w": small_archive().entries["layer.weight"]}, 1))
    needed = 4 * 60 + 2 * 3 * (4 + 18)
    with pytest.raises(FileFormatError, match=f"takes {needed} bytes"):
        OpenFile(data, max_bytes=needed - 1)


@pytest.mark.parametrize(
    "elements, message",
    [(2**31, "header ends too early: 8192 fields"), (2**18, "bytes cannot hold 1048576")],
)
def test_claims_cost_no_memory(elements, message):
    """An unfactored tensor of 8 GB, or of 1 MiB, in a file of 100 bytes."""
    honest = Plain(torch.zeros(3), Reason.VECTOR)
    huge = Entry((elements,), torch.float32, honest)
    data = to_file_bytes(Archive({"w": huge}, 1))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=message):
        OpenFile(data, max_bytes=1 << 36)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        open_file(tmp_path / "none.tersor")
    with pytest.raises(InputError, match="is a directory"):
        open_file(tmp_path)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "text.tersor"
    path.write_text("not a model")
    with pytest.raises(FileFormatError, match=r"text\.tersor: not a tersor file"):
        open_file(path)
