"""The module that holds the factors of one weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tersor.coding.entropy import reachable, trellis_of
from tersor.errors import InputError
from tersor.factorization.rate_aware import STATES
from tersor.factors import Factors
from tersor.kernels import power_of_two, recompose
from tersor.nn.held import HeldWeight, moved
from tersor.tiling import coding_order

INT16_MAX = 2**15 - 1

_PIECE = 1 << 20
"""Numbers that are rounded at once: of large factors a copy would take much memory."""


class FactoredWeight(HeldWeight):
    """A weight as trainable factors; calling it gives the dense weight.

    Integer factors stay real numbers here and are rounded in each forward, with the gradient
    passed straight through, so that they can be trained and are exactly representable all along.
    Once the latent is projected (`project_to`), its projection takes the place of the rounding.
    A latent of nothing but -1 and 1, as of weights that are to be fast, stays one: it is computed
    with by its signs (Courbariaux et al., 2015, arXiv 1511.00363).

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
        Parameters of shape (d, k) and (k, n), float32 whatever the type of the weight: 16 bits
        would round integers and scale.
    scale, exponent
        The scale of the factors is ``scale * 2 ** exponent``, parameter and int32 buffer of shape
        (1,): a step of an optimizer suits a number in [0.5, 1), as it does not suit 1e-9.
        (One axis, because FSDP refuses parameters without any.)
    coded
        What is computed with and stored in the place of the latent, a buffer of its shape; None if
        that is the latent itself, rounded. (int32, because DDP sends buffers, and gloo and NCCL do
        not send int16.)
    unit
        Mean length of the codebook's columns at first, in units of the weight: about the step.
    states
        States of the trellis that the latent comes from; 1 if from none.
    signs
        Whether the latent holds nothing but signs, and stays so.
    """

    CODED: ClassVar = torch.int32

    codebook: nn.Parameter
    latent: nn.Parameter
    scale: nn.Parameter
    exponent: Tensor
    coded: Tensor | None

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
        self.register_buffer("coded", None)
        lengths = self.codebook.detach().double().norm(dim=0)
        self.unit = factors.scale * float(lengths.mean()) if factors.rank else factors.scale
        self.states = trellis(factors) if self.integer_latent else 1
        latent = factors.latent
        self.signs = self.integer_latent and latent.numel() > 0 and bool((latent.abs() == 1).all())

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        codebook = round_through(self.codebook) if self.integer_codebook else self.codebook
        latent: Tensor = self.latent
        if self.signs:
            latent = through(latent, sign(latent))
        elif self.integer_latent:
            latent = round_through(latent) if self.coded is None else through(latent, self.coded)
        tiles = cast(Tensor, recompose(codebook, latent, self.scale, self.exponent))
        return self.tiling.join(tiles).to(self.dtype)

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns, rows of zeros left out."""
        scale = self.scale.detach().to(torch.float32) * power_of_two(self.exponent)
        codebook = stored(self.codebook, self.integer_codebook)
        latent = self.stored_latent
        used = latent.any(dim=1)
        return Factors(codebook[:, used], latent[used], float(scale), self.shape, self.dtype)

    @property
    def stored_latent(self) -> Tensor:
        """The latent that is computed with, (k, n), as `Factors` has it."""
        if self.signs:
            return sign(self.latent.detach()).to(torch.int16)
        if self.coded is None:
            return stored(self.latent, self.integer_latent)
        return self.coded.to(torch.int16)

    def project_to(self, coded: Tensor | None) -> None:
        """Compute with these integers in the place of the latent, which still gets the gradients.

        None: with the latent itself again, rounded.
        """
        self.coded = None if coded is None else coded.to(self.exponent.device, self.CODED)

    @property
    def own_latent(self) -> nn.Parameter:
        """The latent as an optimizer trains it."""
        return self.latent

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the latent."""
        return tuple(self.latent.shape)

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Let the latent go a share of the way to the integers that are computed with."""
        if self.coded is not None:
            self.latent.lerp_(self.coded.to(self.latent), share)

    @torch.no_grad()
    def settle(self) -> None:
        """Let the latent be the integers that are computed with."""
        if self.coded is not None:
            self.latent.copy_(self.coded)
            self.project_to(None)

    def extra_repr(self) -> str:
        """What `repr` tells about this module."""
        return f"shape={self.shape}, tile={self.tiling.size}, rank={self.codebook.shape[1]}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactoredWeight:
        """Move all, convert nothing: a data type is that of the weight, not that of its factors."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.exponent.device)).dtype
        super()._apply(lambda part: moved(fn, part), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A buffer that is there in only one of the two would be an error. What says nothing of this
        # weight leaves it alone.
        if prefix + "coded" in state_dict:
            self.coded = torch.empty_like(self.latent, dtype=torch.int32)
        elif any(prefix + name in state_dict for name in self._parameters):
            self.coded = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Through(torch.autograd.Function):
    """Other values in the place of some, with the gradient passed straight through."""

    @staticmethod
    def forward(values: Tensor, others: Tensor) -> Tensor:
        """The others, in the type of the values."""
        return others.to(values.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient, as it is."""
        return grad, None


def through(values: Tensor, others: Tensor) -> Tensor:
    """The others, as if they were the values for the gradient."""
    return cast(Tensor, Through.apply(values, others))  # type: ignore[no-untyped-call]


def round_through(values: Tensor) -> Tensor:
    """Round to integers, with the gradient of the identity."""
    return through(values, values.detach().round())


def sign(values: Tensor) -> Tensor:
    """-1 or 1; that of 0 is 1. NaN stays."""
    return torch.where(values.isnan(), values, 1 - 2 * values.lt(0).to(values.dtype))


def trellis(factors: Factors) -> int:
    """States of the trellis of an integer latent: the usual ones if those can reach it."""
    rows = factors.tiling.slices
    ordered = coding_order(factors.latent.cpu().to(torch.int16), rows)
    return STATES if reachable(ordered, rows, STATES) else trellis_of(ordered, rows)


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
