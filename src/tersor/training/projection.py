# SPDX-License-Identifier: Apache-2.0
"""Project trained latents onto the trellis, at a given λ or within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tersor import _native
from tersor.compression.search import finest_fit
from tersor.errors import BudgetError, InputError
from tersor.factorization.rate_aware import LAGRANGIAN, Coder
from tersor.factorization.solve import Quadratic
from tersor.nn import FactoredWeight
from tersor.parallel import ordered
from tersor.storage import container
from tersor.tiling import Rows, coding_order, natural_order
from tersor.training.costs import Cost, cost_of
from tersor.training.curvature import Curvature, curvature
from tersor.training.groups import factored_weights, trained_latents
from tersor.training.rounding import DIGITS
from tersor.training.sizes import (
    Latents,
    contents,
    file_size,
    least_size,
    round_unfactored,
    rounded_size,
    with_latents,
)
from tersor.units import parse_size

_SWEEPS = 2
"""Number of searches at one λ if a budget is to be met. The second search uses the bits that
integers cost given the latent of the first."""

_HIGH = 1e3
"""Factor of λ at which nearly all latents become zero."""


_COARSER = 0.95, 40
"""Factor of codebooks that take too many bytes, and how often they are multiplied by it at most."""


@dataclass(frozen=True)
class Projection:
    """Result of a projection.

    Parameters
    ----------
    lagrangian
        Lagrangian, λ, that was used: squared error in units of each weight's squared step size.
    nbytes
        Bytes of the file that `tersor.save` would write now.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 32)
    >>> report = tersor.compress(model, ratio=4)
    >>> projection = tersor.project(model, lagrangian=0.3)
    >>> projection.lagrangian, projection.nbytes == tersor.save(model, "model.tersor").nbytes
    (0.3, True)
    """

    lagrangian: float
    nbytes: int


def project(
    model: nn.Module,
    *,
    target_size: str | int | None = None,
    lagrangian: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Projection:
    """Project the trained latents of a model onto the trellis, at a given λ or within a budget.

    The model then computes with the integers of the least error + λ · bits, which a Viterbi
    search finds, and its file holds the same integers. The latents themselves stay the real numbers
    that an optimizer trains, and gradients reach them straight through. With a given λ, this
    function can therefore be called after each step of the optimizer. Rows of latents that are not
    worth their bits become zeros.

    With a budget, the function finds the lowest λ that fits. All other tensors then become as
    they are in the file: biases and normalisation parameters are rounded to 16 bits. The model that
    is loaded from the file computes exactly what this one does.

    Parameters
    ----------
    model
        Model with factors, changed in place. Frozen latents stay as they are.
    target_size
        Largest size of the file in bytes: a number, or a text such as ``"54kB"`` (1 kB is 1000
        bytes).
    lagrangian
        Price of a bit, λ, in units of each weight's squared step size. With a budget, λ at
        which the search begins. By default that of `tersor.compress`, 0.3.
    optimizer
        Adam or a similar optimizer that trains the latents. The error of each latent then counts
        according to its mean squared gradient, from 0.3 to 3 times as much as usual. By default all
        errors count the same.

    Returns
    -------
    Projection
        Lagrangian, λ, for the next call, and the size of the file.

    Raises
    ------
    BudgetError
        If the budget cannot be reached; the message names the smallest size. The model is
        unchanged.
    InputError
        If the model holds no quantized factors, they are NaN or infinite, λ is not a
        positive number, or the optimizer keeps no second moments.

    Notes
    -----
    Bits are counted by what integers cost at the last projection, so that they cost less the more
    of them there are. At one λ far above 0.3, that of a compressed file, weights can lose their
    information step by step in training. Where the file is to become smaller, give ``target_size``
    now and then, which finds λ anew, or use `tersor.finetune`.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 32)
    >>> report = tersor.compress(model, ratio=4)
    >>> optimizer = torch.optim.Adam(tersor.parameter_groups(model, lr=1e-3))
    >>> lagrangian = tersor.project(model, target_size=900).lagrangian
    >>> for _ in range(3):
    ...     model(torch.randn(16, 32)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     projection = tersor.project(model, lagrangian=lagrangian, optimizer=optimizer)
    >>> tersor.project(model, target_size=900, lagrangian=lagrangian).nbytes <= 900
    True
    """
    if lagrangian is not None and not 0 < lagrangian < math.inf:
        raise InputError(f"lagrangian (λ) must be a positive number, got {lagrangian!r}")
    if not factored_weights(model):
        raise InputError("the model holds no quantized factors; call tersor.compress first")
    start = LAGRANGIAN if lagrangian is None else lagrangian
    counts = {} if optimizer is None else curvature(model, optimizer)
    with torch.no_grad():
        if target_size is not None:
            return _within(model, parse_size(target_size), start, counts, DIGITS)
        search_latents(model, start, counts)
        return Projection(start, file_size(model))


@torch.no_grad()
def fit(
    model: nn.Module, target: int, lagrangian: float, counts: Curvature, digits: int = DIGITS
) -> Projection:
    """Fit the integers that the model computes with into a budget; keep them if they fit already.

    The function projects these integers, not the real latents from which they come: for those,
    another path through the trellis would lead to another model. The importance of the errors
    distinguishes integers that would otherwise all become zero at the same λ.

    Parameters
    ----------
    model
        Model with factors, changed in place.
    target
        Largest size of the file in bytes.
    lagrangian
        Lagrangian, λ; the search begins at a tenth of it.
    counts
        Importance of the errors, see `tersor.training.curvature.curvature`.
    digits
        Binary digits of trained biases and normalisation parameters, 8 by default.

    Returns
    -------
    Projection
        The given λ, and the size of the file.

    Raises
    ------
    BudgetError
        If the budget cannot be reached.
    """
    if rounded_size(model, digits) > target:
        for weight in trained_latents(model).values():
            weight.freeze_latent()
        _coarsen(model, target, digits)
        return replace(
            _within(model, target, 0.1 * lagrangian, counts, digits), lagrangian=lagrangian
        )
    round_unfactored(model, digits)
    return Projection(lagrangian, file_size(model))


@torch.no_grad()
def latent_bits(model: nn.Module) -> float:
    """Return the bits of the projected latents with which a model computes."""
    return sum(cost_of(weight).bits for weight in trained_latents(model).values())


@torch.no_grad()
def search_latents(model: nn.Module, lagrangian: float, counts: Curvature) -> float:
    """Project all trained latents at a given λ, and return the bits that they took before."""
    weights, bits = trained_latents(model), latent_bits(model)
    searches = (
        _search(w, w.stored_latent, lagrangian, counts.get(n), cost_of(w))
        for n, w in weights.items()
    )
    compute_with(weights.values(), list(ordered(_found, searches, _nbytes)))
    return bits


class _Search(NamedTuple):
    """Search for the integers of a weight, with all tensors in coding order.

    Parameters
    ----------
    coder, rows
        Coder of the integers, and order of the latent.
    basis
        Codebook in units of the step size, (d, k).
    wanted, latent
        Latent to approximate, and latent at which the search begins, (k, n).
    importance
        Importance of the errors, (k, n); None if all count the same.
    analysis
        Bits and costs of ``latent``, if they are known.
    """

    coder: Coder
    rows: Rows
    basis: Tensor
    wanted: Tensor
    latent: Tensor
    importance: Tensor | None
    analysis: _native.Analysis | None


def _search(
    weight: FactoredWeight,
    start: Tensor,
    lagrangian: float,
    counts: Tensor | None,
    cost: Cost | None = None,
) -> _Search:
    """Return the search for a weight's integers.

    With FSDP, all processes must call this function, and in the same order.
    """
    rows = weight.tiling.slices
    wanted = coding_order(weight.latent.detach().float(), rows).cpu()
    if not bool(wanted.isfinite().all()):
        raise InputError(f"a latent of the weight of shape {weight.shape} is NaN or infinite")
    scale = float(weight.scale.detach().double()) * 2.0 ** int(weight.exponent) / weight.unit
    return _Search(
        Coder(rows, weight.states, lagrangian),
        rows,
        weight.codebook.detach().round().float().cpu() * scale,
        wanted,
        coding_order(start, rows).float().cpu(),
        None if counts is None else coding_order(counts, rows).float().cpu(),
        cost.analysis if cost is not None and cost.states == weight.states else None,
    )


def _found(search: _Search) -> Tensor:
    """Return the integers that a search finds, int16."""
    coder, latent = search.coder, search.latent
    quadratic = Quadratic(search.basis, search.basis @ search.wanted)
    analysis = search.analysis or coder.analyse(latent)
    coded = coder.search(quadratic, latent, analysis, search.importance)
    return natural_order(coded, search.rows).to(torch.int16)


def _nbytes(search: _Search) -> int:
    """Return the bytes of memory that a search takes."""
    return 4 * search.latent.nbytes


def _within(
    model: nn.Module, target: int, start: float, counts: Curvature, digits: int
) -> Projection:
    check_reachable(model, target, digits)
    named = trained_latents(model)
    origins = {weight: weight.stored_latent for weight in named.values()}
    archive = contents(model, digits=digits)
    unfactored = [container.stamp(section) for section in container.unfactored_sections(archive)]

    def attempt(lagrangian: float) -> tuple[int, Latents]:
        latents = {
            weight: _swept(weight, origins[weight], lagrangian, counts.get(name))
            for name, weight in named.items()
        }
        return container.size(with_latents(model, archive, latents), unfactored), latents

    lagrangian, latents = _lowest_lagrangian(attempt, target, start)
    round_unfactored(model, digits)
    compute_with(latents, latents.values())
    return Projection(lagrangian, file_size(model))


def _lowest_lagrangian(
    attempt: Callable[[float], tuple[int, Latents]], target: int, start: float
) -> tuple[float, Latents]:
    """Return the lowest λ found that fits the budget, and its latents."""
    try:
        return finest_fit(attempt, target, start)
    except BudgetError:  # sizes may jump, if a whole weight becomes zero at once
        return finest_fit(attempt, target, _HIGH * start)


def check_reachable(model: nn.Module, target: int, digits: int) -> None:
    """Raise an error if the budget is below the file's size with all trained latents zero.

    Raises
    ------
    BudgetError
        If it is; the message names this size.
    """
    least = least_size(model, digits)
    if target < least:
        raise BudgetError(
            f"{target} bytes are too few: with the latents that are trained all zero the file "
            f"has {least} bytes; ask for more"
        )


def _coarsen(model: nn.Module, target: int, digits: int) -> None:
    """Give codebooks larger step sizes if a budget cannot be reached by the latents alone.

    Binary latents always take the same number of bits, while their codebooks grow in training.
    """
    trained = [w for w in factored_weights(model).values() if w.codebook.requires_grad]
    for _ in range(_COARSER[1]):
        if least_size(model, digits) <= target:
            break
        for weight in trained:
            weight.codebook.mul_(_COARSER[0])
            weight.scale.div_(_COARSER[0])


def compute_with(weights: Iterable[FactoredWeight], latents: Iterable[Tensor | None]) -> None:
    """Let weights compute with these latents; with their own where one is None."""
    for weight, latent in zip(weights, latents, strict=True):
        weight.project_to(latent)


def _swept(
    weight: FactoredWeight, latent: Tensor, lagrangian: float, counts: Tensor | None
) -> Tensor:
    for _ in range(_SWEEPS):
        latent = _found(_search(weight, latent, lagrangian, counts))
    return latent
