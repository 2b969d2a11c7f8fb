"""Factor a compressed model's layers again, each for what the layers before it have become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor.calibration import ridge
from tersor.errors import BudgetError, InputError
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors
from tersor.models import dense
from tersor.moments import Layer, cross_moments
from tersor.nn import FactoredWeight, HeldWeight, insert_factors, state
from tersor.nn.observe import observing
from tersor.nn.sites import Site, Weight, find_sites
from tersor.normalization import match_normalization
from tersor.plan.progress import shown
from tersor.plan.search import finest_fit
from tersor.storage import records
from tersor.tiling import as_float32

_TRIALS = 5
"""Steps that are tried for a layer, to have it take the bytes that it took before."""


@torch.no_grad()
def reconstruct(model: nn.Module, reference: nn.Module, *inputs: Any) -> None:
    """Make a compressed model compute again what the dense one does, layer by layer.

    In the order in which the model runs them, the weight of each linear layer and convolution is
    factored anew: not to be like the dense weight, but so that, given what reaches it in the
    *compressed* model, it puts out what the dense layer puts out in the dense model. So each layer
    makes up for errors of those before it. None takes more bytes than before but for what others
    left over. There is no back-propagation. Normalisation is matched along the way, as by
    `match_normalization`, which is not needed before or after.

    Parameters
    ----------
    model
        Compressed model, changed in place.
    reference
        The dense model, of the same architecture; unchanged.
    *inputs
        What both are called with: a batch of about a thousand samples.

    Raises
    ------
    InputError
        If the model holds no factors, or the two are different models.

    Notes
    -----
    With the inputs x of a layer in the dense model and x' in the compressed one, its weight W is
    replaced by the factors of ``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, the linear map that is nearest to W x on
    average, under the metric ``E[x' x'ᵀ]``; both moments have a ridge. Inputs of the compressed
    model are used in Nagel et al., 2020, *Up or Down? Adaptive Rounding for Post-Training
    Quantization*, arXiv 2004.10568, section 3.3, with another solver.
    """
    weights = state(reference)
    _check(model, weights)
    order = _in_order_of_use(model, inputs)
    spare = 0
    with shown("reconstructing") as progress:
        for number, (name, site) in enumerate(order.items()):
            progress(name, number / len(order))
            layer, twin = cast(Layer, site.module), reference.get_submodule(_parent(name))
            moments, crossed = _moments(model, reference, layer, cast(Layer, twin), inputs)
            old = cast(FactoredWeight, site.weight)
            wanted = _wanted(as_float32(dense(weights[name])), moments, crossed)
            allowed = records.encode(old.to_factors()).nbytes + spare
            factors = _factorize(wanted, moments.mean(dim=0), old, allowed)
            if factors is None:  # it stays, and so does what is spare
                continue
            spare = allowed - records.encode(factors).nbytes
            insert_factors(model, {name: factors})
            _match(model, reference, inputs)


def _check(model: nn.Module, weights: Mapping[str, HeldWeight | Tensor]) -> None:
    held = state(model)
    if not any(isinstance(value, FactoredWeight) for value in held.values()):
        raise InputError("the model holds no factors; compress it first")
    other = [n for n, v in held.items() if n not in weights or v.shape != weights[n].shape]
    if other or len(held) != len(weights):
        where = f", in {other[0]!r} for one" if other else ""
        raise InputError(f"the two models differ{where}; give the dense model that was compressed")


def _in_order_of_use(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Site]:
    """Factored weights of linear layers and convolutions that are used once, as the model runs."""
    sites = find_sites(model)
    uses: dict[Weight, int] = {}
    for site in sites.values():
        uses[site.weight] = uses.get(site.weight, 0) + 1
    wanted: dict[nn.Module, tuple[str, Site]] = {
        site.module: (name, site)
        for name, site in sites.items()
        if isinstance(site.weight, FactoredWeight)
        and isinstance(site.module, Layer)
        and site.attribute == "weight"
        and uses[site.weight] == 1
    }
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module) -> Any:
        return lambda x: called.update({module: called.get(module, 0) + 1})

    with observing(model, {module: note(module) for module in wanted}):
        model(*inputs)
    return dict(wanted[module] for module, times in called.items() if times == 1)


class _Reached(Exception):
    """The layer that is looked at has got its input: the rest need not be run."""


def _moments(
    model: nn.Module, reference: nn.Module, layer: Layer, twin: Layer, inputs: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """``E[x' x'ᵀ]`` and ``E[x x'ᵀ]``, each (groups, m, m), with a ridge."""
    found = [_input(model, layer, inputs), _input(reference, twin, inputs)]
    if found[0].shape != found[1].shape:
        raise InputError(
            f"a layer gets inputs of shape {tuple(found[0].shape)} in the compressed model and "
            f"{tuple(found[1].shape)} in the other; both must be of the same architecture"
        )
    own, crossed, rows = cross_moments(layer, *found)
    added = ridge(own, rows)
    return own + added, crossed + added


def _input(model: nn.Module, layer: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    seen: list[Tensor] = []

    def look(x: Tensor) -> None:
        seen.append(x)
        raise _Reached

    try:
        with observing(model, {layer: look}):
            model(*inputs)
    except _Reached:
        return seen[0]
    raise InputError(
        "the two models do not run the same layers; give the dense model that was compressed"
    )


def _wanted(weight: Tensor, moments: Tensor, crossed: Tensor) -> Tensor:
    """``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, group by group."""
    rows = weight.reshape(len(moments), -1, moments.shape[-1]).double()
    solved = torch.linalg.solve(moments.double(), (rows @ crossed.double()).mT)
    return cast(Tensor, solved.mT).reshape(weight.shape).float()


def _factorize(
    wanted: Tensor, moments: Tensor, old: FactoredWeight, allowed: int
) -> Factors | None:
    """Factors within so many bytes, with tiles as before; None if none were found."""
    tile, moments = old.codebook.shape[0], moments / moments.diagonal().mean()

    def attempt(step: float) -> tuple[int, Factors]:
        factors = factorize_weight(wanted, tile, step, moments=moments)
        return records.encode(factors).nbytes, factors

    try:
        return finest_fit(attempt, allowed, old.unit, most=_TRIALS)[1]
    except BudgetError:
        return None


def _match(model: nn.Module, reference: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Match the normalisation anew, from what it is in the dense model."""
    statistics = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    if not statistics:
        return
    originals = [m for m in reference.modules() if getattr(m, "running_mean", None) is not None]
    for module, original in zip(statistics, originals, strict=True):
        for name in ("running_mean", "running_var"):
            value = getattr(original, name).to(torch.bfloat16)
            getattr(module, name).copy_(value)
    match_normalization(model, reference, *inputs)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
