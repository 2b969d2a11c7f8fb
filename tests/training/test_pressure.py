# SPDX-License-Identifier: Apache-2.0
"""λ follows the budget."""

import pytest
import torch
from trainable import compressed, dense

import tersor
from tersor.training import pressure
from tersor.training.checkpoint import Progress
from tersor.training.groups import trained_latents
from tersor.training.schedule import Schedule
from tersor.training.sizes import file_size


def follow(share, steps=100):
    """Steps without any loss but the bits; the last size over the budget, and the last λ."""
    model = compressed(dense(), 8)
    size = tersor.project(model, lagrangian=0.05).nbytes
    schedule, now = (
        Schedule(10 * steps, int(share * size), int(share * size)),
        Progress(lagrangian=0.05),
    )
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-3))
    now.overhead_bytes = pressure.overhead_bytes(model)
    for _ in range(steps):
        sum(pressure.rate_terms(model, now, schedule)).backward()
        optimizer.step()
        optimizer.zero_grad()
        pressure.project_step(model, now, schedule, {})
    return file_size(model) / (share * size), now.lagrangian


def test_a_model_that_is_too_large_shrinks_to_its_budget():
    size, lagrangian = follow(0.9)
    assert 0.9 < size < 1.02 and lagrangian < 0.1  # and is not pressed any further


def test_a_model_that_is_too_small_pays_less():
    assert follow(1.5)[1] < 0.01 < 0.05 < follow(0.5, steps=3)[1]


def test_nothing_is_added_while_latents_rest():
    model, now = compressed(dense()), Progress(lagrangian=0.3, step=90)
    assert not list(pressure.rate_terms(model, now, Schedule(100, 1, 1)))
    bits = float(tersor.rate_loss(model).detach())
    terms = pressure.rate_terms(model, Progress(lagrangian=0.3), Schedule(100, 1, 1))
    term = sum(float(term.detach()) for term in terms)
    weights = 16 * 32 * 9 + 512 * 4  # the first layer is too small to be factored
    assert term == pytest.approx(pressure.RATE * bits / weights)


def test_latents_are_drawn_to_their_integers_less_as_the_learning_rate_falls():
    def drawn(step):
        model = compressed(dense())
        weight, *_ = trained_latents(model).values()
        weight.latent.data += 0.2
        before = weight.latent.detach().clone()
        now, schedule = Progress(lagrangian=0.01, step=step), Schedule(1000, 10_000, 10_000)
        pressure.project_step(model, now, schedule, {})
        gone = (weight.latent.detach() - before).abs().sum()
        return float(gone / (weight.stored_latent - before).abs().sum()), schedule.rate(step)

    early, late = drawn(100), drawn(800)
    assert early[0] > 5 * late[0] > 0
    assert early[0] / late[0] == pytest.approx(early[1] / late[1], rel=1e-2)
