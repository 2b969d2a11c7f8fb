# SPDX-License-Identifier: Apache-2.0
"""Compute the bits of a model's factors, with gradients."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor import _native
from tersor.coding.rate import analyse
from tersor.errors import InputError
from tersor.nn import FactoredWeight
from tersor.tiling import coding_order
from tersor.training.costs import Cost, cost_of
from tersor.training.groups import factored_weights


def rate_loss(model: nn.Module) -> Tensor:
    """Return the bits that a model's latents and codebooks take in its file, to be added to a loss.

    The value is the number of bits that the adaptive coder spends on the integers that the model
    computes with. It does not include the remainder of the file, its header and the unfactored
    tensors, which does not depend on these integers. The gradient is the slope of the costs in the
    final state of the coder, interpolated linearly and averaged over a cell of the grid. This is
    the gradient of the expected bits if uniform noise replaces the rounding (Ballé et al., 2017),
    which are a smooth function of the latents and codebooks.

    Parameters
    ----------
    model
        Model with factors. A weight that several modules share counts once.

    Returns
    -------
    Tensor
        Bits, a float32 scalar on the device of the model.

    Raises
    ------
    InputError
        If the model holds no quantized factors.

    References
    ----------
    Ballé, Laparra, Simoncelli, 2017: *End-to-end Optimized Image Compression*, arXiv 1611.01704.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 32)
    >>> report = tersor.compress(model, ratio=4)
    >>> loss = model(torch.randn(16, 32)).square().mean() + 1e-6 * tersor.rate_loss(model)
    >>> loss.backward()
    """
    weights = factored_weights(model).values()
    if not weights:
        raise InputError("the model holds no quantized factors; call tersor.compress first")
    return torch.stack([bits_of(weight) for weight in weights]).sum()


def bits_of(weight: FactoredWeight) -> Tensor:
    """Return the bits of the latent and the codebook of one weight, see `rate_loss`."""
    rows, codebook = weight.tiling.slices, weight.codebook.T
    latent: Tensor = weight.latent
    if not latent.numel():
        return latent.new_zeros(())
    latent = latent.detach() if weight.binary else latent  # binary: always the same bits
    coded, cost = codebook.detach().round().cpu(), cost_of(weight)
    of_codebook = Cost(analyse(coded, codebook.shape[1]), 1)
    return _rate(coding_order(latent, rows), cost) + _rate(codebook, of_codebook)


def _rate(values: Tensor, cost: Cost) -> Tensor:
    return cast(Tensor, Rate.apply(values, cost))  # type: ignore[no-untyped-call]


class Rate(torch.autograd.Function):
    """Bits of integers in coding order, as a function of the real numbers before rounding."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, cost: Cost) -> Tensor:
        """Return the bits, and save the slopes of the costs at the values."""
        if ctx.needs_input_grad[0]:
            slopes = values.detach().to("cpu", torch.float32, copy=True).contiguous()
            _native.slopes(slopes.numpy(), cost.analysis, cost.states)
            ctx.save_for_backward(slopes.to(values))
        return values.new_tensor(cost.bits, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        """Return the gradient: the saved slopes times the incoming gradient."""
        slopes = ctx.saved_tensors[0] if ctx.needs_input_grad[0] else None
        return None if slopes is None else grad.to(slopes.dtype) * slopes, None
