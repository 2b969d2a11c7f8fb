# SPDX-License-Identifier: Apache-2.0
"""Read and write the fields of a header: bytes, variable-length integers, and arrays of these."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from tersor.errors import FileFormatError


@dataclass
class Writer:
    """Appends fields to a byte string.

    Parameters
    ----------
    data
        The bytes so far; empty by default.
    """

    data: bytearray = field(default_factory=bytearray)

    def raw(self, data: bytes) -> None:
        """Append bytes as they are."""
        self.data += data

    def integer(self, value: int) -> None:
        """Append an unsigned integer, 7 bits a byte, least significant first (LEB128)."""
        while value > 127:
            self.data.append(value & 127 | 128)
            value >>= 7
        self.data.append(value)

    def integers(self, values: Iterable[int]) -> None:
        """Append unsigned integers without their number, which the reader must know."""
        for value in values:
            self.integer(value)

    def text(self, data: bytes) -> None:
        """Append the length of a byte string, and the bytes."""
        self.integer(len(data))
        self.raw(data)

    def pack(self, layout: str, *values: float) -> None:
        """Append values in a little-endian `struct` layout."""
        self.data += struct.pack("<" + layout, *values)


@dataclass
class Reader:
    """Reads the fields back, and never beyond the end.

    Parameters
    ----------
    data
        The bytes to read.
    what
        Name of the data, for error messages.
    position
        Number of bytes that have been read.

    Raises
    ------
    FileFormatError
        From each method, if the data ends too early.
    """

    data: bytes
    what: str = "the header"
    position: int = 0

    @property
    def left(self) -> int:
        """Return the number of bytes that have not been read."""
        return len(self.data) - self.position

    def raw(self, size: int) -> bytes:
        """Read ``size`` bytes."""
        if size > self.left:
            raise FileFormatError(
                f"{self.what} ends too early: {size} bytes needed at {self.position}, "
                f"{self.left} left"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, limit: int = 2**48) -> int:
        """Read an unsigned integer of at most ``limit``."""
        value = 0
        for place, byte in enumerate(self.data[self.position : self.position + 9]):
            value |= (byte & 127) << 7 * place
            if byte < 128:
                self.position += place + 1
                if value <= limit:
                    return value
                break
        else:
            self.raw(9)  # raises the error that the data ends too early
        raise FileFormatError(f"{self.what}, field at {self.position}: at most {limit} is allowed")

    def integers(self, count: int, limit: int = 2**48) -> list[int]:
        """Read ``count`` unsigned integers of at most ``limit`` each."""
        if count > self.left:
            raise FileFormatError(f"{self.what} ends too early: {count} fields at {self.position}")
        return [self.integer(limit) for _ in range(count)]

    def text(self) -> bytes:
        """Read the length of a byte string, and return the bytes."""
        return self.raw(self.integer())

    def unpack(self, layout: str) -> tuple[float, ...]:
        """Read values in a little-endian `struct` layout."""
        return struct.unpack("<" + layout, self.raw(struct.calcsize("<" + layout)))
