# SPDX-License-Identifier: Apache-2.0
"""The error of a latent counts as much as its mean squared gradient says."""

import pytest
import torch
from trainable import compressed, data, dense

import tersor
from tersor.errors import InputError
from tersor.training.curvature import curvature
from tersor.training.groups import trained_latents

IMAGES, LABELS = data()


def after(steps, kind=torch.optim.AdamW):
    """A model and its optimizer after so many steps."""
    model = compressed(dense())
    optimizer = kind(tersor.parameter_groups(model, lr=1e-3))
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_what_counts_are_second_moments_within_limits():
    model, optimizer = after(100)
    counts = curvature(model, optimizer)
    moments = {
        n: optimizer.state[w.latent]["exp_avg_sq"] for n, w in trained_latents(model).items()
    }
    mean = float(torch.cat([m.flatten() for m in moments.values()]).mean())
    for name, moment in moments.items():
        wanted = (1 / 3 + 2 / 3 * (moment / mean).sqrt()).clamp(0.3, 3)
        torch.testing.assert_close(counts[name], wanted)


def test_all_errors_count_the_same_before_the_first_step():
    assert curvature(*after(0)) == {}


def test_latents_that_count_more_are_kept_rather():
    model, optimizer = after(20)
    latents = trained_latents(model)
    for weight in latents.values():  # every second latent in turn is worth next to nothing
        moment = optimizer.state[weight.latent]["exp_avg_sq"]
        moment.view(-1)[::2], moment.view(-1)[1::2] = 1e-9, 1.0
        optimizer.state[weight.latent]["step"].fill_(1e6)
    tersor.project(model, lagrangian=3.0, optimizer=optimizer)
    kept = [torch.stack([w.stored_latent.view(-1)[i::2].bool().float().mean() for i in (0, 1)])
            for w in latents.values()]  # fmt: skip
    assert all(few < many for few, many in kept) and kept[0][0] < 0.8 * kept[0][1]


def test_optimizers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="no second moments"):
        model, optimizer = after(1, lambda groups: torch.optim.SGD(groups, momentum=0.9))
        tersor.project(model, optimizer=optimizer)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(InputError, match="does not train"):
        tersor.project(compressed(dense()), optimizer=other)


def test_a_latent_without_gradients_counts_as_usual():
    model = compressed(dense())
    first, *others = trained_latents(model)
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-3))
    for name in others:
        trained_latents(model)[name].latent.grad = torch.ones(
            trained_latents(model)[name].latent.shape
        )
    optimizer.step()
    assert set(curvature(model, optimizer)) == set(others) and first not in others
    tersor.project(model, optimizer=optimizer)


def test_gradients_of_zero_let_all_errors_count_the_same():
    model = compressed(dense())
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-3))
    for weight in trained_latents(model).values():
        weight.latent.grad = torch.zeros_like(weight.latent)
    optimizer.step()
    assert curvature(model, optimizer) == {}
