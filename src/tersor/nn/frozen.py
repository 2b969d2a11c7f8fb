# SPDX-License-Identifier: Apache-2.0
"""Hold weights for inference only, in the forms that `tersor.optimize` chooses from.

Each form holds only the tensors that it computes with. There are no parameters to train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels.cpu import Known
from tersor.kernels.integers import Integers
from tersor.kernels.lookup import Lookup
from tersor.kernels.packing import Packing
from tersor.kernels.panels import Panels
from tersor.nn.held import HeldWeight, moved
from tersor.nn.weight import split_scale

OUTLIERS = 1 / 16
"""Largest share of integers beyond 8 bits for which the others are held in 8 bits. Each one beyond
takes 6 bytes more."""


class FrozenWeight(HeldWeight):
    """A weight for inference only, in one form.

    Parameters
    ----------
    factors
        The weight as factors.
    dtype
        Data type of the weight.

    Attributes
    ----------
    mode
        Name of the form.
    """

    mode = ""
    is_dense = False
    """Whether the weight is held dense and its factors are deleted."""

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__()
        self.tiling, self.dtype = factors.tiling, dtype

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Return whether this form suits such a module and such factors."""
        return True

    @property
    def nbytes(self) -> int:
        """Return the bytes in memory."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        """Return the text that `repr` shows for this module."""
        return f"shape={self.shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        """Move all tensors without converting them; only the data type of the weight changes."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        super()._apply(lambda part: moved(fn, part), recurse)  # type: ignore[no-untyped-call]
        return self


def dense(factors: Factors, gain: Tensor | None) -> Tensor:
    """Return the dense weight, with each row multiplied by its gain if gains are given.

    Parameters
    ----------
    factors
        The weight as factors.
    gain
        One number for each row, or None.
    """
    weight = factors.recompose()
    return weight if gain is None else weight * gain.reshape(-1, *[1] * (weight.ndim - 1))


def gone() -> InputError:
    """Return the error for weights that cannot be saved any more."""
    return InputError(
        "the factors of this weight are gone: tersor.optimize has made it dense; save the model "
        "before, or load the file again"
    )


class DenseWeight(FrozenWeight):
    """The dense weight, as fast and as large as in the dense model. The factors are deleted.

    Parameters
    ----------
    factors, dtype
        As in `FrozenWeight`.
    gain
        Numbers by which the rows are multiplied; by default none.
    """

    mode = "dense"
    is_dense = True
    weight: Tensor

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        super().__init__(factors, dtype)
        self.register_buffer("weight", dense(factors, gain).to(dtype))

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``."""
        return self.weight

    def to_factors(self) -> Factors:
        """Raise an `InputError`, because the factors are deleted."""
        raise gone()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = self.weight.dtype
        return self


class RecomposedWeight(FrozenWeight):
    """Small integers that are recomposed to the dense weight in each forward, for any module.

    The integers are held in 8 bits. The few that do not fit are also held in a list with their
    positions.

    Parameters
    ----------
    factors, dtype
        As in `FrozenWeight`.
    """

    mode = "recompose"
    codebook: Tensor
    latent: Tensor
    places: Tensor
    """Positions of the integers that do not fit in 8 bits, in the flattened latent."""
    beyond: Tensor
    """Differences between these integers and the values in the latent."""
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
        """Return the dense weight, of shape ``shape`` and type ``dtype``."""
        tiles = kernels.recompose(self.codebook, self._whole(), self.scale, self.exponent)
        return self.tiling.join(tiles).to(self.dtype)

    def to_factors(self) -> Factors:
        """Return factors that recompose to exactly the result of `forward`."""
        scale = float(self.scale * kernels.power_of_two(self.exponent))
        latent = self._whole().to(self.codebook.dtype)
        return Factors(self.codebook, latent, scale, self.shape, self.dtype)

    def _whole(self) -> Tensor:
        """Return the latent with the integers that do not fit in 8 bits."""
        if not self.places.numel():
            return self.latent
        flat = self.latent.flatten().to(self.beyond.dtype)
        return flat.index_add(0, self.places, self.beyond).reshape(self.latent.shape)


class HoldsPacking(FrozenWeight):
    """Base of weights that hold a packing, whose tensors are buffers."""

    packing: ClassVar[Any]
    """Class of the packing."""
    layout: Any
    _names: tuple[str, ...]

    def _hold(self, packed: Packing, names: Sequence[str] | None = None) -> None:
        """Hold packed tensors, as buffers of these names; by default by their own."""
        self.layout = packed.layout
        self._names = tuple(packed.named() if names is None else names)
        for name, part in zip(self._names, packed.tensors, strict=True):
            self.register_buffer(name, part)

    @property
    def packed(self) -> Any:
        """Return the packed weight, as the kernels take it."""
        return self.packing.of([getattr(self, name) for name in self._names], self.layout)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given = [state_dict.get(prefix + name, getattr(self, name)) for name in self._names]
        self.packing.of(given, self.layout).verify()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class KernelWeight(HoldsPacking):
    """A matrix, packed for the kernels that compute with it."""

    _known: Known | None = None
    _places: list[int]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the result of `nn.Linear` with this weight, computed by ``tersor::linear``."""
        rows = self.layout.rows
        if kernels.is_plain(x, bias, rows):
            return kernels.native(x, bias, self._prepared())
        if kernels.fits(bias, rows, x):
            return kernels.linear(x, self.packed, bias)
        return super().linear(x, bias)  # torch broadcasts the bias, or raises a clear error

    def _prepared(self) -> Known:
        """Return the prepared matrix, and prepare it again if its tensors have moved in memory."""
        places = kernels.places(self._buffers.values())  # type: ignore[arg-type]
        if self._known is None or self._places != places:
            self.packed.verify()
            self._known, self._places = kernels.known(self.packed), places
        return self._known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}


