# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import FileFormatError
from tersor.storage.cursor import Reader, Writer


@given(st.lists(st.integers(0, 2**48)))
def test_integers_come_back(values):
    out = Writer()
    out.integers(values)
    reader = Reader(bytes(out.data))
    assert reader.integers(len(values)) == values
    assert reader.left == 0


@pytest.mark.parametrize("value, size", [(0, 1), (127, 1), (128, 2), (2**14, 3), (2**48, 7)])
def test_integers_are_short(value, size):
    out = Writer()
    out.integer(value)
    assert len(out.data) == size


def test_fields_of_all_kinds_come_back():
    out = Writer()
    out.raw(b"abc")
    out.pack("fI", 0.5, 7)
    reader = Reader(bytes(out.data))
    assert reader.raw(3) == b"abc"
    assert reader.unpack("fI") == (0.5, 7)


@pytest.mark.parametrize(
    "read",
    [
        lambda reader: reader.raw(4),
        lambda reader: reader.unpack("I"),
        lambda reader: reader.integers(4),
        lambda reader: reader.integers(2**60),
        lambda reader: [reader.integer() for _ in range(3)],
    ],
)
def test_reading_beyond_the_end_is_refused(read):
    with pytest.raises(FileFormatError, match="ends too early"):
        read(Reader(b"\x01\x02\x83"))


@pytest.mark.parametrize("data", [b"\xff" * 12, b"\xff" * 7 + b"\x7f", b"\x05"])
def test_too_large_integers_are_refused(data):
    limit = 4 if data == b"\x05" else 2**48
    with pytest.raises(FileFormatError, match=f"at most {limit} is allowed"):
        Reader(data).integer(limit)
