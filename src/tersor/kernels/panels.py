"""A dense matrix whose rows lie in the order in which they are multiplied.

Libraries put a matrix into such an order in each call, which takes as long as a product with a few
vectors does. Here it is done once, in the bytes that the matrix takes anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InputError

MANY = 96
"""Vectors that are computed with at once, while a panel is in the cache."""

KERNEL = "Panels"

_PANEL = 16
"""Rows that are side by side."""


class Layout(NamedTuple):
    """Sizes of a matrix: what its panels do not tell."""

    rows: int
    inputs: int


class Packed(NamedTuple):
    """A dense matrix, as ``tersor::linear`` takes it.

    Parameters
    ----------
    panels
        float32, (panels, inputs, 16): 16 rows side by side, the last ones padded with zeros.
    """

    panels: Tensor


def pack(matrix: Tensor) -> tuple[Packed, Layout]:
    """A matrix (rows, inputs) in the layout of the kernels."""
    layout = Layout(*matrix.shape)
    padded = F.pad(matrix.to(torch.float32), (0, 0, 0, -layout.rows % _PANEL))
    panels = padded.reshape(-1, _PANEL, layout.inputs).transpose(1, 2).contiguous()
    return Packed(panels), layout


def check(packed: Packed, layout: Layout) -> None:
    """Refuse a tensor that is not of the size and type of this layout: kernels do not look."""
    (panels,) = packed
    shape = (-(-layout.rows // _PANEL), layout.inputs, _PANEL)
    if panels.shape != shape or panels.dtype != torch.float32 or not panels.is_contiguous():
        raise InputError(
            f"packed tensor 'panels' is {tuple(panels.shape)} of {panels.dtype}, needed is {shape} "
            "of float32, contiguous; take it from `pack`, with its layout"
        )


verify = check
"""Whatever the numbers are, they are numbers."""


def rows_of(packed: Packed, layout: Layout, rows: Tensor) -> Tensor:
    """Some rows of the matrix, float32, shape (len(rows), inputs)."""
    return packed.panels[rows // _PANEL, :, rows % _PANEL]


def matrix_of(packed: Packed, layout: Layout) -> Tensor:
    """The matrix that was packed, float32."""
    return packed.panels.transpose(1, 2).flatten(0, 1)[: layout.rows]
