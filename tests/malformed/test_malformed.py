# SPDX-License-Identifier: Apache-2.0
"""One malformed file for each check of the reader; each must be refused, and say why."""

import contextlib
import re
import struct
import time
import tracemalloc
import zlib

import c_decoder
import pytest
import torch
from craft import SECTIONS, VALID, assemble, craft, deflate, factors, header, integer, tail, texts
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import FileFormatError
from tersor.io import dense_tensors
from tersor.storage import container
from tersor.storage.opened import OpenFile
from tersor.storage.verify import verify

LIMIT = 1 << 36
"""Bytes; without a limit, what is refused depends on the memory of the machine, too."""


def decoded(data, limit=LIMIT):
    return dense_tensors(OpenFile(data, max_bytes=limit))


def test_the_valid_file_is_read():
    tensors = decoded(craft())
    assert list(tensors) == ["w", "wb", "wi", "x"]
    assert torch.equal(tensors["w"], torch.zeros(4, 3)) and tensors["x"] is tensors["w"]
    assert torch.equal(tensors["wb"], torch.zeros(2)) and tensors["wi"] == 0
    assert not verify(craft()).problems


def test_what_is_unknown_and_may_be_is_skipped():
    file = OpenFile(craft(tail=SAID, reasons=bytes([99, 7])))
    assert file.metadata == {"licence": "MIT"} and file.content_hash == "00" * 32
    assert {f.detail.describe() for f in file.layout.plain} == {"for another reason"}


MANY = 20_000
TENSOR_OF_MANY = [(0, b"")] + [(i, b"a") for i in range(MANY)]

_LARGE = {"lengths": [4, 1, 2, 4, 1], "tiles": [1], "ranks": [2]}


SAID = tail((2, texts((b"licence", b"MIT"))), (4, bytes(32)), (6, b"of a later release"))


def checked(content):
    return struct.pack("<I", zlib.crc32(content)) + content


def said(*pairs):
    return craft(tail=tail((2, texts(*pairs))))


