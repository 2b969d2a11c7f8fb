# SPDX-License-Identifier: Apache-2.0
"""Pack a dense matrix into panels, the order in which its rows are multiplied.

Linear algebra libraries reorder a matrix in each call, which takes as long as a product with a few
vectors. Here it is reordered once. Panels take as many bytes as the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tersor.kernels.packing import Matrix, Shape
from tersor.kernels.padding import pad

_PANEL = 16
"""Number of rows of a panel, which lie side by side."""


class Layout(NamedTuple):
    """The sizes of a matrix, which the shape of its panels does not tell."""

    rows: int
    inputs: int


class Tensors(NamedTuple):
    """The tensor of a packed dense matrix.

    Parameters
    ----------
    panels
        Panels of 16 rows side by side, float32, shape (panels, inputs, 16); the last panel is
        padded with zeros.
    """

    panels: Tensor


@dataclass(eq=False)
class Panels(Matrix):
    """A dense matrix in panels."""

    tensors: Tensors
    layout: Layout

    name: ClassVar[str] = "panels"
    kernel: ClassVar[str] = "Panels"
    many: ClassVar[int] = 96
    """Number of vectors that are multiplied at once, while a panel is in the cache."""
    Tensors = Tensors
    Layout = Layout

    @classmethod
    def pack(cls, matrix: Tensor) -> Panels:
        """Return a matrix (rows, inputs) packed for the kernels."""
        layout = Layout(*matrix.shape)
        padded = pad(matrix.to(torch.float32), (0, 0, 0, -layout.rows % _PANEL))
        panels = padded.reshape(-1, _PANEL, layout.inputs).transpose(1, 2).contiguous()
        return cls(Tensors(panels), layout)

    def expected(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Return shape and type of the tensor."""
        return {"panels": (shape_of(self.layout), torch.float32)}

    def rows_of(self, index: Tensor) -> Tensor:
        """Return some rows of the matrix, float32, shape (len(index), inputs)."""
        return self.tensors.panels[index // _PANEL, :, index % _PANEL]

    def recompose(self) -> Tensor:
        """Return the matrix that was packed, float32, shape (rows, inputs)."""
        return self.tensors.panels.transpose(1, 2).flatten(0, 1)[: self.layout.rows]


def shape_of(layout: Layout) -> tuple[int, int, int]:
    """Return the shape of the panels of a matrix."""
    return -(-layout.rows // _PANEL), layout.inputs, _PANEL
