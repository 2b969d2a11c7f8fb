"""What is to be written to a file: entries by tensor name."""

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


class Kept(IntEnum):
    """Why a tensor is not factored; the value stands in the file, for people."""

    VECTOR = 0
    SMALL = 1
    NOT_FLOAT = 2
    EMPTY = 3
    LEFT_DENSE = 4
    RANGE = 5
    LOSSLESS = 6
    OTHER = 255

    @classmethod
    def _missing_(cls, value: object) -> Kept:
        return cls.OTHER  # what a later release may have written

    def describe(self) -> str:
        """The reason in words."""
        return {
            Kept.VECTOR: "not a matrix or kernel",
            Kept.SMALL: "few weights",
            Kept.NOT_FLOAT: "not floating-point of 16 bits or more",
            Kept.EMPTY: "empty",
            Kept.LEFT_DENSE: "left dense",
            Kept.RANGE: "extreme in magnitude",
            Kept.LOSSLESS: "lossless, as asked",
            Kept.OTHER: "for another reason",
        }[self]


@dataclass(frozen=True)
class Plain:
    """A tensor that is kept, exactly or rounded to bfloat16.

    Parameters
    ----------
    values
        The tensor as stored: of its own type, or bfloat16.
    reason
        Why it is not factored.
    """

    values: Tensor
    reason: Kept


@dataclass(frozen=True)
class Alias:
    """A tensor that is the same as one stored before it (tied weights)."""

    target: str


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Parameters
    ----------
    shape, dtype
        As the tensor came and as it is given back.
    content
        What the file holds of it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    content: EncodedFactors | Plain | Alias

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Contents(ABC):
    """Named tensors, some of them factors: in a file, or to be written to one."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the dense tensors by name."""

    @abstractmethod
    def original(self, name: str) -> str:
        """The name itself, or the one that it is an alias of."""

    @abstractmethod
    def is_factored(self, name: str) -> bool:
        """Whether the tensor of that name is stored as factors."""

    @abstractmethod
    def value(self, name: str) -> Factors | Tensor:
        """Factors of that name if it is factored, else the tensor."""

    def tensor(self, name: str) -> Tensor:
        """The dense tensor of that name, of its original shape and type."""
        return as_tensor(self.value(name))

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Factors | Tensor]]:
        """Values of these names, one after the other.

        An alias is given as the tensor that it is an alias of, and each tensor once.
        """
        for name in dict.fromkeys(map(self.original, names)):
            yield name, self.value(name)


def as_tensor(value: Factors | Tensor) -> Tensor:
    """The dense tensor."""
    return value.recompose() if isinstance(value, Factors) else value


@dataclass(frozen=True)
class Archive(Contents):
    """What is to be written to a file.

    Parameters
    ----------
    entries
        By tensor name, in the order of the checkpoint.
    source_bytes
        Size in bytes of the checkpoint or model that was compressed; ratios refer to it.
    metadata
        What its maker says of it, see `tersor.storage.label`.
    hashed
        Whether the file holds a hash of its content.
    """

    entries: Mapping[str, Entry]
    source_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = False

    def unmeasured(self) -> Archive:
        """The same without signal-to-noise ratios: what `save` knows of a model."""
        entries = {
            name: replace(e, content=replace(e.content, snr=math.nan))
            if isinstance(e.content, EncodedFactors)
            else e
            for name, e in self.entries.items()
        }
        return replace(self, entries=entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the dense tensors by name."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def is_factored(self, name: str) -> bool:
        """Whether the tensor of that name is stored as factors."""
        return isinstance(self.entries[self.original(name)].content, EncodedFactors)

    def original(self, name: str) -> str:
        """The name itself, or the one that it is an alias of."""
        content = self.entries[name].content
        return content.target if isinstance(content, Alias) else name

    def value(self, name: str) -> Factors | Tensor:
        """Factors of that name if it is factored, else the tensor."""
        entry = self.entries[self.original(name)]
        assert not isinstance(entry.content, Alias)  # an alias has no aliases
        if isinstance(entry.content, Plain):
            return entry.content.values.to(entry.dtype)
        return records.decode(entry.content, entry.shape, entry.dtype)
