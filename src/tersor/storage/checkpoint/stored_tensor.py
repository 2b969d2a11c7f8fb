# SPDX-License-Identifier: Apache-2.0
"""Read rows of a tensor in a file, without the others."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage.descriptors import read_into


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose elements lie in a file, little-endian and in row-major order.

    Each access reads from the disk, and what it returns is a copy. A mapped file would count as
    memory of this process where it was read, and end the process where the file is truncated.

    Parameters
    ----------
    path
        The file.
    name
        Name of the tensor, for error messages.
    start
        Byte of the file at which the elements begin.
    shape, dtype
        Shape and data type.
    """

    path: Path
    name: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> Tensor:
        """Return the whole tensor.

        Raises
        ------
        InputError
            If the file has become unreadable or shorter.
        """
        return self._read([0], math.prod(self.shape)).reshape(self.shape)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return the rows of a slice without a step, or of a tensor of row numbers.

        Raises
        ------
        InputError
            If the file has become unreadable or shorter.
        """
        length = math.prod(self.shape[1:])
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            count = max(stop - start, 0)
            found = self._read([start * length], count * length)
        else:
            count = len(rows)
            found = self._read([row * length for row in rows.tolist()], length)
        return found.reshape(count, *self.shape[1:])

    def _read(self, starts: list[int], count: int) -> Tensor:
        """Return ``count`` elements from each of these on, one after the other."""
        size, flaw = self.dtype.itemsize, "the file ends early"
        content = bytearray(len(starts) * count * size)
        parts = memoryview(content)
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                for place, first in enumerate(starts):
                    part = parts[place * count * size :][: count * size]
                    if read_into(descriptor, self.start + first * size, part) < len(part):
                        raise OSError(0, flaw)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise InputError(
                f"{self.path}: tensor {self.name!r} cannot be read: {error.strerror}"
            ) from None
        words = np.frombuffer(content, f"<u{_word(self.dtype)}")
        native = words.astype(words.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native.view(np.uint8)).view(self.dtype)


def _word(dtype: torch.dtype) -> int:
    """Return the bytes of a number, of which complex numbers have two."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
