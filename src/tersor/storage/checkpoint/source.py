# SPDX-License-Identifier: Apache-2.0
"""Define the named tensors that the readers of all kinds of files return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.storage.dtypes import is_dense
from tersor.tiling import LARGE, Rowwise


@dataclass(frozen=True)
class Source:
    """Named tensors that are loaded one by one.

    Parameters
    ----------
    names
        Names, in the order in which they are returned after decompression.
    load
        Returns the tensor of a name.
    nbytes
        Size in bytes that ratios refer to: of the files; of the tensors, if the files hold more
        than these; or of the tensors of a model in memory.
    aliases
        Names of tensors that are the same as another one, with the name of that one.
    ignored
        Names of other content of the checkpoint, which is not a tensor or was not asked for.
    unchanged
        Names of tensors that must not be factored, such as buffers of a model.
    notes
        Sentences for the user that say how the checkpoint was understood, where that is not
        obvious.
    files
        Files that the tensors are read from; they must not be overwritten.
    view
        Returns the tensor of a name, or one whose rows are read when they are indexed. By default
        tensors are loaded as a whole.
    """

    names: list[str]
    load: Callable[[str], Tensor]
    nbytes: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unchanged: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    view: Callable[[str], Rowwise] | None = None

    def rows(self, name: str) -> Rowwise:
        """Return a tensor, or, where it is large, one whose rows are read when they are indexed."""
        if self.view and math.prod((found := self.view(name)).shape) > LARGE:
            return found
        return self.load(name)


class Stored(NamedTuple):
    """Shape, type and size of a tensor in its file; the type is None if PyTorch lacks it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    nbytes: int


@dataclass(frozen=True)
class Content:
    """The tensors of a checkpoint, by their names in the files.

    Parameters
    ----------
    stored
        Shape, type and size of all tensors, in the order of the file.
    load
        Returns the tensor of a name.
    files
        All files that hold the tensors, without an index.
    aliases, ignored, notes, view
        As in `Source`.
    """

    stored: Mapping[str, Stored]
    load: Callable[[str], Tensor]
    files: tuple[Path, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    view: Callable[[str], Rowwise] | None = None

    def rows(self, name: str) -> Rowwise:
        """Return a tensor whose rows can be indexed, and which may be in a file still."""
        return (self.view or self.load)(name)

    @property
    def file_bytes(self) -> int:
        """Return the size of the files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the tensors in the files, tied ones counted once."""
        return sum(s.nbytes for name, s in self.stored.items() if name not in self.aliases)


def shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of tensors that share the memory of an earlier one, and its name.

    Parameters
    ----------
    tensors
        Tensors by name.

    Returns
    -------
    dict
        For each such name, the name of the first tensor with the same memory, shape, strides and
        type.
    """
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if is_dense(tensor) and tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if (original := first.setdefault(key, name)) != name:
                aliases[name] = original
    return aliases
