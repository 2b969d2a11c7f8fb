# SPDX-License-Identifier: Apache-2.0
"""Describe the content of a file before it is written: entries by tensor name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from tersor.coding import records
from tersor.coding.records import EncodedFactors
from tersor.factors import Factors


class Reason(IntEnum):
    """Why a tensor is unfactored; the file stores the value to inform people."""

    VECTOR = 0
    SMALL = 1
    NOT_FLOAT = 2
    EMPTY = 3
    LEFT_DENSE = 4
    RANGE = 5
    LOSSLESS = 6
    OTHER = 255

    @classmethod
    def _missing_(cls, value: object) -> Reason:
        return cls.OTHER  # later releases may write further values

    def describe(self) -> str:
        """Return the reason in words."""
        return {
            Reason.VECTOR: "not a matrix or kernel",
            Reason.SMALL: "few weights",
            Reason.NOT_FLOAT: "not floating-point of 16 bits or more",
            Reason.EMPTY: "empty",
            Reason.LEFT_DENSE: "left dense",
            Reason.RANGE: "extreme in magnitude",
            Reason.LOSSLESS: "lossless, as asked",
            Reason.OTHER: "for another reason",
        }[self]


@dataclass(frozen=True)
class Plain:
    """A tensor that is unfactored, stored exactly or rounded to bfloat16.

    Parameters
    ----------
    values
        The tensor as stored: in its own type or in bfloat16.
    reason
        Why it is not factored.
    """

    values: Tensor
    reason: Reason


@dataclass(frozen=True)
class Alias:
    """A tensor that is the same as one stored before it (tied weights).

    Parameters
    ----------
    target
        Name of the tensor stored before it.
    """

    target: str


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Parameters
    ----------
    shape, dtype
        Shape and data type of the dense tensor.
    content
        What the file stores for it: factors, values, or the name of another tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    content: EncodedFactors | Plain | Alias

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


class Contents(ABC):
    """Named tensors, some of them factored, in a file or to be written to one."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the dense tensors, by name."""

    @abstractmethod
    def original(self, name: str) -> str:
        """Return the name of the tensor that this name is an alias of, or the name itself."""

    @abstractmethod
    def is_factored(self, name: str) -> bool:
        """Return whether the tensor of that name is stored as factors."""

    @abstractmethod
    def value(self, name: str) -> Factors | Tensor:
        """Return the factors of that name if the tensor is factored, else the tensor."""

    def tensor(self, name: str) -> Tensor:
        """Return the dense tensor of that name, in its original shape and type."""
        return as_tensor(self.value(name))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Factors | Tensor]]:
        """Yield the values of these names, one after the other.

        An alias is given under the name of its original tensor, and each tensor once.

        Parameters
        ----------
        names
            Names of tensors.

        Yields
        ------
        tuple
            The name, and the factors of a factored tensor or the tensor itself.
        """
        for name in dict.fromkeys(map(self.original, names)):
            yield name, self.value(name)


def as_tensor(value: Factors | Tensor) -> Tensor:
    """Return the dense tensor of a value, recomposed if the value is factors."""
    return value.recompose() if isinstance(value, Factors) else value


@dataclass(frozen=True)
class Archive(Contents):
    """The content of a file that is to be written.

    Parameters
    ----------
    entries
        Entries by tensor name, in the order of the checkpoint.
    source_bytes
        Size in bytes of the checkpoint or model that was compressed; ratios refer to it.
    metadata
        Metadata of the author, see `tersor.storage.label`.
    hashed
        Whether the file gets a hash of its content.
    """

    entries: Mapping[str, Entry]
    source_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False

    def unmeasured(self) -> Archive:
        """Return the same archive without signal-to-noise ratios.

        `save` writes such an archive, because a model does not hold these ratios.
        """
        entries = {
            name: replace(e, content=replace(e.content, snr=math.nan))
            if isinstance(e.content, EncodedFactors)
            else e
            for name, e in self.entries.items()
        }
        return replace(self, entries=entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the dense tensors, by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def is_factored(self, name: str) -> bool:
        """Return whether the tensor of that name is stored as factors."""
        return isinstance(self.entries[self.original(name)].content, EncodedFactors)

    def original(self, name: str) -> str:
        """Return the name of the tensor that this name is an alias of, or the name itself."""
        content = self.entries[name].content
        return content.target if isinstance(content, Alias) else name

    def value(self, name: str) -> Factors | Tensor:
        """Return the factors of that name if the tensor is factored, else the tensor."""
        entry = self.entries[self.original(name)]
        assert not isinstance(entry.content, Alias)  # the target of an alias is never an alias
        if isinstance(entry.content, Plain):
            return entry.content.values.to(entry.dtype)
        return records.decode(entry.content, entry.shape, entry.dtype)
