# SPDX-License-Identifier: Apache-2.0
"""Factor the layers of a compressed model again, so that each corrects the errors before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.calibration.calibrate import ridge
from tersor.calibration.inputs import MOST_INPUTS, is_layer
from tersor.calibration.moments import (
    Convolution,
    Joint,
    Layer,
    inputs_first,
    inputs_of_layer,
    joint_moments,
    mean_vector,
)
from tersor.calibration.normalization import match_layer, moments_of, normalizations, replace_values
from tersor.calibration.samples import calls_of
from tersor.coding import records
from tersor.compression.search import finest_fit
from tersor.errors import BudgetError, InputError
from tersor.factorization.weights import factorize_binary, factorize_weight
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
"""Number of step sizes that are tried to use the bytes that a layer may take."""

_USUAL = 0.65
"""Usual step size as a share of the length of the codebook's columns; it is tried first."""

_LAST = 3
"""Number of layers before which the size of the file is measured. Elsewhere a layer gets its share,
and what the layers before it left."""

_SLACK = 16
_SLACK_SHARE = 1 / 3000
"""Bytes by which what is not factored may grow after the last layer, but at most this share of the
file. If it grows more, another pass is needed."""

_ROUNDS = 4
"""Largest number of passes over all layers until the file is small enough."""


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    reference: nn.Module,
    loader: Iterable[Any],
    *,
    target_size: str | int | None = None,
) -> None:
    """Bring the outputs of a compressed model closer to those of the dense one, layer by layer.

    The weight of each linear layer and convolution is factored again, in the order in which the
    model runs them. The aim is not a weight close to the dense one. Given the layer's inputs in the
    *compressed* model, its outputs should be those of the dense layer in the dense model. Each
    layer thus corrects errors of earlier layers. Layers keep their shares of the bytes. Biases
    correct the remaining error of the mean. As in `calibrate`, weights with rows longer than 4096
    are left as they are. Normalisation is matched in the same pass, so that
    `match_normalization` is not needed before or after. There is no back-propagation.

    Parameters
    ----------
    model
        Compressed model, which is changed in place.
    reference
        The dense model, of the same architecture. It is not changed.
    loader
        Yields batches that both models are called with, as in `calibrate`: about a thousand samples
        in all. All batches are in memory at once, together with their activations in one layer.
    target_size
        Bytes of the model's file, at most: a number or a text, as in `compress`. By default this is
        the current size.

    Raises
    ------
    InputError
        If the model holds no factors, if the two models differ in more than their values, or if
        they cannot be called with the batches.
    BudgetError
        If the file remains larger than ``target_size``.

    Notes
    -----
    With the inputs x of a layer in the dense model and x' in the compressed one, its weight W is
    replaced by the factors of ``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, the linear map of x' that is nearest to
    W x on average, under the metric ``E[x' x'ᵀ]``. Moments are about the mean if the layer has a
    bias. They have a ridge, which is chosen by cross-validation. Nagel et al., 2020, *Up or Down?
    Adaptive Rounding for Post-Training Quantization*, arXiv 2004.10568, section 3.3, also use the
    inputs of the compressed model, with another solver.

    Examples
    --------
    >>> from copy import deepcopy
    >>> layers = torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)
    >>> dense = torch.nn.Sequential(*layers)
    >>> model, batches = deepcopy(dense), [torch.randn(200, 32)]
    >>> report = tersor.compress(model, ratio=8)
    >>> before = tersor.output_error(model, dense, batches)
    >>> tersor.reconstruct(model, dense, batches)
    >>> tersor.output_error(model, dense, batches) < before
    True
    """
    _check(model, state(reference))
    calls = calls_of(loader)
    target = parse_size(target_size) if target_size is not None else _size(model)
    for _ in range(_ROUNDS):
        _sweep(model, reference, calls, target)
        if (size := _size(model)) <= target:
            return
    raise BudgetError(
        f"{target} bytes are too few for the reconstructed model, which has {size}; leave "
        "it as it was compressed"
    )


def _sweep(model: nn.Module, reference: nn.Module, calls: Sequence[Call], target: int) -> None:
    """Factor all layers again once, so that the file has about ``target`` bytes.

    What a layer leaves goes to the next. The last layers make up for other changes of the size.
    """
    weights, layers, matched = state(reference), _layers(model, calls[0]), normalizations(model)
    old = {name: _factors_bytes(layer) for name, layer in layers.items()}
    share = 1 + (target - _size(model)) / max(1, sum(old.values()))
    slack = min(_SLACK, int(_SLACK_SHARE * target))
    new = {name: int(share * nbytes) for name, nbytes in old.items()}
    watched, spare, last = [*layers, *matched], 0, list(layers)[-_LAST:]
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
                weight = _turned(twin, weight)
                if stop.name in last:
                    growth = sum(new[n] - old[n] for n in last[last.index(stop.name) :])
                    spare = target - slack - _size(model) - growth
                allowed = new[stop.name] + spare
                pair = layers[stop.name], cast(Layer, twin)
                spare = allowed - _renew(model, stop, pair, weight, max(0, allowed))
        except DivergedError:
            raise InputError(
                "the two models do not run the same layers; give the dense model that was "
                "compressed"
            ) from None


