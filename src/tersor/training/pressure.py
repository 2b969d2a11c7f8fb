# SPDX-License-Identifier: Apache-2.0
"""Keep a model within its budget while it trains, by λ, the price of a bit.

λ follows the budget and has two effects. In the projection it decides which integers are
worth their bits. In the loss it pulls latents towards values that take fewer bits. The projection
alone does not suffice: the real latents, which are trained, would drift far from the integers that
the model computes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tersor.factorization.rate_aware import LAGRANGIAN
from tersor.training.checkpoint import Progress
from tersor.training.curvature import Curvature
from tersor.training.groups import factored_weights, trained_latents
from tersor.training.projection import fit, latent_bits, search_latents
from tersor.training.rate_loss import bits_of
from tersor.training.schedule import Schedule
from tersor.training.sizes import file_size

RATE = 3.0
"""Loss that one bit per weight costs at the usual λ."""

_LEAK = 0.003
"""Share of the distance to their integers that latents move in each step at the full learning rate,
so that they stay near them. The share is proportional to the learning rate, as training steps are:
when both become small, a latent still leaves its integer if its gradients agree for long enough."""

FIRST = 0.01 * LAGRANGIAN
"""λ at the beginning of the training. It is so low that hardly any integer changes for the sake
of its bits until the budget requires it."""

_GAIN, _MOST = 1.0, 0.05
"""Change of the logarithm of λ in a step: per unit of the logarithm of the excess over the
budget, and at most. Bits follow λ at once, by a power of about -0.2; with a gain above 5 it would
oscillate."""

_RANGE = (1e-3 * LAGRANGIAN, 100 * LAGRANGIAN)
"""Limits of λ. Without them it would grow or fall forever far from the budget."""

_FILL = 0.995
"""Share of the budget that λ aims at."""


def begin(model: nn.Module, schedule: Schedule) -> Progress:
    """Fit the model into its first budget, and return the progress of a run that begins.

    If the model is within that budget already, its integers do not change. The integers of a
    compressed model are better than those that a search finds at any λ, because their errors
    compensate for each other.
    """
    fit(model, schedule.start_size, LAGRANGIAN, {}, schedule.digits)
    for weight in trained_latents(model).values():
        weight.project_to(weight.stored_latent)
    return Progress(lagrangian=FIRST, overhead_bytes=overhead_bytes(model))


def overhead_bytes(model: nn.Module) -> float:
    """Return the bytes of the file besides the integers of the latents.

    The number is exact if all other tensors are rounded as in the file.
    """
    return file_size(model) - latent_bits(model) / 8


def rate_terms(model: nn.Module, now: Progress, schedule: Schedule) -> Iterator[Tensor]:
    """Yield the terms of the loss for the bits, one per weight, while the latents move."""
    if schedule.latents_move(now.step):
        weights = factored_weights(model).values()
        worth = RATE * (now.lagrangian / LAGRANGIAN) / sum(math.prod(w.shape) for w in weights)
        terms = (worth * bits_of(weight) for weight in weights)
        yield from (term for term in terms if term.requires_grad)


@torch.no_grad()
def project_step(model: nn.Module, now: Progress, schedule: Schedule, counts: Curvature) -> None:
    """Project the latents after a step that moved them, and adjust λ to the budget."""
    bits = search_latents(model, now.lagrangian, counts)
    wanted = 8 * (_FILL * schedule.size(now.step) - now.overhead_bytes)
    change = _GAIN * math.log(max(bits, 1.0) / max(wanted, 1.0))
    low, high = _RANGE
    now.lagrangian = min(max(now.lagrangian * math.exp(min(max(change, -_MOST), _MOST)), low), high)
    for weight in trained_latents(model).values():
        weight.approach(_LEAK * schedule.rate(now.step))


def freeze_latents(model: nn.Module, now: Progress, schedule: Schedule, counts: Curvature) -> None:
    """Fit latents that no longer move into the last budget, and round all other tensors."""
    fit(model, schedule.target_size, now.lagrangian, counts, schedule.digits)
