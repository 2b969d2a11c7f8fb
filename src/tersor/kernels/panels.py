"""Pack a dense matrix into panels, the order in which its rows are multiplied.

Linear algebra libraries reorder a matrix in each call, which takes as long as a product with a few
vectors. Here it is reordered once. Panels take as many bytes as the matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError

MANY = 96
"""Number of vectors that are multiplied at once, while a panel is in the cache."""

KERNEL = "Panels"

_PANEL = 16
"""Number of rows of a panel, which lie side by side."""


class Layout(NamedTuple):
    """The sizes of a matrix, which the shape of its panels does not tell."""

    rows: int
    inputs: int


class Packed(NamedTuple):
    """A dense matrix in the form that ``tersor::linear`` takes.

    Parameters
    ----------
    panels
        Panels of 16 rows side by side, float32, shape (panels, inputs, 16); the last panel is
        padded with zeros.
    """

    panels: Tensor


def pack(matrix: Tensor) -> tuple[Packed, Layout]:
    """Return a matrix (rows, inputs) packed for the kernels, and its sizes."""
    layout = Layout(*matrix.shape)
    padded = F.pad(matrix.to(torch.float32), (0, 0, 0, -layout.rows % _PANEL))
    panels = padded.reshape(-1, _PANEL, layout.inputs).transpose(1, 2).contiguous()
    return Packed(panels), layout


def check(packed: Packed, layout: Layout) -> None:
    """Raise an `InputError` if the tensor does not fit the layout, which kernels do not check."""
    (panels,) = packed
    shape = (-(-layout.rows // _PANEL), layout.inputs, _PANEL)
    if panels.shape != shape or panels.dtype != torch.float32 or not panels.is_contiguous():
        raise InputError(
            f"packed tensor 'panels' is {tuple(panels.shape)} of {panels.dtype}, needed is {shape} "
            "of float32, contiguous; take it from `pack`, with its layout"
        )


verify = check
"""The check of loaded tensors. No value of a panel can harm the kernels, so it is `check`."""


def rows_of(packed: Packed, layout: Layout, rows: Tensor) -> Tensor:
    """Return some rows of the matrix, float32, shape (len(rows), inputs)."""
    return packed.panels[rows // _PANEL, :, rows % _PANEL]


def matrix_of(packed: Packed, layout: Layout) -> Tensor:
    """Return the matrix that was packed, float32, shape (rows, inputs)."""
    return packed.panels.transpose(1, 2).flatten(0, 1)[: layout.rows]
