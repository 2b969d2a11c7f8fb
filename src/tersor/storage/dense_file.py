# SPDX-License-Identifier: Apache-2.0
"""Write a safetensors file tensor by tensor, with one tensor in memory at a time.

The format (github.com/huggingface/safetensors): the size of the header in 8 bytes; the header, JSON
with the type, shape and position of each tensor; the elements, little-endian, without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage import dtypes
from tersor.storage.planes import elements

_METADATA = "__metadata__"


class Kind(NamedTuple):
    """Shape and data type of a tensor, which the header needs before the tensor is there."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(
    path: Path, kinds: Mapping[str, Kind], tensors: Iterable[tuple[str, Iterable[Tensor]]]
) -> None:
    """Write a safetensors file.

    Parameters
    ----------
    path
        File to write; it is not replaced atomically.
    kinds
        Shapes and data types of all tensors, by name.
    tensors
        Name and consecutive pieces of each tensor, in any order.

    Raises
    ------
    InputError
        If a name is reserved in safetensors files.
    """
    if _METADATA in kinds:
        raise InputError(f"safetensors files cannot hold a tensor called {_METADATA!r}; rename it")
    places = _places(kinds)
    header = _header(kinds, places)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, pieces in tensors:
            file.seek(8 + len(header) + places[name])
            for piece in pieces:
                words = elements(piece, exact=True).words
                file.write(words.astype(words.dtype.newbyteorder("<"), copy=False).data)


def _places(kinds: Mapping[str, Kind]) -> dict[str, int]:
    """Return where each tensor begins, in bytes.

    Tensors with the largest elements come first, so that all of them are aligned.
    """
    places, position = {}, 0
    for name in sorted(kinds, key=lambda name: -kinds[name].dtype.itemsize):
        places[name] = position
        position += kinds[name].nbytes
    return places


def _header(kinds: Mapping[str, Kind], places: Mapping[str, int]) -> bytes:
    content: dict[str, object] = {_METADATA: {"format": "pt"}}
    for name, start in places.items():
        kind = kinds[name]
        content[name] = {
            "dtype": dtypes.NAMES[kind.dtype],
            "shape": kind.shape,
            "data_offsets": (start, start + kind.nbytes),
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)