CASES = {
    "empty": (b"", "does not start with the magic number"),
    "other magic": (b"\x93TERSER\n" + craft()[8:], "does not start with the magic number"),
    "text line endings": (craft().replace(b"\n", b"\r\n", 1), "magic number"),
    "only a prefix": (craft()[:20], "ends within its first 21 bytes"),
    "version 0": (assemble(header(), version=0), "version 0; .* compress the model anew"),
    "later version": (assemble(header(), version=2), "version 2; .* use a later release"),
    "huge header": (assemble(b"", size=2**26 + 1), "at most 67108864 is allowed"),
    "header cut": (craft()[:60], "header is damaged or cut off"),
    "header larger": (assemble(header(), size=500), "header is damaged: 500 bytes expected"),
    "header smaller": (assemble(header(), size=9), "header is damaged: 9 bytes expected"),
    "header no deflate": (assemble(b"", deflated=b"\xff" * 20), "header is damaged"),
    "header then more": (
        assemble(header(), deflated=deflate(header()) + b"\0"),
        "header is damaged",
    ),
    "header ends": (assemble(b""), "header ends too early"),
    "integer too long": (assemble(b"\xff" * 30), "at most 281474976710656 is allowed"),
    "integer too large": (craft(source_bytes=2**48 + 1), "at most 281474976710656 is allowed"),
    "too many tensors": (craft(count=2**40), r"at most \d+ is allowed"),
    "names end": (assemble(integer(1) + integer(1) + b"\0\x7faaaaa"), "header ends too early"),
    "name longer than the rest": (craft(names=[(0, b"w" * 200)]), "header"),
    "name shares too much": (
        craft(names=[(1, b"w"), *VALID["names"][1:]]),
        "shares more bytes than the name before it has",
    ),
    "name no UTF-8": (craft(names=[(0, b"\xff"), *VALID["names"][1:]]), "not UTF-8"),
    "name cut within a character": (
        craft(names=[(0, "é".encode()), (1, b""), *VALID["names"][2:]]),
        "not UTF-8",
    ),
    "same names": (craft(names=[(0, b"w"), (1, b""), *VALID["names"][2:]]), "the same name"),
    "endless names": (
        assemble(header(count=MANY + 1, names=TENSOR_OF_MANY) + bytes(40 * MANY)),
        "names take more than 67108864 bytes",
    ),
    "more tensors than the header can hold": (
        assemble(integer(600) + integer(10**6) + bytes(5 * 10**5)),
        r"at most 83333 is allowed",
    ),
    "unknown type": (craft(dtypes=bytes([1, 1, 16, 1])), "unknown data type 16"),
    "unknown kind": (craft(kinds=bytes([2, 1, 4, 3])), "unknown kind 4"),
    "too many axes": (craft(axes=bytes([65, 1, 0, 2])), "65 axes; 64 are allowed"),
    "too large": (craft(lengths=[2**40, 2**40, 2, 4, 3]), "is too large"),
    "too large but empty": (
        craft(axes=bytes([2, 3, 0, 2]), lengths=[4, 3, 2**47, 2**47, 0, 4, 3]),
        "is too large",
    ),
    "axis too long": (craft(lengths=[2**48 + 1, 3, 2, 4, 3]), "at most 281474976710656"),
    "rounded integers": (
        craft(dtypes=bytes([1, 4, 4, 1])),
        "'wb' of type torch.int64 cannot have been rounded",
    ),
    "rounded half": (craft(dtypes=bytes([1, 2, 4, 1])), "torch.float16 cannot have been rounded"),
    "alias of nothing": (craft(aliases=[4]), "unknown tensor 4"),
    "alias of itself": (craft(aliases=[3]), "unknown tensor 3"),
    "alias of a later one": (
        craft(kinds=bytes([3, 1, 0, 2]), aliases=[3]),
        "unknown tensor 3",
    ),
    "alias of an alias": (
        craft(
            kinds=bytes([2, 3, 0, 3]),
            axes=bytes([2, 2, 0, 2]),
            lengths=[4, 3, 4, 3, 4, 3],
            reasons=bytes([2]),
            aliases=[0, 1],
        ),
        "an alias of 'wb' differs from it",
    ),
    "alias of another shape": (craft(lengths=[4, 3, 2, 3, 4]), "an alias of 'w' differs"),
    "alias of another type": (craft(dtypes=bytes([1, 1, 4, 0])), "an alias of 'w' differs"),
    "slices of more than half the rows": (craft(slice_rows=[3]), "slices of 3 rows"),
    "slices of broken blocks": (craft(slice_rows=[2]), "slices of 2 rows"),
    "slices without sections": (
        craft(lengths=[2**40, 1, 2, 2**40, 1], tiles=[1], ranks=[0], slice_rows=[4096]),
        "decoding takes",
    ),
    "more slices than the header has sizes of": (
        craft(lengths=[2**30, 1, 2, 2**30, 1], tiles=[1], ranks=[1], slice_rows=[4096]),
        "header ends too early",
    ),
    "no tile": (craft(tiles=[0]), r"tiles of 0 elements do not suit .* \(4, 3\)"),
    "tile longer than a row": (craft(tiles=[4]), "tiles of 4 elements"),
    "factors of a number": (
        craft(axes=bytes([0, 1, 0, 2]), lengths=[2, 4, 3], tiles=[1]),
        r"do not suit a weight of shape \(\)",
    ),
    "factors of nothing": (craft(lengths=[0, 3, 2, 0, 3]), r"shape \(0, 3\)"),
    "factors of integers": (
        craft(dtypes=bytes([4, 1, 4, 4])),
        "type torch.int64 cannot be factored",
    ),
    "factors of 8 bits": (craft(dtypes=bytes([10, 1, 4, 10])), "float8_e4m3fn cannot be factored"),
    "factors of complex": (craft(dtypes=bytes([15, 1, 4, 15])), "complex64 cannot be factored"),
    "scale no number": (craft(scales=struct.pack("<f", float("nan"))), "the scale is nan"),
    "ratio too large": (
        craft(snrs=struct.pack("<h", 30002)),
        "a signal-to-noise ratio of 30002 hundredths",
    ),
    "ratio too small": (
        craft(snrs=struct.pack("<h", -30001)),
        "a signal-to-noise ratio of -30001 hundredths",
    ),
    "scale infinite": (craft(scales=struct.pack("<f", float("inf"))), "the scale is inf"),
    "too many rows": (craft(ranks=[2**40]), "decoding takes .* are allowed"),
    "unknown trellis": (craft(trellises=bytes([6])), "unknown trellis 6"),
    "more decoded than allowed": (
        craft(lengths=[2**40, 3, 2, 2**40, 3]),
        "decoding takes .* at most 68719476736 are allowed",
    ),
    "huge factors of a small weight": (
        craft(lengths=[1, 2**18, 2, 1, 2**18], tiles=[2**18], ranks=[2**18]),
        "decoding takes 1374",
    ),
    "section missing": (craft(section_sizes=[0]), "header"),
    "header longer": (craft(extra=b"\0\0"), "the header has 2 bytes too many"),
    "section too small": (craft(section_sizes=[0, 1]), "its header says"),
    "section too large": (craft(section_sizes=[0, 2**40]), "its header says"),
    "file longer": (craft() + b"\0", "its header says"),
    "sections in the wrong order": (
        craft(sections=SECTIONS[::-1], section_sizes=[len(s) for s in SECTIONS]),
        "section 0 is damaged",
    ),
    "wrong checksum": (craft(checksums=bytes(8)), "section 0 is damaged"),
    "unfactored tensors cut": (
        craft(sections=[SECTIONS[0], deflate(bytes(11))]),
        "12 bytes expected, 11 found",
    ),
    "unfactored tensors longer": (
        craft(sections=[SECTIONS[0], deflate(bytes(13))]),
        "group of 'wb' is damaged",
    ),
    "unfactored tensors no deflate": (
        craft(sections=[SECTIONS[0], b"\xff" * 9]),
        "group of 'wb' is damaged",
    ),
    "unfactored tensors then more": (
        craft(sections=[SECTIONS[0], deflate(bytes(12)) + b"more"]),
        "group of 'wb' is damaged",
    ),
    "unfactored tensors larger than their section can be": (
        craft(lengths=[4, 3, 2**13, 4, 3]),
        r"group of 'wb' is damaged: \d+ bytes cannot hold 16392",
    ),
    "unfactored tensors larger than a single byte can be": (
        craft(lengths=[4, 3, 516, 4, 3], sections=[SECTIONS[0], b"\0"]),
        "group of 'wb' is damaged: 1 bytes cannot hold 1040",
    ),
    "unfactored tensors in more pieces than sections": (
        craft(lengths=[4, 3, 2**30, 4, 3]),
        "header ends too early",
    ),
    "coded integers too large": (  # no bytes: every decision says more
        craft(sections=[b"", SECTIONS[1]]),
        "an integer is too large",
    ),
    "product too large": (
        craft(sections=[factors([[4095]] * 2, [[4095] * 4] * 2, 4), SECTIONS[1]], **_LARGE),
        "too large for an exact product",
    ),
    "coded integers end in zero": (craft(sections=[bytes(4), SECTIONS[1]]), "integers are damaged"),
    "coded integers of rank 0": (
        craft(sections=[b"\1", SECTIONS[1]], ranks=[0]),
        "data left over after the last one",
    ),
    "tail missing": (craft(tail_bytes=9), r"at most \d+ is allowed"),
    "tail larger than the file": (craft(tail_bytes=2**40), r"at most \d+ is allowed"),
    "tail not announced": (craft(tail=SAID, tail_bytes=0), "its header says"),
    "tail of a checksum only": (craft(tail=tail()), "4 bytes follow the sections"),
    "tail with another checksum": (craft(tail=bytes(4) + SAID[4:]), "its checksum differs"),
    "tail cut": (craft(tail=tail((2, b""))[:-1]), "its checksum differs"),
    "tail item cut": (craft(tail=checked(SAID[4:-1])), "what follows the sections ends too"),
    "tail without a size": (craft(tail=checked(b"\2")), "what follows the sections ends too"),
    "unknown odd tag": (craft(tail=tail((7, b""))), "unknown tag 7"),
    "tag 0": (craft(tail=tail((0, b""))), "tag 0 follows tag 0"),
    "same tag twice": (craft(tail=tail((8, b""), (8, b""))), "tag 8 follows tag 8"),
    "tags in the wrong order": (craft(tail=tail((8, b""), (6, b""))), "tag 6 follows tag 8"),
    "hash too short": (craft(tail=tail((4, bytes(31)))), "a content hash of 31 bytes"),
    "metadata no UTF-8": (said((b"k", b"\xff")), "metadata is not UTF-8"),
    "metadata twice": (said((b"k", b"1"), (b"k", b"2")), "metadata has 'k' twice"),
    "metadata without a value": (
        craft(tail=tail((2, b"\1k"))),
        "what follows the sections ends too",
    ),
    "metadata of no name": (said((b"", b"1")), "the key '' has 0 bytes"),
    "metadata of a long name": (said((b"k" * 256, b"")), "has 256 bytes, not 1 to 255"),
    "too much metadata": (said((b"k", b"1" * 2**16)), "it has 65537 bytes"),
    "too many metadata": (
        said(*((str(i).encode(), b"") for i in range(65))),
        "there are 65 entries, at most 64",
    ),
    "truth neither true nor false": (
        craft(dtypes=bytes([1, 1, 9, 1]), sections=[SECTIONS[0], deflate(b"\0\0\2\0\0")]),
        "the group of 'wb' is damaged: a BOOL of 2",
    ),
    "coded integers left over": (
        craft(sections=[SECTIONS[0] + bytes(9) + b"\1", SECTIONS[1]]),
        "data left over after the last one",
    ),
}


