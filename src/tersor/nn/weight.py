"""The module that holds the factors of one weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import power_of_two, recompose

Mode = Literal["recompose", "dense"]

INT16_MAX = 2**15 - 1

_PIECE = 1 << 20
"""Numbers that are rounded at once: of large factors a copy would take much memory."""


class FactoredWeight(nn.Module):
    """A weight as trainable factors; calling it gives the dense weight.

    Integer factors stay real numbers here and are rounded in each forward, with the gradient
    passed straight through, so that they can be trained and are exactly representable all along.

    Parameters
    ----------
    factors
        Initial values; copied.
    dtype
        Data type of the weight; by default that of the factors. Follows `Module.to`.
    device
        Where the parameters live; by default where the factors are.
    requires_grad
        Whether the factors are trained.

    Attributes
    ----------
    codebook, latent
        Parameters of shape (d, k) and (k, n), float32 at first.
    scale, exponent
        The scale of the factors is ``scale * 2 ** exponent``, parameter and int32 buffer of shape
        (1,): a scale of 1e-9 would be zero after `Module.half`, a number in [0.5, 1) is not.
        (One axis, because FSDP refuses parameters without any.)
    """

    codebook: nn.Parameter
    latent: nn.Parameter
    scale: nn.Parameter
    exponent: Tensor

    def __init__(
        self,
        factors: Factors,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        requires_grad: bool = True,
    ) -> None:
        super().__init__()

        def parameter(values: Tensor) -> nn.Parameter:
            copy = values.detach().to(device=device, dtype=torch.float32, copy=True)
            return nn.Parameter(copy, requires_grad=requires_grad)

        device = device or factors.codebook.device
        mantissa, exponent = split_scale(factors.scale)
        self.tiling = factors.tiling
        self.dtype = dtype or factors.dtype
        self.integer_codebook = not factors.codebook.is_floating_point()
        self.integer_latent = not factors.latent.is_floating_point()
        self.codebook = parameter(factors.codebook)
        self.latent = parameter(factors.latent)
        self.scale = parameter(torch.tensor([mantissa], dtype=torch.float32))
        self.register_buffer("exponent", torch.tensor([exponent], dtype=torch.int32, device=device))
        self._dense: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.tiling.shape

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        return self._recompose() if self._dense is None else self._dense

    def set_mode(self, mode: Mode) -> None:
        """Recompose the weight in each forward, or once and keep it."""
        self._dense = None
        if mode == "dense":
            # A tensor made in inference mode could not be used in autograd later.
            with torch.inference_mode(False), torch.no_grad():
                self._dense = self._recompose()

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        scale = self.scale.detach().to(torch.float32) * power_of_two(self.exponent)
        return Factors(
            codebook=stored(self.codebook, self.integer_codebook),
            latent=stored(self.latent, self.integer_latent),
            scale=float(scale),
            shape=self.shape,
            dtype=self.dtype,
        )

    def extra_repr(self) -> str:
        """What `repr` tells about this module."""
        return f"shape={self.shape}, tile={self.tiling.size}, rank={self.codebook.shape[1]}"

    def _recompose(self) -> Tensor:
        codebook = round_through(self.codebook) if self.integer_codebook else self.codebook
        latent = round_through(self.latent) if self.integer_latent else self.latent
        tiles = cast(Tensor, recompose(codebook, latent, self.scale, self.exponent))
        return self.tiling.join(tiles).to(self.dtype)

    def _refresh(self) -> None:
        self.set_mode("recompose" if self._dense is None else "dense")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactoredWeight:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.exponent.device)).dtype
        self._refresh()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._refresh()


class RoundThrough(torch.autograd.Function):
    """Straight-through rounding, see `round_through`."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        """Nearest integers."""
        return values.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient, as it is."""
        return grad


def round_through(values: Tensor) -> Tensor:
    """Round to integers, with the gradient of the identity."""
    return cast(Tensor, RoundThrough.apply(values))  # type: ignore[no-untyped-call]


def split_scale(scale: float) -> tuple[float, int]:
    """Mantissa and exponent of a number, the exponent within the range of `power_of_two`."""
    exponent = min(max(math.frexp(scale)[1], -126), 127)
    return math.ldexp(scale, -exponent), exponent


def stored(values: Tensor, integer: bool) -> Tensor:
    """A factor as `Factors` keeps it: int16 or float32, a copy."""
    if not integer:
        return values.detach().to(torch.float32, copy=True)
    real = values.detach().reshape(-1)
    largest = float(torch.stack(real.aminmax()).abs().max()) if real.numel() else 0.0
    if not largest <= INT16_MAX:  # also true of NaN
        raise InputError(
            f"a trained factor holds {largest}, integers up to {INT16_MAX} can be stored; train "
            "with a smaller learning rate"
        )
    integers = torch.empty(values.shape, dtype=torch.int16, device=values.device)
    for start in range(0, len(real), _PIECE):
        integers.view(-1)[start : start + _PIECE] = real[start : start + _PIECE].round()
    return integers
