# SPDX-License-Identifier: Apache-2.0
"""Pad tensors, empty ones too, which older versions of PyTorch refuse."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def pad(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    """Return a padded tensor, as `torch.nn.functional.pad` does.

    Parameters
    ----------
    x
        Tensor of any shape.
    padding
        Elements before and after each axis, the last axis first.
    value
        Value of the elements that are added.
    """
    if x.numel():
        return F.pad(x, list(padding), value=value)
    shape = list(x.shape)
    for axis, (before, after) in enumerate(zip(padding[0::2], padding[1::2], strict=True), start=1):
        shape[-axis] += before + after
    return x.new_full(shape, value)
