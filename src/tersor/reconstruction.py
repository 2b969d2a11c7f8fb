"""Factor a compressed model's layers again, each for what the layers before it have become."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration import ridge
from tersor.errors import BudgetError, InputError
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors
from tersor.models import dense
from tersor.moments import Joint, Layer, joint_moments
from tersor.nn import FactoredWeight, insert_factors, state
from tersor.nn.lockstep import DivergedError, Stop, lockstep
from tersor.nn.observe import observing
from tersor.nn.owner import SUFFIX
from tersor.nn.sites import Weight, find_sites, join_names
from tersor.normalization import match_layer, moments_of, normalizations, replace_values
from tersor.plan.progress import shown
from tersor.plan.search import finest_fit
from tersor.samples import calls_of
from tersor.storage import records
from tersor.tiling import as_float32

_TRIALS = 5
"""Steps that are tried for a layer, to have it take the bytes that it took before."""


@torch.no_grad()
def reconstruct(model: nn.Module, reference: nn.Module, loader: Iterable[Any]) -> None:
    """Make a compressed model compute again what the dense one does, layer by layer.

    In the order in which the model runs them, the weight of each linear layer and convolution is
    factored anew: not to be like the dense weight, but so that, given what reaches it in the
    *compressed* model, it puts out what the dense layer puts out in the dense model. So each layer
    makes up for errors of those before it. None takes more bytes than before but for what others
    left over. Biases make up for what is left of the mean, and normalisation is matched along the
    way, as by `match_normalization`, which is not needed before or after. There is no
    back-propagation.

    Parameters
    ----------
    model
        Compressed model, changed in place.
    reference
        The dense model, of the same architecture; unchanged.
    loader
        Yields batches that both are called with, as in `calibrate`: about a thousand samples in
        all. All are in memory at once, with what they are in one layer.

    Raises
    ------
    InputError
        If the model holds no factors, the two are different models, or they cannot be called with
        the batches.

    Notes
    -----
    With the inputs x of a layer in the dense model and x' in the compressed one, its weight W is
    replaced by the factors of ``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, the linear map that is nearest to W x on
    average, under the metric ``E[x' x'ᵀ]``; both moments have a ridge, and are those about the mean
    where the layer has a bias. Inputs of the compressed model are used in Nagel et al., 2020, *Up
    or Down? Adaptive Rounding for Post-Training Quantization*, arXiv 2004.10568, section 3.3, with
    another solver.
    """
    weights = state(reference)
    _check(model, weights)
    calls = calls_of(loader)
    layers, matched = _layers(model, calls[0]), normalizations(model)
    watched, spare = [*layers, *matched], 0
    with shown("reconstructing") as progress:
        try:
            for number, stop in enumerate(lockstep((model, reference), watched, calls)):
                progress(stop.name, min(1.0, number / len(watched)))
                twin = reference.get_submodule(stop.name)
                if stop.name in matched:
                    now, wanted = map(moments_of, stop.inputs)
                    match_layer(matched[stop.name], cast(_BatchNorm, twin), now, wanted)
                    continue
                weight = as_float32(dense(weights[join_names(stop.name, "weight")]))
                layer = layers[stop.name]
                spare = _renew(model, stop, layer, cast(Layer, twin), weight, spare)
        except DivergedError:
            raise InputError(
                "the two models do not run the same layers; give the dense model that was "
                "compressed"
            ) from None


def _check(model: nn.Module, weights: dict[str, FactoredWeight | Tensor]) -> None:
    held = state(model)
    if not any(isinstance(value, FactoredWeight) for value in held.values()):
        raise InputError("the model holds no factors; compress it first")
    other = [n for n, v in held.items() if n not in weights or v.shape != weights[n].shape]
    if other or len(held) != len(weights):
        where = f", in {other[0]!r} for one" if other else ""
        raise InputError(f"the two models differ{where}; give the dense model that was compressed")


def _layers(model: nn.Module, call: Callable[[nn.Module], Any]) -> dict[str, Layer]:
    """Linear layers and convolutions whose weights are factored, and used just once."""
    sites = find_sites(model)
    uses: dict[Weight, int] = {}
    for site in sites.values():
        uses[site.weight] = uses.get(site.weight, 0) + 1
    wanted: dict[nn.Module, str] = {
        site.module: name.rpartition(".")[0]
        for name, site in sites.items()
        if isinstance(site.weight, FactoredWeight)
        and isinstance(site.module, Layer)
        and site.attribute == "weight"
        and uses[site.weight] == 1
    }
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module) -> Callable[[Tensor], object]:
        return lambda x: called.update({module: called.get(module, 0) + 1})

    with observing(model, {module: note(module) for module in wanted}):
        call(model)
    return {wanted[module]: cast(Layer, module) for module, n in called.items() if n == 1}


def _renew(
    model: nn.Module, stop: Stop, layer: Layer, twin: Layer, weight: Tensor, spare: int
) -> int:
    """Factor the weight of a layer again; returns the bytes that are spare then."""
    moments, old = _moments(stop, layer), layer.get_submodule("weight" + SUFFIX)
    assert isinstance(old, FactoredWeight)
    allowed = records.encode(old.to_factors()).nbytes + spare
    added = ridge(moments.own, moments.rows)
    metric = moments.own + added
    wanted = _wanted(weight, metric, moments.crossed + added)
    factors = _factorize(wanted, metric.mean(dim=0), old, allowed)
    if factors is not None:  # else it stays, and so does what is spare
        spare = allowed - records.encode(factors).nbytes
        insert_factors(model, {join_names(stop.name, "weight"): factors})
    if layer.bias is not None and twin.bias is not None:
        now = as_float32(dense(state(layer)["weight"]))
        shift = _outputs(weight, moments.other) - _outputs(now, moments.mean)
        replace_values(layer.bias, twin.bias + shift.to(twin.bias))
    return spare


def _moments(stop: Stop, layer: Layer) -> Joint:
    """Moments of what reaches the layer: about the means, where a bias makes up for these."""
    shapes = [[tuple(x.shape) for x in batches] for batches in stop.inputs]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{stop.name!r} gets inputs of shape {shapes[0][0]} in the compressed model and "
            f"{shapes[1][0]} in the other; both must be of the same architecture"
        )
    moments = joint_moments(layer, *stop.inputs)
    return moments if layer.bias is None else moments.centred()


def _wanted(weight: Tensor, moments: Tensor, crossed: Tensor) -> Tensor:
    """``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, group by group."""
    rows = weight.reshape(len(moments), -1, moments.shape[-1]).double()
    solved = torch.linalg.solve(moments.double(), (rows @ crossed.double()).mT)
    return cast(Tensor, solved.mT).reshape(weight.shape).float()


def _outputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """What a weight makes of a vector for each group, (groups, m)."""
    rows = weight.reshape(len(inputs), -1, inputs.shape[-1])
    return (rows @ inputs[..., None]).flatten()


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
