"""Projection of trained latents onto the trellis, by price or into a budget of bytes."""

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
from tersor.factorization.rate_aware import PRICE, Coder
from tersor.factorization.solve import Quadratic
from tersor.io import archive_of
from tersor.nn import FactoredWeight, state
from tersor.parallel import ordered
from tersor.storage import container
from tersor.tiling import Rows, coding_order, natural_order
from tersor.training.costs import Cost, cost_of
from tersor.training.curvature import Curvature, curvature
from tersor.training.groups import factored_weights, trained_latents
from tersor.training.rounding import DIGITS, round_kept
from tersor.units import parse_size

_SWEEPS = 2
"""Searches for one price where bytes count: the second is at the prices of the first's latent."""

_HIGH = 1e3
"""Factor of a price at which next to nothing is left."""


_COARSER = 0.95, 40
"""What codebooks are multiplied by where they are too large, and how often at most."""


@dataclass(frozen=True)
class Projection:
    """Where a projection has led.

    Parameters
    ----------
    price
        Squared error, in units of each weight's step squared, that a bit was worth.
    nbytes
        Bytes of the file that `tersor.save` now writes.
    """

    price: float
    nbytes: int


def project(
    model: nn.Module,
    *,
    target_size: str | int | None = None,
    price: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Projection:
    """Put the trained latents of a model back on the trellis, at a price or within a budget.

    What the model computes with, and what its file holds, becomes the integers of least error +
    price · bits, found by a Viterbi search. The latents themselves stay the real numbers that an
    optimizer trains, and gradients reach them straight through, so that this can be called after
    each of its steps, at a price. Rows of latents that are not worth their bits become zeros.

    With a budget the price is found, as the lowest that fits, and everything else becomes what the
    file holds of it: biases and normalisation parameters are rounded to 16 bits. The model loaded
    from the file then computes exactly what this one does.

    Parameters
    ----------
    model
        Model with factors, in place. Latents that are frozen stay as they are.
    target_size
        Bytes of the file at most: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    price
        Price of a bit; with a budget, where the search begins. By default that of
        `tersor.compress`, 0.3.
    optimizer
        Adam or its like that trains the latents: the error of each then counts as much as its mean
        squared gradient says, from a third to three times the usual. By default all count the same.

    Returns
    -------
    Projection
        The price, for the next call, and the size of the file.

    Raises
    ------
    BudgetError
        If the budget cannot be reached; names the smallest size. The model is unchanged.
    InputError
        If the model holds no quantized factors, they are NaN or infinite, or the optimizer keeps no
        second moments.

    Examples
    --------
    >>> price = tersor.project(model, target_size="54kB").price
    >>> tersor.project(model, price=price, optimizer=optimizer)  # after each of its steps
    """
    if price is not None and not 0 < price < math.inf:
        raise InputError(f"the price must be a positive number, got {price!r}")
    if not factored_weights(model):
        raise InputError("the model holds no quantized factors; call tersor.compress first")
    start = PRICE if price is None else price
    counts = {} if optimizer is None else curvature(model, optimizer)
    with torch.no_grad():
        if target_size is not None:
            return _within(model, parse_size(target_size), start, counts, DIGITS)
        search_latents(model, start, counts)
        return Projection(start, file_size(model))


@torch.no_grad()
def fit(
    model: nn.Module, target: int, price: float, counts: Curvature, digits: int = DIGITS
) -> Projection:
    """Fit the integers that the model computes with into a budget; if they do, they stay the same.

    Biases and normalisation parameters that are trained get so many binary digits.

    It is these that are projected, not the real latents that they came from: another path through
    the trellis would make another model of those. What errors count for tells apart integers that
    would else all go at one price.
    """
    if _rounded_size(model, digits) > target:
        for weight in trained_latents(model).values():
            weight.settle()
        _coarsen(model, target, digits)
        return replace(_within(model, target, 0.1 * price, counts, digits), price=price)
    round_kept(model, digits)
    return Projection(price, file_size(model))


@torch.no_grad()
def latent_bits(model: nn.Module) -> float:
    """Bits of the latents that are trained, as the model computes with them."""
    return sum(cost_of(weight).bits for weight in trained_latents(model).values())


@torch.no_grad()
def search_latents(model: nn.Module, price: float, counts: Curvature) -> float:
    """Project all trained latents at a price; gives the bits that they had before."""
    weights, bits = trained_latents(model), latent_bits(model)
    searches = (
        _search(w, w.stored_latent, price, counts.get(n), cost_of(w)) for n, w in weights.items()
    )
    compute_with(weights.values(), list(ordered(_found, searches, _nbytes)))
    return bits


def file_size(model: nn.Module) -> int:
    """Bytes of the file that `tersor.save` would write."""
    return container.size(archive_of(model))


class _Search(NamedTuple):
    """A search for the integers of a weight, all in coding order.

    Parameters
    ----------
    coder, rows
        What they are coded with, and how the latent is ordered.
    basis
        The codebook in units of the step, (d, k).
    wanted, latent
        What they should be near, and what they were, (k, n).
    importance
        What errors count for, (k, n); None: all the same.
    analysis
        Of the latent, if that is known.
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
    price: float,
    counts: Tensor | None,
    cost: Cost | None = None,
) -> _Search:
    """The search near the latent of a weight. Under FSDP all processes are to call this in turn."""
    rows = weight.tiling.slices
    wanted = coding_order(weight.latent.detach().float(), rows).cpu()
    if not bool(wanted.isfinite().all()):
        raise InputError(f"a latent of the weight of shape {weight.shape} is NaN or infinite")
    scale = float(weight.scale.detach().double()) * 2.0 ** int(weight.exponent) / weight.unit
    return _Search(
        Coder(rows, weight.states, price),
        rows,
        weight.codebook.detach().round().float().cpu() * scale,
        wanted,
        coding_order(start, rows).float().cpu(),
        None if counts is None else coding_order(counts, rows).float().cpu(),
        cost.analysis if cost is not None and cost.states == weight.states else None,
    )


def _found(search: _Search) -> Tensor:
    """The integers that a search leads to."""
    coder, latent = search.coder, search.latent
    quadratic = Quadratic(search.basis, search.basis @ search.wanted)
    analysis = search.analysis or coder.analyse(latent)
    coded = coder.search(quadratic, latent, analysis, search.importance)
    return natural_order(coded, search.rows).to(torch.int16)


def _nbytes(search: _Search) -> int:
    """Memory that a search takes."""
    return 4 * search.latent.nbytes


def _within(
    model: nn.Module, target: int, start: float, counts: Curvature, digits: int
) -> Projection:
    check_reachable(model, target, digits)
    named = trained_latents(model)
    weights = named.values()
    origins = [weight.stored_latent for weight in weights]
    restore = _memory(model)
    round_kept(model, digits)
    kept = [container.stamp(section) for section in container.kept_sections(archive_of(model))]

    def attempt(price: float) -> tuple[int, list[Tensor]]:
        latents = [
            _settled(weight, origin, price, counts.get(name))
            for (name, weight), origin in zip(named.items(), origins, strict=True)
        ]
        compute_with(weights, latents)
        return container.size(archive_of(model), kept), latents

    try:
        price, latents = _lowest_price(attempt, target, start)
    except BudgetError:
        restore()
        raise
    compute_with(weights, latents)
    return Projection(price, file_size(model))


def _lowest_price(
    attempt: Callable[[float], tuple[int, list[Tensor]]], target: int, start: float
) -> tuple[float, list[Tensor]]:
    """The lowest price found that fits, with its latents."""
    try:
        return finest_fit(attempt, target, start)
    except BudgetError:  # sizes may jump, all of a weight becoming zero at once
        return finest_fit(attempt, target, _HIGH * start)


def check_reachable(model: nn.Module, target: int, digits: int) -> None:
    """Refuse a budget that latents of nothing but zeros would exceed."""
    least = least_size(model, digits)
    if target < least:
        raise BudgetError(
            f"{target} bytes are too few: with the latents that are trained all zero the file "
            f"has {least} bytes; ask for more"
        )


def least_size(model: nn.Module, digits: int) -> int:
    """Bytes of the file with nothing but zeros for the latents that are trained."""
    weights = trained_latents(model).values()
    restore = _memory(model)
    compute_with(weights, [torch.zeros_like(weight.latent) for weight in weights])
    least = _rounded_size(model, digits)
    restore()
    return least


def _rounded_size(model: nn.Module, digits: int) -> int:
    """Bytes of the file with everything as it is, and rounded."""
    restore = _memory(model)
    round_kept(model, digits)
    nbytes = file_size(model)
    restore()
    return nbytes


def _memory(model: nn.Module) -> Callable[[], None]:
    """What puts back all that a model computes with as it is now."""
    weights = trained_latents(model).values()
    coded = [weight.coded for weight in weights]
    kept = [value for value in state(model).values() if isinstance(value, Tensor)]
    copies = [value.detach().clone() for value in kept]

    def restore() -> None:
        compute_with(weights, coded)
        with torch.no_grad():
            for value, copy in zip(kept, copies, strict=True):
                value.copy_(copy)

    return restore


def _coarsen(model: nn.Module, target: int, digits: int) -> None:
    """Give codebooks larger steps, if latents alone cannot make a budget.

    Signs always take as many bits, while the codebooks that they add up grow as they are trained.
    """
    trained = [w for w in factored_weights(model).values() if w.codebook.requires_grad]
    for _ in range(_COARSER[1]):
        if least_size(model, digits) <= target:
            break
        for weight in trained:
            weight.codebook.mul_(_COARSER[0])
            weight.scale.div_(_COARSER[0])


def compute_with(weights: Iterable[FactoredWeight], latents: Iterable[Tensor | None]) -> None:
    """Let weights compute with these latents in the place of their own."""
    for weight, latent in zip(weights, latents, strict=True):
        weight.project_to(latent)


def _settled(weight: FactoredWeight, latent: Tensor, price: float, counts: Tensor | None) -> Tensor:
    for _ in range(_SWEEPS):
        latent = _found(_search(weight, latent, price, counts))
    return latent
