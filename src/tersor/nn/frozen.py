"""Weights for inference only, in the forms that `tersor.optimize` chooses from.

Each holds what it computes with, and nothing for training: there are no parameters here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import integers, lookup, panels
from tersor.kernels.product import Known, Layout, Packed
from tersor.nn.held import HeldWeight, moved
from tersor.nn.weight import split_scale

OUTLIERS = 1 / 16
"""Share of integers outside of 8 bits up to which the others are held in 8: each takes 6 bytes."""


class FrozenWeight(HeldWeight):
    """A weight for inference only, in one form."""

    mode = ""
    is_dense = False
    """Whether the weight is multiplied out, and its factors are gone."""

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__()
        self.tiling, self.dtype = factors.tiling, dtype

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Whether this form is one for such a module."""
        return True

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
        super()._apply(lambda part: moved(fn, part), recurse)  # type: ignore[no-untyped-call]
        return self


def dense(factors: Factors, gain: Tensor | None) -> Tensor:
    """The dense weight, each of its rows times a number, if there are any."""
    weight = factors.recompose()
    return weight if gain is None else weight * gain.reshape(-1, *[1] * (weight.ndim - 1))


def gone() -> InputError:
    """The error of weights that cannot be saved any more."""
    return InputError(
        "the factors of this weight are gone: tersor.optimize has made it dense; save the model "
        "before, or load the file again"
    )


class DenseWeight(FrozenWeight):
    """The dense weight: as fast and as large as the dense model. The factors are gone."""

    mode = "dense"
    is_dense = True
    weight: Tensor

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        super().__init__(factors, dtype)
        self.register_buffer("weight", dense(factors, gain).to(dtype))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        return self.weight

    def to_factors(self) -> Factors:
        """Not possible."""
        raise gone()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = self.weight.dtype
        return self


class RecomposedWeight(FrozenWeight):
    """Small integers, multiplied out in each forward: works with any module.

    They are held in 8 bits, and the few that do not fit with their places.
    """

    mode = "recompose"
    codebook: Tensor
    latent: Tensor
    places: Tensor
    """Where integers are that do not fit in 8 bits."""
    beyond: Tensor
    """What these are more than the latent says."""
    scale: Tensor
    exponent: Tensor

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        mantissa, exponent = split_scale(factors.scale)
        device = factors.latent.device
        latent, places, beyond = _small(factors)
        self.register_buffer("codebook", factors.codebook.clone())
        self.register_buffer("latent", latent)
        self.register_buffer("places", places)
        self.register_buffer("beyond", beyond)
        self.register_buffer("scale", torch.tensor([mantissa], device=device))
        self.register_buffer("exponent", torch.tensor([exponent], dtype=torch.int32, device=device))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        tiles = cast(
            Tensor, kernels.recompose(self.codebook, self._whole(), self.scale, self.exponent)
        )
        return self.tiling.join(tiles).to(self.dtype)

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        scale = float(self.scale * kernels.power_of_two(self.exponent))
        latent = self._whole().to(self.codebook.dtype)
        return Factors(self.codebook, latent, scale, self.shape, self.dtype)

    def _whole(self) -> Tensor:
        """The latent with what does not fit in 8 bits."""
        if not self.places.numel():
            return self.latent
        flat = self.latent.flatten().to(self.beyond.dtype)
        return flat.index_add(0, self.places, self.beyond).reshape(self.latent.shape)


