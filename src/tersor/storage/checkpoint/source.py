"""Named tensors: what files of every kind are read as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tersor.storage.archive import Archive, Entry
from tersor.storage.dtypes import is_dense


@dataclass(frozen=True)
class Source:
    """Named tensors that are loaded one by one.

    Parameters
    ----------
    names
        In the order in which they are to be given back.
    load
        Gives the tensor of a name.
    nbytes
        Size in bytes that ratios refer to: of the files, or of the tensors where files hold more,
        or of the tensors of a model in memory.
    aliases
        Names of tensors that are the same as another one, and the name of that one.
    ignored
        What else the checkpoint holds and is no tensor, or is not asked for.
    unchanged
        Names of tensors that must not be factored: buffers of a model.
    notes
        How the checkpoint was understood, where that is not obvious: a sentence each, for people.
    files
        What it is read from, and must not be written over.
    metadata, hashed
        Of the files that are made of them, as in `tersor.storage.archive.Archive`.
    """

    names: list[str]
    load: Callable[[str], Tensor]
    nbytes: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unchanged: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False

    def archive(self, entries: Mapping[str, Entry]) -> Archive:
        """What is to be written when these are the entries of the tensors."""
        return Archive(entries, self.nbytes, self.metadata, self.hashed)


class Stored(NamedTuple):
    """What a file says of a tensor before that is loaded; a type that PyTorch lacks is None."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    nbytes: int


@dataclass(frozen=True)
class Content:
    """What is in a checkpoint, by the names that it gives.

    Parameters
    ----------
    stored
        Of all tensors, in the order of the file.
    load
        Gives the tensor of a name.
    files
        All files that it is in, but for an index.
    aliases, ignored, notes
        As of `Source`.
    """

    stored: Mapping[str, Stored]
    load: Callable[[str], Tensor]
    files: tuple[Path, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def file_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the files, tied ones once."""
        return sum(s.nbytes for name, s in self.stored.items() if name not in self.aliases)


def shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the very same memory as an earlier one, and that one's name."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if is_dense(tensor) and tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if (original := first.setdefault(key, name)) != name:
                aliases[name] = original
    return aliases
