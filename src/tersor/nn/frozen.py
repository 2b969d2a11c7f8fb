"""Weights for inference only, in the forms that `tersor.optimize` chooses from.

Each holds what it computes with, and nothing for training: there are no parameters here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import integers, lookup
from tersor.kernels.product import Known, Packed
from tersor.nn.held import HeldWeight
from tersor.nn.weight import split_scale

INT8 = (-128, 127)


class FrozenWeight(HeldWeight):
    """A weight for inference only, in one form."""

    mode = ""

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__()
        self.tiling, self.dtype = factors.tiling, dtype

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        """What `repr` tells about this module."""
        return f"shape={self.shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        """Move all, convert nothing: a data type is that of the weight, not that of its parts."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        super()._apply(lambda part: _bits(fn, part), recurse)  # type: ignore[no-untyped-call]
        return self


class DenseWeight(FrozenWeight):
    """The dense weight: as fast and as large as the dense model. The factors are gone."""

    mode = "dense"
    weight: Tensor

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self.register_buffer("weight", factors.recompose().to(dtype))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        return self.weight

    def to_factors(self) -> Factors:
        """Not possible."""
        raise InputError(
            "the factors of this weight are gone: tersor.optimize has made it dense; save the "
            "model before, or load the file again"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = self.weight.dtype
        return self


class RecomposedWeight(FrozenWeight):
    """Small integers, multiplied out in each forward: works with any module."""

    mode = "recompose"
    codebook: Tensor
    latent: Tensor
    scale: Tensor
    exponent: Tensor

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        mantissa, exponent = split_scale(factors.scale)
        device = factors.latent.device
        latent = factors.latent
        if factors.quantized and _within(latent, INT8):
            latent = latent.to(torch.int8)
        self.register_buffer("codebook", factors.codebook.clone())
        self.register_buffer("latent", latent.clone())
        self.register_buffer("scale", torch.tensor([mantissa], device=device))
        self.register_buffer("exponent", torch.tensor([exponent], dtype=torch.int32, device=device))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        tiles = cast(
            Tensor, kernels.recompose(self.codebook, self.latent, self.scale, self.exponent)
        )
        return self.tiling.join(tiles).to(self.dtype)

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        scale = float(self.scale * kernels.power_of_two(self.exponent))
        latent = self.latent.to(self.codebook.dtype)
        return Factors(self.codebook, latent, scale, self.shape, self.dtype)


class PackedWeight(FrozenWeight):
    """Integers of a matrix, packed for the kernels that compute without the dense weight."""

    mode = "factored"
    by_rows = True
    way: ClassVar[ModuleType] = integers

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        packed, self.layout, order = self.way.pack(factors)
        for name, part in packed._asdict().items():
            self.register_buffer(name, part)
        self.register_buffer("exact_codebook", factors.codebook[:, order].clone())
        self.scale = factors.scale
        self._known: Known | None = None

    @property
    def packed(self) -> Packed:
        """The tensors of the kernels."""
        kind = self.way.Packed
        return cast(Packed, kind(*(getattr(self, name) for name in kind._fields)))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        return self.to_factors().recompose()

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        codebook = cast(Tensor, self.exact_codebook)
        latent = self.way.latent_of(self.packed, self.layout)[: codebook.shape[1]]
        return Factors(codebook, latent, self.scale, self.shape, self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `nn.Linear` computes with this weight, by ``tersor::linear``."""
        if not kernels.is_plain(x):
            return kernels.linear(x, self.packed, bias, self.layout)
        if self._known is None:
            self._known = kernels.known(self.packed, self.layout)
        return kernels.native(x, bias, self._known)

    def embed(self, index: Tensor) -> Tensor:
        """What `nn.Embedding` computes with this weight: only the rows asked for are made."""
        rows = kernels.rows(index.reshape(-1).long(), self.packed, self.layout)
        return rows.reshape(*index.shape, self.shape[1]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        self._known = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}


class LookupWeight(PackedWeight):
    """Signs or few integers of a matrix, packed for the kernels that look them up."""

    mode = "look-up"
    way: ClassVar[ModuleType] = lookup


def _bits(fn: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """A function that moves tensors, kept from converting this one."""
    if part.is_floating_point():
        return fn(part.view(torch.int32)).view(part.dtype)
    return fn(part)


def _within(values: Tensor, limits: tuple[int, int]) -> bool:
    if not values.numel():
        return True
    least, most = values.aminmax()
    return bool(limits[0] <= least) and bool(most <= limits[1])
