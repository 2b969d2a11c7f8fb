"""How much the error of each latent counts for: the second moments that an optimizer keeps.

The mean squared gradient is the diagonal of the empirical Fisher information, which stands for that
of the Hessian: the loss rises by about half of it times the squared error. Quantization weighted by
the second moments of Adam is from Choi et al., 2017, *Towards the Limit of Network Quantization*,
arXiv 1612.01543, section 3.5; here it decides which latents are worth their bits.
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
"""By the first path of a weight, what the squared error of each of its latents counts for."""

_POWER = 0.5
"""Power of the moments that counts. The quadratic suggests 1, but left the loss higher and bytes
unused: the moments are noisy, and of the loss as it is, not as it is to become."""

_RANGE = (0.3, 3.0)
"""Limits of what an error counts for."""

_STEPS = 50
"""Steps after which what the moments say counts half."""

_MOMENT = "exp_avg_sq"
"""What optimizers of PyTorch call the mean squared gradient: Adam, AdamW, NAdam, RAdam."""


@torch.no_grad()
def curvature(model: nn.Module, optimizer: torch.optim.Optimizer) -> Curvature:
    """What the squared error of each trained latent counts for, 1 in the mean over the model.

    Parameters
    ----------
    model
        Model with factors.
    optimizer
        That trains its latents. Those that have had no gradient yet have no number, and count as 1.

    Raises
    ------
    InputError
        If it keeps no second moments, or does not train the latents.
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
    """Worked out when asked for: those of all latents at once would take as much memory as they."""

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