@pytest.mark.parametrize("data, message", CASES.values(), ids=CASES)
def test_malformed_files_are_refused(data, message):
    with pytest.raises(FileFormatError, match=message):
        decoded(data)
    assert re.search(message, "; ".join(verify(data, max_bytes=LIMIT).problems))


@pytest.mark.parametrize("data", [data for data, _ in CASES.values()], ids=CASES)
def test_the_c_decoder_refuses_them_too(data):
    assert c_decoder.run(craft(), c_decoder.build())
    assert c_decoder.run(data, c_decoder.build()) is None


@pytest.mark.parametrize("data", [data for data, _ in CASES.values()], ids=CASES)
def test_refusing_costs_little_memory(data):
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        decoded(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    limit = 150_000_000 if len(data) > 10_000 else 10_000_000
    assert peak < limit


@pytest.mark.parametrize("count", [2**25, 2**26 // 6])
def test_a_hostile_header_costs_next_to_nothing(count):
    """65 kB that inflate to 64 MiB, and claim 32 million tensors or the most that fit."""
    claim = integer(1) + integer(count)
    data = assemble(claim + bytes(2**26 - len(claim)))
    assert len(data) < 66_000
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(FileFormatError, match="lists more than the file can hold"):
        decoded(data, None)
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.1 and peak < 1 << 20
    assert c_decoder.run(data, c_decoder.build()) is None


def test_a_deflate_bomb_stops_at_its_claim():
    """A header of 60 MB in 60 kB that claims to be small is not inflated to the end."""
    data = assemble(b"", size=100, deflated=deflate(bytes(60_000_000)))
    tracemalloc.start()
    with pytest.raises(FileFormatError, match="100 bytes expected"):
        decoded(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_nothing_but_zeros_is_decoded_in_little_memory():
    """Rank 0 takes no more than the dense tensor, whatever the shape."""
    for lengths, tile in (([1, 2**20], 2**20), ([2**20, 1], 1), ([1, 2**20], 1)):
        sections = [b"", SECTIONS[1]]
        data = craft(sections, lengths=[*lengths, 2, *lengths], tiles=[tile], ranks=[0])
        tracemalloc.start()
        tensors = decoded(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not tensors["w"].any() and peak < 10_000_000


def test_what_the_sections_hold_is_read():
    data = craft(sections=[factors([[-7]] * 2, [[300] * 4] * 2, 4), SECTIONS[1]], **_LARGE)
    assert torch.equal(decoded(data)["w"], torch.full((4, 1), 0.5 * 2 * -7 * 300))


@given(st.binary(max_size=60), st.integers(0, 5), st.integers(0, 255), st.integers(0, 255))
def test_any_integers_are_read_or_refused(section, trellis, codebook_start, latent_start):
    coding = {
        "trellises": bytes([trellis]),
        "codebook_starts": bytes([codebook_start]),
        "latent_starts": bytes([latent_start]),
    }
    with contextlib.suppress(FileFormatError):
        weight = decoded(craft(sections=[section, SECTIONS[1]], **coding))["w"]
        assert weight.shape == (4, 3) and bool(weight.isfinite().all())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    for attempt in (data, container.MAGIC + data, craft()[:21] + data):
        with pytest.raises(FileFormatError):
            decoded(attempt)


@given(st.binary(max_size=200))
def test_any_header_is_read_or_refused(plain):
    with contextlib.suppress(FileFormatError):
        decoded(assemble(plain))


@given(st.data())
def test_any_change_of_a_header_is_read_or_refused(data):
    """With checksums that fit, so that what remains is for the checks of the fields."""
    plain = bytearray(header(section_sizes=[0, 5], checksums=bytes(8)))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FileFormatError):
        decoded(assemble(bytes(plain)))
