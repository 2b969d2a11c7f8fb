"""What keeps a model small while it trains: one price of a bit, which follows the budget.

It acts twice. In the projection it decides which integers are worth their bits. In the loss it
draws latents towards cheaper values: a projection alone lets them drift, in the real numbers that
are trained, far from the integers that the model computes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tersor.factorization.rate_aware import PRICE
from tersor.training.checkpoint import Progress
from tersor.training.curvature import Curvature
from tersor.training.groups import factored_weights, trained_latents
from tersor.training.projection import file_size, fit, latent_bits, search_latents
from tersor.training.rate_loss import bits_of
from tersor.training.schedule import Schedule

RATE = 3.0
"""Loss that a bit per weight is worth at the usual price."""

_LEAK = 0.003
"""Share of the way to the integers that the latents go with each step at the full learning rate, so
that they stay near. They forget as fast as they learn: where steps become small, a latent still
leaves its integer if gradients agree for long enough."""

FIRST = 0.01 * PRICE
"""Price that training begins with: hardly any integer is given up for its bits until it has to."""

_GAIN, _MOST = 1.0, 0.05
"""What the logarithm of the price changes by in a step: for each unit of that of the excess, and at
most. Bits follow a price at once, by a power of about -0.2: a gain of more than 5 would swing."""

_RANGE = (1e-3 * PRICE, 100 * PRICE)
"""Limits of the price: far from its budget it would run away."""

_FILL = 0.995
"""Share of the budget that the price aims at."""


def begin(model: nn.Module, schedule: Schedule) -> Progress:
    """Let the model fit its first budget; if it does, its integers stay as they are.

    Those of a compressed model are better than what a search at any price makes of them: their
    errors make up for each other.
    """
    fit(model, schedule.start_size, PRICE, {}, schedule.digits)
    for weight in trained_latents(model).values():
        weight.project_to(weight.stored_latent)
    return Progress(price=FIRST, rest=rest_of(model))


def rest_of(model: nn.Module) -> float:
    """Bytes of the file besides the integers of the latents; true where all else is rounded."""
    return file_size(model) - latent_bits(model) / 8


def rate_terms(model: nn.Module, now: Progress, schedule: Schedule) -> Iterator[Tensor]:
    """What is added to the loss for the bits, weight by weight, while the latents move."""
    if schedule.latents_move(now.step):
        weights = factored_weights(model).values()
        worth = RATE * (now.price / PRICE) / sum(math.prod(w.shape) for w in weights)
        terms = (worth * bits_of(weight) for weight in weights)
        yield from (term for term in terms if term.requires_grad)


@torch.no_grad()
def project_step(model: nn.Module, now: Progress, schedule: Schedule, counts: Curvature) -> None:
    """Project the latents after a step in which they moved."""
    bits = search_latents(model, now.price, counts)
    wanted = 8 * (_FILL * schedule.size(now.step) - now.rest)
    change = _GAIN * math.log(max(bits, 1.0) / max(wanted, 1.0))
    low, high = _RANGE
    now.price = min(max(now.price * math.exp(min(max(change, -_MOST), _MOST)), low), high)
    for weight in trained_latents(model).values():
        weight.approach(_LEAK * schedule.rate(now.step))


def rest(model: nn.Module, now: Progress, schedule: Schedule, counts: Curvature) -> None:
    """Let latents that move no more fit the last budget, and all else be what the file holds."""
    fit(model, schedule.target_size, now.price, counts, schedule.digits)