class PackedWeight(KernelWeight):
    """Integers of a matrix, packed for the kernels that compute without the dense weight.

    Parameters
    ----------
    factors, dtype
        As in `FrozenWeight`.
    """

    mode = "factored"
    by_rows = True
    packing: ClassVar[Any] = Integers

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        # Packed on the CPU; the tensors are the same on a GPU.
        factors = replace(factors, codebook=factors.codebook.cpu(), latent=factors.latent.cpu())
        self._hold(self.packing.pack(factors))

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``, made for each call."""
        return self.to_factors().recompose()

    def to_factors(self) -> Factors:
        """Return factors that recompose to exactly the result of `forward`."""
        latent = self.packed.latent()
        codebook = cast(Tensor, self.codebook)[:, : latent.shape[0]]
        return Factors(codebook, latent, float(cast(Tensor, self.scale)), self.shape, self.dtype)

    def embed(self, index: Tensor) -> Tensor:
        """Return the result of `nn.Embedding` with this weight, making only the rows needed."""
        if index.dtype not in (torch.int64, torch.int32):
            return super().embed(index)  # torch raises a clear error
        flat = index.reshape(-1).long()
        if self.packing.picks and kernels.is_plain(flat):
            rows = kernels.native_rows(flat, self._prepared())
        else:
            rows = kernels.rows(flat, self.packed)
        return rows.reshape(*index.shape, self.shape[1]).to(self.dtype)


class LookupWeight(PackedWeight):
    """Binary latents or other small integers of a matrix, packed for the look-up kernels.

    Parameters
    ----------
    factors, dtype
        As in `FrozenWeight`.
    """

    mode = "look-up"
    packing = Lookup

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self.register_buffer("exact_codebook", factors.codebook.clone())
        self.exact_scale = factors.scale

    def to_factors(self) -> Factors:
        """Return factors that recompose to exactly the result of `forward`."""
        codebook = cast(Tensor, self.exact_codebook)
        latent = self.packed.latent()[: codebook.shape[1]]
        return Factors(codebook, latent, self.exact_scale, self.shape, self.dtype)


class PanelWeight(KernelWeight):
    """The dense weight of a linear layer, held only in the order in which it is multiplied.

    Parameters
    ----------
    factors, dtype
        As in `FrozenWeight`.
    """

    mode = "dense, packed"
    is_dense = True
    packing = Panels

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self._hold(self.packing.pack(factors.recompose()))

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Return whether this form suits such a module and such factors."""
        return isinstance(module, nn.Linear)

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``, made for each call."""
        matrix: Tensor = self.packed.recompose()
        return matrix.to(self.dtype)

    def to_factors(self) -> Factors:
        """Raise an `InputError`, because the factors are deleted."""
        raise gone()


def _small(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latent, in 8 bits if nearly all integers fit, and what is beyond 8 bits.

    Returns
    -------
    tuple
        The latent; the positions of the integers that do not fit; the differences between these
        integers and the latent's values.
    """
    latent = factors.latent
    if not factors.quantized or latent.numel() >= 2**31:  # positions are 32-bit integers
        return latent.clone(), latent.new_empty(0, dtype=torch.int32), latent.new_empty(0)
    fitting = latent.clamp(-128, 127)
    places = (latent != fitting).flatten().nonzero()[:, 0].to(torch.int32)
    if len(places) > OUTLIERS * latent.numel():
        return latent.clone(), places[:0], latent.new_empty(0)
    return fitting.to(torch.int8), places, (latent - fitting).flatten()[places]
