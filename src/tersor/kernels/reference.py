# SPDX-License-Identifier: Apache-2.0
"""Define the reference operators in plain PyTorch, against which all faster kernels are tested."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.factors import multiply

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, None]


def power_of_two(exponent: Tensor) -> Tensor:
    """Return exactly ``2 ** exponent`` in float32, for int32 exponents from -126 to 127.

    The result is made from the bits of an IEEE 754 number. `torch.ldexp` computes in the default
    dtype, where a small power can underflow, and `torch.exp2` promises no exact result.
    """
    return ((exponent + 127) << 23).view(torch.float32)


# Not by `torch.library.custom_op`: operators made by that import the compiler, `torch._dynamo`, in
# the first call, which takes seconds.
torch.library.define(
    "tersor::recompose",
    "(Tensor codebook, Tensor latent, Tensor scale, Tensor exponent) -> Tensor",
)


def recompose(codebook: Tensor, latent: Tensor, scale: Tensor, exponent: Tensor) -> Tensor:
    """Return the tiles of a weight: ``scale * 2 ** exponent * codebook @ latent``, in float32.

    This is a custom operator, so that an exported graph keeps it as one node, and a faster kernel
    can replace it.

    Parameters
    ----------
    codebook
        Codebook of a floating-point type, shape (d, k).
    latent
        Latent of a floating-point type, shape (k, n).
    scale
        Scale of a floating-point type, shape (1,).
    exponent
        Exponent of a power of two, int32, shape (1,), from -126 to 127. It has no gradient.

    Returns
    -------
    Tensor
        Tiles, float32, shape (d, n). For factors with integer values they have the same bits as
        those of `Factors.recompose`.
    """
    tiles: Tensor = torch.ops.tersor.recompose(codebook, latent, scale, exponent)
    return tiles


@torch.library.impl("tersor::recompose", "default")  # on all devices
def _recompose(codebook: Tensor, latent: Tensor, scale: Tensor, exponent: Tensor) -> Tensor:
    return multiply(codebook, latent, scale.to(torch.float32) * power_of_two(exponent))


@torch.library.register_fake("tersor::recompose")  # type: ignore[untyped-decorator]
def _fake(codebook: Tensor, latent: Tensor, scale: Tensor, exponent: Tensor) -> Tensor:
    return codebook.new_empty((codebook.shape[0], latent.shape[1]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> Gradients:
    codebook, latent, scale, exponent = ctx.saved_tensors
    power = power_of_two(exponent)
    step = scale.to(torch.float32) * power
    of_codebook = of_latent = of_scale = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
        of_product = multiply(grad, latent.T, 1.0)
        of_codebook = (of_product * step).to(codebook.dtype)
        # This is sum(grad * (C @ Z)), without another product over all tiles.
        of_scale = ((of_product * codebook).sum() * power).to(scale.dtype)
    if ctx.needs_input_grad[1]:
        of_latent = multiply(codebook.T, grad, step).to(latent.dtype)
    return of_codebook, of_latent, of_scale, None


torch.library.register_autograd("tersor::recompose", _gradients, setup_context=_save)
