# SPDX-License-Identifier: Apache-2.0
"""Measure how much the output of a model changes with each of its weights, by a backward pass.

With random signs r on the outputs y, the squared gradient of ``r·y`` has the mean ``|∂y/∂w|²``, for
all weights at once (Hutchinson's estimator). It is averaged over a whole weight, so that a few sets
of signs for each batch are enough.

Errors of logits matter as far as they change the probabilities. Their signs are therefore replaced
by the gradient of the logarithm of the probability of a class that is drawn from the model. Its
mean square is the Fisher information, half of which is the Kullback-Leibler divergence per squared
error.

References
----------
Martens, Grosse, 2015: *Optimizing Neural Networks with Kronecker-factored Approximate Curvature*,
arXiv 1503.05671.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibration.output_error import outputs_in
from tersor.nn.lockstep import Call
from tersor.nn.observe import observing, removing

_DRAWS, _MANY = 4, 10**7
"""Sets of signs for each batch, of which a single one may be off by half for the weights of one
output; and from how many weights in all one is taken, whose weights average over many elements."""

Effect = Callable[[str, Tensor], float]
"""Given a weight's name and a gradient: the expected square of its product with unit noise."""


def squared_changes(
    model: nn.Module, weights: Mapping[str, nn.Parameter], effect: Effect, calls: Sequence[Call]
) -> dict[str, float] | None:
    """Return the squared change of the output per squared noise of each weight, by its name.

    Parameters
    ----------
    model
        The dense model, which runs in evaluation mode and is not changed.
    weights
        The weights to measure, by name.
    effect
        Function of a weight's name and of a gradient: the expected square of its product with noise
        whose squared error is 1. For white noise this is the mean square of the gradient.
    calls
        Functions that call a model with one batch each and return tensors, nested or not.

    Returns
    -------
    dict or None
        Share of the outputs' energy that changes, mean over outputs and calls; for logits in
        proportion to the divergence, in the same unit on average. None if the outputs cannot be
        differentiated.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        draws = _DRAWS if sum(w.numel() for w in weights.values()) < _MANY else 1
        divergence = _squares(model, weights, effect, calls, _score, draws)
        plain = _squares(model, weights, effect, calls[:1] if divergence else calls, _signs, draws)
    finally:
        torch.random.set_rng_state(state)
    return _in_unit_of(plain, divergence, weights) if plain and divergence else plain


def _in_unit_of(
    plain: Mapping[str, float], found: Mapping[str, float], weights: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """Scale to the same mean effect of errors that are the same share of each weight."""
    energy = {name: float(w.detach().float().square().sum()) for name, w in weights.items()}
    total, other = (sum(of[n] * energy[n] for n in energy) for of in (plain, found))
    return {name: value * (total / other if other else 1.0) for name, value in found.items()}


def _squares(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    effect: Effect,
    calls: Sequence[Call],
    directions: Callable[[Any], tuple[list[Tensor], list[Tensor]]],
    draws: int,
) -> dict[str, float] | None:
    found = dict.fromkeys(weights, 0.0)

    def add(name: str, gradient: Tensor) -> None:
        found[name] += effect(name, gradient) / len(calls) / draws

    with observing(model, {}), _differentiable(model, weights, add), torch.enable_grad():
        for call in calls:
            try:
                returned = call(model)
                for left in reversed(range(draws)):
                    outputs, given = directions(returned)
                    if not outputs or not all(output.requires_grad for output in outputs):
                        return None
                    torch.autograd.backward(outputs, given, retain_graph=left > 0)
            except RuntimeError:  # such as operators without a derivative
                return None
    return found if all(map(math.isfinite, found.values())) else None


def _signs(returned: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and random signs, scaled so that each output has a squared norm of its share."""
    outputs = [output for output in outputs_in(returned) if output.numel()]
    signs = []
    for output in outputs:
        norm = float(output.detach().float().norm()) * math.sqrt(len(outputs))
        drawn = torch.randint(0, 2, output.shape, device=output.device) * 2 - 1
        signs.append((drawn / (norm or 1.0)).to(output.dtype))
    return outputs, signs


def _score(returned: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and the gradient of the log-probability of classes drawn from them.

    Logits are the output of this name, as classifiers and language models of transformers have it.
    """
    logits = returned.get("logits") if isinstance(returned, Mapping) else None
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim < 2:
        return [], []
    probabilities = logits.detach().float().softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, -2), 1).reshape(*logits.shape[:-1], 1)
    score = -probabilities
    score.scatter_add_(-1, drawn, torch.ones_like(drawn, dtype=score.dtype))
    return [logits], [(score / math.sqrt(drawn.numel())).to(logits.dtype)]


@contextmanager
def _differentiable(
    model: nn.Module, weights: Mapping[str, nn.Parameter], add: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Give each gradient away as soon as it is there; restore what the model had at the end."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            if parameter.grad is not None:
                add(name, parameter.grad)
                parameter.grad = None

        return take

    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        hooks = [
            weight.register_post_accumulate_grad_hook(hook(name))  # type: ignore[no-untyped-call]
            for name, weight in weights.items()
        ]
        with removing(hooks):
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
