"""A weight whose factors are spread over several processes, and the tensors that it is made of."""

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
"""How the names of parameters end that are parts of factors."""


class ShardedWeight(FactoredWeight):
    """A weight of which each process holds a part of the factors, and all of the integers.

    The latent is a parameter of one axis: FSDP cuts the first one, and a latent has few rows, often
    one. Outside of a forward the factors are gathered, with gradients, when they are asked for.
    """

    CODED = torch.int16  # half the memory: FSDP sends no buffers

    @staticmethod
    def of(weight: FactoredWeight) -> None:
        """Let a weight become one that can be sharded; its parameters are called by other names."""
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
        """The whole codebook."""
        return whole(self._part("codebook"))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The whole scale."""
        return whole(self._part("scale"))

    @property
    def latent(self) -> Tensor:  # type: ignore[override]
        """The whole latent."""
        return whole(self.own_latent).view(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the whole latent."""
        return self._part("codebook").shape[1], self.tiling.count

    @property
    def own_latent(self) -> nn.Parameter:
        """The part of this process."""
        return self._part("latent")

    def _part(self, name: str) -> nn.Parameter:
        return cast(nn.Parameter, self._parameters[name + _PART])

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        if is_sharded(self.own_latent):
            raise InputError(
                f"a weight of shape {self.shape} is used outside of the forward of the module that "
                "FSDP wraps it in; wrap the layer around that module instead (auto_wrap_policy)"
            )
        return super().forward()

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Let the latent go a share of the way to the integers that are computed with."""
        if self.coded is not None:
            latent = self.own_latent
            latent.lerp_(part_of(self.coded.to(latent.dtype), latent), share)


def is_sharded(values: Tensor) -> bool:
    """Whether other processes hold other parts of the values."""
    return hasattr(values, "full_tensor")


def whole(values: Tensor) -> Tensor:
    """All of the values; to be asked for by all processes."""
    return cast("DTensor", values).full_tensor() if is_sharded(values) else values


def local(values: Tensor) -> Tensor:
    """The part of the values that this process holds; all of them if they are not sharded."""
    return cast("DTensor", values).to_local() if is_sharded(values) else values


def total(tensors: Sequence[Tensor]) -> float:
    """Sum of all values; to be asked for by all processes if they are sharded."""
    number = torch.stack([local(tensor).sum() for tensor in tensors]).sum()
    if is_sharded(tensors[0]):
        torch.distributed.all_reduce(number)
    return float(number)


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Of whole values, which each process has, the part that this one holds of another tensor."""
    values = values.reshape(like.shape)
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    sharded = cast(DTensor, like)
    everywhere = values.to(sharded.to_local().device)
    return DTensor.from_local(
        everywhere, sharded.device_mesh, [Replicate()], run_check=False
    ).redistribute(placements=sharded.placements)