def _size(model: nn.Module) -> int:
    return container.size(archive_of(model))


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
    """Return the linear layers and convolutions with a factored weight that is used once.

    Moments of very long rows would take more time and memory than all others. The module must also
    be called exactly once in a run of the model.
    """
    sites = find_sites(model)
    uses: dict[Weight, int] = {}
    for site in sites.values():
        uses[site.weight] = uses.get(site.weight, 0) + 1
    wanted: dict[nn.Module, str] = {
        site.module: name.rpartition(".")[0]
        for name, site in sites.items()
        if isinstance(site.weight, FactoredWeight)
        and is_layer(site.module)
        and site.attribute == "weight"
        and inputs_of_layer(site.module, site.weight.shape) <= MOST_INPUTS
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
    """Factor the weight of a layer again, and return the bytes that it takes.

    The dense weight has the inputs along its last axes.
    """
    layer, twin = pair
    _check_shapes(stop)
    means = [mean_vector(layer, batches) for batches in stop.inputs]
    # If the layer has a bias, which corrects the means, take moments about the means.
    halves = _halves(stop, layer, None if layer.bias is None else (means[0], means[1]))
    moments = halves[0] + halves[1]
    wanted = _wanted(weight, moments, halves)
    metric = (moments.own + ridge(moments.own, moments.rows)).mean(dim=0)
    factors = _factorize(layer, wanted, metric / metric.diagonal().mean(), allowed)
    if factors is not None:  # otherwise keep the old factors
        insert_factors(model, {join_names(stop.name, "weight"): factors})
    # Keep a bias of zeros: it was folded into the next normalisation layer, which is matched.
    if layer.bias is not None and twin.bias is not None and twin.bias.any():
        now = _turned(layer, as_float32(dense(state(layer)["weight"])))
        shift = _outputs(weight, means[1]) - _outputs(now, means[0])
        replace_values(layer.bias, twin.bias + shift.to(twin.bias))
    return _factors_bytes(layer)


def _turned(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight with the inputs along its last axes; of such a one, as the layer has it."""
    return weight.T.contiguous() if inputs_first(layer) else weight


def _check_shapes(stop: Stop) -> None:
    shapes = [[tuple(x.shape) for x in batches] for batches in stop.inputs]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{stop.name!r} gets inputs of shape {shapes[0][0]} in the compressed model and "
            f"{shapes[1][0]} in the other; both must be of the same architecture"
        )


def _halves(stop: Stop, layer: Layer, shifts: tuple[Tensor, Tensor] | None) -> tuple[Joint, Joint]:
    """Return the moments of a layer's inputs over every other batch, and over the other batches.

    A single batch is divided in the same way by samples. A single sample is in both halves.
    """
    axes = 1 + len(layer.kernel_size) if isinstance(layer, Convolution) else 1
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
    """Return ``W E[x x'ᵀ] E[x' x'ᵀ]⁻¹``, both moments with the ridge from cross-validation.

    The weight that is best for one half of the samples is tested on the other half, for each ridge.
    If there are few samples, or if the errors depend little on the layer's inputs, a large ridge
    is best, which leaves W almost unchanged.
    """
    rows = weight.reshape(len(moments.own), -1, moments.own.shape[-1]).double()
    errors = torch.zeros(len(_RIDGES), dtype=torch.float64)
    for known, held in (halves, halves[::-1]):
        for number, trial in enumerate(_mapped(rows, known, _RIDGES)):
            errors[number] += _held_out(rows, trial, held)
    (best,) = _mapped(rows, moments, [_RIDGES[int(errors.argmin())]])
    return best.reshape(weight.shape).float()


def _mapped(rows: Tensor, moments: Joint, ridges: Sequence[float]) -> Iterator[Tensor]:
    """Yield ``W (E[x x'ᵀ] + r) (E[x' x'ᵀ] + r)⁻¹`` for multiples r of the usual ridge."""
    values, axes = torch.linalg.eigh(moments.own.double())
    usual = ridge(moments.own, moments.rows).diagonal(dim1=1, dim2=2)[:, :1].double()
    target, plain = rows @ moments.crossed.double() @ axes, rows @ axes
    for factor in ridges:
        added = (factor * usual)[:, None]
        yield (target + added * plain) / (values.clamp_min(0)[:, None] + added) @ axes.mT


def _held_out(rows: Tensor, trial: Tensor, held: Joint) -> Tensor:
    """Return the sum of ``|W x - V x'|²`` for a trial V, without the term that is independent of V.

    The sum is taken over the held-out vectors.
    """
    own, crossed = held.own.double(), held.crossed.double()
    return ((trial @ own - 2 * rows @ crossed) * trial).sum() * held.rows


def _outputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the products of a weight with one input vector per group, (groups, m)."""
    rows = weight.reshape(len(inputs), -1, inputs.shape[-1])
    return (rows @ inputs[..., None]).flatten()


def _factorize(layer: Layer, wanted: Tensor, moments: Tensor, allowed: int) -> Factors | None:
    """Return factors of at most ``allowed`` bytes with the old tile size, or None if not found."""
    if allowed <= 0:  # layers before this one took its bytes
        return None
    old, first = _held(layer), inputs_first(layer)
    wanted, tile = _turned(layer, wanted), old.codebook.shape[0]
    if old.binary:
        factors = factorize_binary(wanted, tile, moments=None if first else moments)
        return factors if records.encode(factors).nbytes <= allowed else None

    def attempt(step_size: float) -> tuple[int, Factors]:
        factors = factorize_weight(wanted, tile, step_size, moments=moments, inputs_first=first)
        return records.encode(factors).nbytes, factors

    try:
        return finest_fit(attempt, allowed, _USUAL * old.unit, most=_TRIALS)[1]
    except BudgetError:
        return None
