# SPDX-License-Identifier: Apache-2.0
"""Hold a weight whose factors are spread over several processes, and handle sharded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.nn.weight import FactoredWeight

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_PART = "_part"
"""Ending of the names of parameters that are parts of factors."""


class ShardedWeight(FactoredWeight):
    """A weight of which each process holds one part of the factors and all integers.

    The latent is a parameter with one axis, because FSDP cuts the first axis, and a latent has few
    rows, often only one. Outside of a forward, the factors are gathered, with gradients, when they
    are read.
    """

    CODED = torch.int16  # half the memory of int32, and FSDP does not send buffers

    @staticmethod
    def of(weight: FactoredWeight) -> None:
        """Turn a weight into one that can be sharded, in place; its parameters get other names."""
        factors = dict(weight._parameters)
        weight.__class__ = ShardedWeight
        weight._parameters.clear()
        for name, factor in factors.items():
            assert factor is not None
            values = factor.detach().reshape(-1) if name == "latent" else factor.detach()
            trains = factor.requires_grad and factor.numel() > 0  # FSDP sends no empty gradients
            weight.register_parameter(name + _PART, nn.Parameter(values, trains))
        weight.project_to(weight.coded)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """Return the whole codebook, gathered from all processes."""
        return whole(self._part("codebook"))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Return the whole scale, gathered from all processes."""
        return whole(self._part("scale"))

    @property
    def latent(self) -> Tensor:  # type: ignore[override]
        """Return the whole latent, (k, n), gathered from all processes."""
        return whole(self.own_latent).view(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Return the shape (k, n) of the whole latent."""
        return self._part("codebook").shape[1], self.tiling.count

    @property
    def own_latent(self) -> nn.Parameter:
        """Return the part of the latent that this process holds."""
        return self._part("latent")

    def _part(self, name: str) -> nn.Parameter:
        return cast(nn.Parameter, self._parameters[name + _PART])

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``.

        Raises
        ------
        InputError
            If it is called outside of the forward of the module that FSDP wraps.
        """
        if is_sharded(self.own_latent):
            raise InputError(
                f"a weight of shape {self.shape} is used outside of the forward of the module that "
                "FSDP wraps it in; wrap the layer around that module instead (auto_wrap_policy)"
            )
        return super().forward()

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Move the latent by ``share`` of the distance towards the integers of its projection."""
        if self.coded is not None:
            latent = self.own_latent
            latent.lerp_(part_of(self.coded.to(latent.dtype), latent), share)


def is_sharded(values: Tensor) -> bool:
    """Return whether other processes hold other parts of the values."""
    return hasattr(values, "full_tensor")


def whole(values: Tensor) -> Tensor:
    """Return all values; every process must call this."""
    return cast("DTensor", values).full_tensor() if is_sharded(values) else values


def local(values: Tensor) -> Tensor:
    """Return the values that this process holds; all of them if they are not sharded."""
    return cast("DTensor", values).to_local() if is_sharded(values) else values


def total(tensors: Sequence[Tensor]) -> float:
    """Return the sum of all values; every process must call this if the values are sharded."""
    number = torch.stack([local(tensor).sum() for tensor in tensors]).sum()
    if is_sharded(tensors[0]):
        torch.distributed.all_reduce(number)
    return float(number)


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Return the part of whole values that matches this process' part of another tensor.

    Parameters
    ----------
    values
        Whole values, the same in each process.
    like
        Sharded or whole tensor with the same number of elements.
    """
    values = values.reshape(like.shape)
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    sharded = cast(DTensor, like)
    everywhere = values.to(sharded.to_local().device)
    return DTensor.from_local(
        everywhere, sharded.device_mesh, [Replicate()], run_check=False
    ).redistribute(placements=sharded.placements)