class KernelWeight(FrozenWeight):
    """A matrix, packed for the kernels that compute with it."""

    way: ClassVar[ModuleType]
    layout: Layout

    def _hold(self, packed: Packed, layout: Layout) -> None:
        for name, part in packed._asdict().items():
            self.register_buffer(name, part)
        self.layout = layout
        self._known: Known | None = None
        self._places: list[int] = []

    @property
    def packed(self) -> Packed:
        """The tensors of the kernels."""
        kind = self.way.Packed
        return cast(Packed, kind(*(getattr(self, name) for name in kind._fields)))

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `nn.Linear` computes with this weight, by ``tersor::linear``."""
        rows = self.layout.rows
        if kernels.is_plain(x, bias, rows):
            return kernels.native(x, bias, self._prepared())
        if kernels.fits(bias, rows, x):
            return kernels.linear(x, self.packed, bias, self.layout)
        return super().linear(x, bias)  # torch broadcasts the bias, or says what is wrong

    def _prepared(self) -> Known:
        """What is known of the matrix, if its tensors are where they were."""
        places = kernels.places(self._buffers.values())  # type: ignore[arg-type]
        if self._known is None or self._places != places:
            self.way.verify(self.packed, self.layout)
            self._known, self._places = kernels.known(self.packed, self.layout), places
        return self._known

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = self.way.Packed._fields
        given = (state_dict.get(prefix + name, getattr(self, name)) for name in names)
        self.way.verify(self.way.Packed(*given), self.layout)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None, "_places": []}


class PackedWeight(KernelWeight):
    """Integers of a matrix, packed for the kernels that compute without the dense weight."""

    mode = "factored"
    by_rows = True
    way: ClassVar[ModuleType] = integers

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        # Packed on the CPU; the tensors are the same on a GPU.
        factors = replace(factors, codebook=factors.codebook.cpu(), latent=factors.latent.cpu())
        self._hold(*self.way.pack(factors))

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        return self.to_factors().recompose()

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        latent = self.way.latent_of(self.packed, self.layout)
        codebook = cast(Tensor, self.codebook)[:, : latent.shape[0]]
        return Factors(codebook, latent, float(cast(Tensor, self.scale)), self.shape, self.dtype)

    def embed(self, index: Tensor) -> Tensor:
        """What `nn.Embedding` computes with this weight: only the rows asked for are made."""
        if index.dtype not in (torch.int64, torch.int32):
            return super().embed(index)  # torch says what is wrong
        flat = index.reshape(-1).long()
        if isinstance(self.layout, integers.Layout) and kernels.is_plain(flat):
            rows = kernels.native_rows(flat, self._prepared())
        else:
            rows = kernels.rows(flat, self.packed, self.layout)
        return rows.reshape(*index.shape, self.shape[1]).to(self.dtype)


class LookupWeight(PackedWeight):
    """Signs or few integers of a matrix, packed for the kernels that look them up."""

    mode = "look-up"
    way: ClassVar[ModuleType] = lookup

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self.register_buffer("exact_codebook", factors.codebook.clone())
        self.exact_scale = factors.scale

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        codebook = cast(Tensor, self.exact_codebook)
        latent = self.way.latent_of(self.packed, self.layout)[: codebook.shape[1]]
        return Factors(codebook, latent, self.exact_scale, self.shape, self.dtype)


class PanelWeight(KernelWeight):
    """The dense weight of linear layers, in the order in which it is multiplied, and no other."""

    mode = "dense, packed"
    is_dense = True
    way: ClassVar[ModuleType] = panels

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self._hold(*self.way.pack(factors.recompose()))

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Whether this form is one for such a module."""
        return isinstance(module, nn.Linear)

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        matrix: Tensor = self.way.matrix_of(self.packed, self.layout)
        return matrix.to(self.dtype)

    def to_factors(self) -> Factors:
        """Not possible."""
        raise gone()


def _small(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """The latent, of integers in 8 bits if nearly all fit, and places and rests of the others."""
    latent = factors.latent
    if not factors.quantized or latent.numel() >= 2**31:  # places are numbers of 32 bits
        return latent.clone(), latent.new_empty(0, dtype=torch.int32), latent.new_empty(0)
    fitting = latent.clamp(-128, 127)
    places = (latent != fitting).flatten().nonzero()[:, 0].to(torch.int32)
    if len(places) > OUTLIERS * latent.numel():
        return latent.clone(), places[:0], latent.new_empty(0)
    return fitting.to(torch.int8), places, (latent - fitting).flatten()[places]
