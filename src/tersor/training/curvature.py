# SPDX-License-Identifier: Apache-2.0
"""Compute how much the error of each latent counts, from the second moments of an optimizer.

The mean squared gradient is the diagonal of the empirical Fisher information, an approximation of
the diagonal of the Hessian: the loss rises by about half of it times the squared error. Choi et
al., 2017, *Towards the Limit of Network Quantization*, arXiv 1612.01543, section 3.5, weight
quantization by the second moments of Adam. Here the moments decide which latents are worth their
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.nn.sharded import total, whole
from tersor.training.groups import trained_latents

Curvature = Mapping[str, Tensor]
"""Importance of the squared error of each element of a latent, by the first path of its weight."""

_POWER = 0.5
"""Power of the moments that is the importance. The quadratic approximation suggests 1, but 1 left
the loss higher and bytes unused: the moments are noisy, and they describe the present loss, not the
loss that training leads to."""

_RANGE = (0.3, 3.0)
"""Smallest and largest importance of an error."""

_STEPS = 50
"""Number of steps after which the moments have half of their full influence."""

_MOMENT = "exp_avg_sq"
"""Name of the mean squared gradient in the state of PyTorch's Adam, AdamW, NAdam and RAdam."""


@torch.no_grad()
def curvature(model: nn.Module, optimizer: torch.optim.Optimizer) -> Curvature:
    """Return the importance of the squared error of each trained latent, relative to its mean.

    The mean is that of the second moments over the whole model. The importance of an error is from
    0.3 to 3.

    Parameters
    ----------
    model
        Model with factors.
    optimizer
        Optimizer that trains the latents.

    Returns
    -------
    Mapping of str to Tensor
        For each weight, by its first path, a tensor of the shape of its latent (k, n). Latents that
        had no gradient yet are missing; their errors count as 1.

    Raises
    ------
    InputError
        If the optimizer keeps no second moments, or does not train the latents.
    """
    weights = trained_latents(model)
    states = {name: optimizer.state.get(weight.own_latent, {}) for name, weight in weights.items()}
    moments = {name: state[_MOMENT] for name, state in states.items() if _MOMENT in state}
    if not moments:
        if any(states.values()):
            raise InputError(
                f"the optimizer ({type(optimizer).__name__}) keeps no second moments "
                f"({_MOMENT!r}); use Adam or AdamW, or leave the optimizer out"
            )
        _check_trains(optimizer, [weight.own_latent for weight in weights.values()])
        return {}
    mean = total(list(moments.values())) / sum(moment.numel() for moment in moments.values())
    if not mean > 0:
        return {}
    return _Counts(
        {
            name: partial(_count, moment, weights[name].grid, mean, float(states[name]["step"]))
            for name, moment in moments.items()
        }
    )


class _Counts(Curvature):
    """Mapping that computes a value when it is read.

    The importance of all latents at once would take as much memory as the latents.
    """

    def __init__(self, counts: Mapping[str, Callable[[], Tensor]]) -> None:
        self._counts = counts

    def __getitem__(self, name: str) -> Tensor:
        return self._counts[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


@torch.no_grad()
def _count(moment: Tensor, grid: tuple[int, ...], mean: float, steps: float) -> Tensor:
    relative = whole(moment).view(grid) / mean
    share = steps / (steps + _STEPS)
    return torch.lerp(torch.ones_like(relative), relative.pow(_POWER), share).clamp_(*_RANGE)


def _check_trains(optimizer: torch.optim.Optimizer, latents: list[nn.Parameter]) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(id(latent) not in trained for latent in latents):
        raise InputError(
            "the optimizer does not train all latents of the model; make it of "
            "tersor.parameter_groups(model)"
        )
