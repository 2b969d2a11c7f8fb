"""Factor a compressed model's layers again, each for what the layers before it have become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration.calibrate import ridge
from tersor.calibration.moments import Joint, Layer, joint_moments, mean_vector
from tersor.calibration.normalization import match_layer, moments_of, normalizations, replace_values
from tersor.calibration.samples import calls_of
from tersor.coding import records
from tersor.compression.search import finest_fit
from tersor.errors import BudgetError, InputError
from tersor.factorization.weights import factorize_signs, factorize_weight
from tersor.factors import Factors
from tersor.io import archive_of
from tersor.nn import FactoredWeight, HeldWeight, insert_factors, state
from tersor.nn.lockstep import Call, DivergedError, Stop, lockstep
from tersor.nn.observe import Look, at_input, observing
from tersor.nn.owner import SUFFIX
from tersor.nn.sites import Weight, find_sites, join_names
from tersor.nn.source import dense
from tersor.progress import shown
from tersor.storage import container
from tersor.tiling import as_float32
from tersor.units import parse_size

_RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4)
"""Multiples of the usual ridge, 1 % of the mean square, that are tried."""

_TRIALS = 6
"""Steps that are tried for a layer, to have it take the bytes that it may."""

_USUAL = 0.65
"""The step is about this share of the length of the codebook's columns, which is tried first."""

_ROUNDS = 4
"""Times that all layers are gone through at most, until the file is small enough."""


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    reference: nn.Module,
    loader: Iterable[Any],
    *,
    target_size: str | int | None = None,
) -> None:
    """Make a compressed model compute again what the dense one does, layer by layer.

    In the order in which the model runs them, the weight of each linear layer and convolution is
    factored anew: not to be like the dense weight, but so that, given what reaches it in the
    *compressed* model, it puts out what the dense layer puts out in the dense model. So each layer
    makes up for errors of those before it. Layers keep their shares of the bytes. Biases make up
    for what is left of the mean, and normalisation is matched along the way, as by
    `match_normalization`, which is not needed before or after. There is no back-propagation.

    Parameters
    ----------
    model
        Compressed model, changed in place.
    reference
        The dense model, of the same architecture; unchanged.
    loader
        Yields batches that both are called with, as in `calibrate`: about a thousand samples in
        all. All are in memory at once, with what they are in one layer.
    target_size
        Bytes that the file of the model may have, as in `compress`; by default as many as now.

    Raises
    ------
    InputError
        If the model holds no factors, the two are different models, or they cannot be called with
        the batches.
    BudgetError
        If the file stays larger than that.

    Notes
    -----
    With the inputs x of a layer in the dense model and x' in the compressed one, its weight W is
    replaced by the factors of ``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, the linear map that is nearest to W x on
    average, under the metric ``E[x' x'ᵀ]``. Moments are about the mean where the layer has a bias,
    and have a ridge, which is chosen by cross-validation. Inputs of the compressed model are used
    in Nagel et al., 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*, arXiv
    2004.10568, section 3.3, with another solver.
    """
    _check(model, state(reference))
    calls = calls_of(loader)
    size = container.size(archive_of(model))
    target = parse_size(target_size) if target_size is not None else size
    for _ in range(_ROUNDS):
        _sweep(model, reference, calls, target - size)
        size = container.size(archive_of(model))
        if size <= target:
            return
    raise BudgetError(
        f"{target} bytes are too few for the reconstructed model, which has {size}; leave "
        "it as it was compressed"
    )


def _sweep(model: nn.Module, reference: nn.Module, calls: Sequence[Call], left: int) -> None:
    """Go through all layers once, with so many bytes more than now in all, or fewer."""
    weights, layers, matched = state(reference), _layers(model, calls[0]), normalizations(model)
    old = {name: _factors_bytes(layer) for name, layer in layers.items()}
    share = 1 + left / max(1, sum(old.values()))
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
                allowed = int(share * old[stop.name]) + spare
                pair = layers[stop.name], cast(Layer, twin)
                spare = allowed - _renew(model, stop, pair, weight, allowed)
        except DivergedError:
            raise InputError(
                "the two models do not run the same layers; give the dense model that was "
                "compressed"
            ) from None


def _factors_bytes(layer: nn.Module) -> int:
    return records.encode(_held(layer).to_factors()).nbytes


def _held(layer: nn.Module) -> FactoredWeight:
    return cast(FactoredWeight, layer.get_submodule("weight" + SUFFIX))


def _check(model: nn.Module, weights: Mapping[str, HeldWeight | Tensor]) -> None:
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

    def note(module: nn.Module) -> Look:
        return at_input(lambda _: called.update({module: called.get(module, 0) + 1}))

    with observing(model, {module: note(module) for module in wanted}):
        call(model)
    return {wanted[module]: cast(Layer, module) for module, n in called.items() if n == 1}


