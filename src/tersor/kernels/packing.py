# SPDX-License-Identifier: Apache-2.0
"""Define what packed weights have in common: tensors, sizes, and checks of both.

A packing is one file with a subclass of `Matrix` or `Filters`, and one line in
`tersor.kernels.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tersor.errors import InputError

if TYPE_CHECKING:
    from typing import Self

Shape = tuple[int | None, ...]
"""Shape of a tensor; None for an axis of any length."""


@dataclass(eq=False)
class Packing(ABC):
    """A weight in the order of numbers in which kernels read it.

    Parameters
    ----------
    tensors
        Tensors that the kernels read, on one device; a named tuple, except in `direct`.
    layout
        Sizes that the shapes of the tensors do not tell, a named tuple.

    Attributes
    ----------
    name
        Name of the packing, by which the operators look it up.
    kernel
        Name of its class or function in ``tersor._kernels``, which has one version for each
        instruction set. Kernels for GPUs are in `tersor.kernels.gpu`.
    """

    tensors: Any
    layout: Any

    name: ClassVar[str]
    kernel: ClassVar[str]
    Layout: ClassVar[Any]
    Tensors: ClassVar[Any]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Self:
        """Return the packed weight of tensors and sizes in their order, not checked."""
        return cls(cls.Tensors(*tensors), cls.Layout(*sizes))

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        named: dict[str, Tensor] = self.tensors._asdict()
        return named

    @abstractmethod
    def expected(self) -> Mapping[str, tuple[Shape, torch.dtype]]:
        """Return shape and type of each tensor, or raise an `InputError` for impossible sizes."""

    def check(self) -> None:
        """Raise an `InputError` if tensors do not fit the layout, which kernels do not check."""
        expected = self.expected()
        for name, tensor in self.named().items():
            shape, dtype = expected[name]
            if not _is_shaped(tensor, shape) or tensor.dtype != dtype or not tensor.is_contiguous():
                raise InputError(
                    f"packed tensor {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, needed is "
                    f"{shape} of {dtype}, contiguous; take it from `pack`, with its layout"
                )

    def verify(self) -> None:
        """Raise an `InputError` for what `check` finds, and for values that harm the kernels.

        This reads all values, so it is called when a weight is loaded, not for each product. By
        default no value can do harm.
        """
        self.check()

    @abstractmethod
    def recompose(self) -> Tensor:
        """Return the dense weight, float32."""


class Matrix(Packing):
    """A packed matrix, which ``tersor::linear`` multiplies by.

    Attributes
    ----------
    many
        Number of vectors from which on, or in which, the kernels multiply several at a time.
    picks
        Whether the native kernel also has ``rows``, which returns some rows of the matrix.
    """

    many: ClassVar[int]
    picks: ClassVar[bool] = False

    @abstractmethod
    def rows_of(self, index: Tensor) -> Tensor:
        """Return some rows of the matrix, float32, shape (len(index), inputs).

        Parameters
        ----------
        index
            Row numbers, int64, one axis.
        """

    def recompose(self) -> Tensor:
        """Return the dense matrix, float32, shape (rows, inputs)."""
        return self.rows_of(torch.arange(self.layout.rows, device=self.tensors[0].device))


class Filters(Packing):
    """A packed weight of a convolution, which ``tersor::conv2d`` convolves with."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return rows, channels of all groups, height and width of the kernel, and groups."""

    @property
    def order(self) -> torch.memory_format:
        """Return the memory format of the images that the kernels need."""
        return torch.contiguous_format

    def check_place(self, place: Sequence[int]) -> None:
        """Raise an `InputError` for windows that the kernels do not support; by default none."""

    @abstractmethod
    def arguments(self) -> tuple[int, ...]:
        """Return the numbers that the native kernel takes: sizes and buffers of the tensors."""


def buffers(*tensors: Tensor) -> list[int]:
    """Return address and bytes of each tensor for native kernels, which check the bytes."""
    return [number for tensor in tensors for number in (tensor.data_ptr(), tensor.nbytes)]


def _is_shaped(tensor: Tensor, shape: Shape) -> bool:
    return tensor.dim() == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
