# SPDX-License-Identifier: Apache-2.0
"""Hold the factors of one weight in a module."""

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
"""Numbers that are rounded at a time, because a copy of large factors would take much memory."""


class FactoredWeight(HeldWeight):
    """A weight as trainable factors; calling it returns the dense weight.

    Integer factors are real numbers here and are rounded in each forward. The gradient passes
    straight through the rounding, so that the factors can be trained and the weight can always be
    stored exactly. When the latent is projected (`project_to`), the projection replaces the
    rounding. A latent of only -1 and 1 (a binary latent, as for weights for look-up kernels) stays
    binary: its signs are used in the forward (Courbariaux et al., 2015, arXiv 1511.00363).

    Parameters
    ----------
    factors
        Initial values; copied.
    dtype
        Data type of the weight; by default that of the factors. It follows `Module.to`.
    device
        Device of the parameters; by default that of the factors.
    requires_grad
        Whether the factors are trained.

    Attributes
    ----------
    codebook, latent
        Parameters of shape (d, k) and (k, n). They are float32 for weights of every type, because
        16 bits would round integers and scale.
    scale, exponent
        The scale of the factors is ``scale * 2 ** exponent``: a parameter and an int32 buffer, both
        of shape (1,). A step of an optimizer suits a number in [0.5, 1), but not a number such as
        1e-9. (They have one axis, because FSDP refuses parameters without axes.)
    coded
        Integers that are used in the forward and stored in place of the latent, a buffer of the
        latent's shape. None if the rounded latent itself is used. (int32, because DDP sends
        buffers, and gloo and NCCL do not send int16.)
    unit
        Initial mean length of the codebook's columns, in units of the weight: about the step size.
    states
        Number of states of the trellis that the latent comes from; 1 if there is none.
    binary
        Whether the latent holds only -1 and 1, and stays so.
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
        self.binary = self.integer_latent and latent.numel() > 0 and bool((latent.abs() == 1).all())

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``."""
        codebook = round_through(self.codebook) if self.integer_codebook else self.codebook
        latent: Tensor = self.latent
        if self.binary:
            latent = through(latent, sign(latent))
        elif self.integer_latent:
            latent = round_through(latent) if self.coded is None else through(latent, self.coded)
        tiles = recompose(codebook, latent, self.scale, self.exponent)
        return self.tiling.join(tiles).to(self.dtype)

    def to_factors(self, latent: Tensor | None = None) -> Factors:
        """Return factors that recompose to exactly the result of `forward`, without zero rows.

        Rows of the latent that hold only zeros are left out.

        Parameters
        ----------
        latent
            Integers of shape (k, n), as if `project_to` had got them. By default those that the
            forward uses.

        Raises
        ------
        InputError
            If a factor that is rounded here does not fit in 16 bits, or is NaN.
        """
        scale = self.scale.detach().to(torch.float32) * power_of_two(self.exponent)
        codebook = stored(self.codebook, self.integer_codebook)
        latent = self.stored_latent if latent is None else latent.to(torch.int16)
        used = latent.any(dim=1)
        return Factors(codebook[:, used], latent[used], float(scale), self.shape, self.dtype)

    @property
    def stored_latent(self) -> Tensor:
        """Return the latent that the forward uses, (k, n), in the type that `Factors` stores."""
        if self.binary:
            return stored(sign(self.latent.detach()), True)
        if self.coded is None:
            return stored(self.latent, self.integer_latent)
        return self.coded.to(torch.int16)

    def project_to(self, coded: Tensor | None) -> None:
        """Use these integers in place of the latent, which still gets the gradients.

        Parameters
        ----------
        coded
            Integers of shape (k, n). None to use the rounded latent again.
        """
        self.coded = None if coded is None else coded.to(self.exponent.device, self.CODED)

    @property
    def own_latent(self) -> nn.Parameter:
        """Return the latent as the parameter that an optimizer trains."""
        return self.latent

    @property
    def grid(self) -> tuple[int, ...]:
        """Return the shape (k, n) of the latent."""
        return tuple(self.latent.shape)

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Move the latent by ``share`` of the distance towards the integers of its projection."""
        if self.coded is not None:
            self.latent.lerp_(self.coded.to(self.latent), share)

    @torch.no_grad()
    def freeze_latent(self) -> None:
        """Set the latent to the integers of its projection, and end the projection."""
        if self.coded is not None:
            self.latent.copy_(self.coded)
            self.project_to(None)

    def extra_repr(self) -> str:
        """Return the text that `repr` shows for this module."""
        return f"shape={self.shape}, tile={self.tiling.size}, rank={self.codebook.shape[1]}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactoredWeight:
        """Move all tensors without converting them; only the data type of the weight changes."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.exponent.device)).dtype
        super()._apply(lambda part: moved(fn, part), recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A buffer that only the state dict or only the module has would be an error. A state dict
        # without this weight changes nothing.
        if prefix + "coded" in state_dict:
            self.coded = torch.empty_like(self.latent, dtype=torch.int32)
        elif any(prefix + name in state_dict for name in self._parameters):
            self.coded = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Through(torch.autograd.Function):
    """Replaces values by others in the forward, and passes the gradient straight through."""

    @staticmethod
    def forward(values: Tensor, others: Tensor) -> Tensor:
        """Return the others, in the type of the values."""
        return others.to(values.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Store nothing, because the gradient needs nothing."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient unchanged."""
        return grad, None


def through(values: Tensor, others: Tensor) -> Tensor:
    """Return the others, and pass their gradient to the values."""
    return cast(Tensor, Through.apply(values, others))  # type: ignore[no-untyped-call]


def round_through(values: Tensor) -> Tensor:
    """Return the values rounded to integers, with the gradient of the identity."""
    return through(values, values.detach().round())


def sign(values: Tensor) -> Tensor:
    """Return -1 for negative values, 1 for all others including 0, and NaN for NaN."""
    return torch.where(values.isnan(), values, 1 - 2 * values.lt(0).to(values.dtype))


def trellis(factors: Factors) -> int:
    """Return the states of the trellis of an integer latent.

    The usual number of states is returned if such a trellis can reach the latent.
    """
    rows = factors.tiling.slices
    ordered = coding_order(factors.latent.cpu().to(torch.int16), rows)
    return STATES if reachable(ordered, rows, STATES) else trellis_of(ordered, rows)


def split_scale(scale: float) -> tuple[float, int]:
    """Return mantissa and exponent of a number, the exponent within the range of `power_of_two`."""
    exponent = min(max(math.frexp(scale)[1], -126), 127)
    return math.ldexp(scale, -exponent), exponent


def stored(values: Tensor, integer: bool) -> Tensor:
    """Return a copy of a factor in the type that `Factors` stores: int16 or float32.

    Parameters
    ----------
    values
        The factor as it is trained.
    integer
        Whether it holds integers, which are rounded here.

    Raises
    ------
    InputError
        If an integer does not fit in 16 bits, or is NaN.
    """
    if not integer:
        return values.detach().to(torch.float32, copy=True)
    real = values.detach().reshape(-1)
    largest = float(torch.stack(real.aminmax()).abs().max()) if real.numel() else 0.0
    if not largest <= INT16_MAX:  # also true if it is NaN
        raise InputError(
            f"a trained factor holds {largest}, integers up to {INT16_MAX} can be stored; train "
            "with a smaller learning rate"
        )
    integers = torch.empty(values.shape, dtype=torch.int16, device=values.device)
    for start in range(0, len(real), _PIECE):
        integers.view(-1)[start : start + _PIECE] = real[start : start + _PIECE].round()
    return integers