def _renew(
    model: nn.Module, stop: Stop, pair: tuple[Layer, Layer], weight: Tensor, allowed: int
) -> int:
    """Factor the weight of a layer again; returns the bytes that it takes."""
    layer, twin = pair
    _check_shapes(stop)
    means = [mean_vector(layer, batches) for batches in stop.inputs]
    # About the means, where a bias makes up for these.
    halves = _halves(stop, layer, None if layer.bias is None else (means[0], means[1]))
    moments = halves[0] + halves[1]
    wanted = _wanted(weight, moments, halves)
    metric = (moments.own + ridge(moments.own, moments.rows)).mean(dim=0)
    factors = _factorize(wanted, metric / metric.diagonal().mean(), _held(layer), allowed)
    if factors is not None:  # else it stays as it is
        insert_factors(model, {join_names(stop.name, "weight"): factors})
    # A bias that is all zeros was folded into the normalisation that follows, which is matched.
    if layer.bias is not None and twin.bias is not None and twin.bias.any():
        now = as_float32(dense(state(layer)["weight"]))
        shift = _outputs(weight, means[1]) - _outputs(now, means[0])
        replace_values(layer.bias, twin.bias + shift.to(twin.bias))
    return _factors_bytes(layer)


def _check_shapes(stop: Stop) -> None:
    shapes = [[tuple(x.shape) for x in batches] for batches in stop.inputs]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{stop.name!r} gets inputs of shape {shapes[0][0]} in the compressed model and "
            f"{shapes[1][0]} in the other; both must be of the same architecture"
        )


def _halves(stop: Stop, layer: Layer, shifts: tuple[Tensor, Tensor] | None) -> tuple[Joint, Joint]:
    """Moments of every other batch, or sample of a single batch, of what reaches a layer; the rest.

    A single sample is in both.
    """
    axes = 1 if isinstance(layer, nn.Linear) else 1 + len(layer.kernel_size)
    batches = ([x if x.ndim > axes else x[None] for x in of_model] for of_model in stop.inputs)
    pairs = list(zip(*batches, strict=True))
    if len(pairs) == 1:
        ((x, y),) = pairs
        pairs = [(x[part::2], y[part::2]) for part in (0, 1)] if len(x) > 1 else pairs * 2
    found = []
    for part in (pairs[0::2], pairs[1::2]):
        own, other = zip(*part, strict=True)
        found.append(joint_moments(layer, own, other, shifts))
    return found[0], found[1]


def _wanted(weight: Tensor, moments: Joint, halves: tuple[Joint, Joint]) -> Tensor:
    """``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, both with that ridge which is best in cross-validation.

    For each half of the samples the weight that is best for the other is tried. With few samples,
    or errors that have little to do with what the layer gets, a large ridge leaves W as it is.
    """
    rows = weight.reshape(len(moments.own), -1, moments.own.shape[-1]).double()
    errors = torch.zeros(len(_RIDGES), dtype=torch.float64)
    for known, held in (halves, halves[::-1]):
        for number, trial in enumerate(_mapped(rows, known, _RIDGES)):
            errors[number] += _held_out(rows, trial, held)
    (best,) = _mapped(rows, moments, [_RIDGES[int(errors.argmin())]])
    return best.reshape(weight.shape).float()


def _mapped(rows: Tensor, moments: Joint, ridges: Sequence[float]) -> Iterator[Tensor]:
    """``W (E[x x'ᵀ] + r) (E[x' x'ᵀ] + r)⁻¹`` for multiples r of the usual ridge."""
    values, axes = torch.linalg.eigh(moments.own.double())
    usual = ridge(moments.own, moments.rows).diagonal(dim1=1, dim2=2)[:, :1].double()
    target, plain = rows @ moments.crossed.double() @ axes, rows @ axes
    for factor in ridges:
        added = (factor * usual)[:, None]
        yield (target + added * plain) / (values.clamp_min(0)[:, None] + added) @ axes.mT


def _held_out(rows: Tensor, trial: Tensor, held: Joint) -> Tensor:
    """``E[|W x - V x'|²]`` of a trial V, less what does not depend on it."""
    own, crossed = held.own.double(), held.crossed.double()
    return ((trial @ own - 2 * rows @ crossed) * trial).sum() * held.rows


def _outputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """What a weight makes of a vector for each group, (groups, m)."""
    rows = weight.reshape(len(inputs), -1, inputs.shape[-1])
    return (rows @ inputs[..., None]).flatten()


def _factorize(
    wanted: Tensor, moments: Tensor, old: FactoredWeight, allowed: int
) -> Factors | None:
    """Factors within so many bytes, with tiles as before; None if none were found."""
    tile = old.codebook.shape[0]
    if old.signs:
        factors = factorize_signs(wanted, tile, moments=moments)
        return factors if records.encode(factors).nbytes <= allowed else None

    def attempt(step: float) -> tuple[int, Factors]:
        factors = factorize_weight(wanted, tile, step, moments=moments)
        return records.encode(factors).nbytes, factors

    try:
        return finest_fit(attempt, allowed, _USUAL * old.unit, most=_TRIALS)[1]
    except BudgetError:
        return None
