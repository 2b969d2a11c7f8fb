# SPDX-License-Identifier: Apache-2.0
"""Replace layers of a trained model by two or three layers of low rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from tersor.calibration.calibrate import Calibration, calibrate
from tersor.calibration.normalization import match_normalization, normalizations
from tersor.calibration.samples import NEEDED, batches_of, call, check_loader
from tersor.compression.knapsack import choose
from tersor.compression.quality import evaluated
from tersor.errors import BudgetError, InputError
from tersor.lowrank.candidates import Sizes, Way, sizes_of, splittable, ways
from tersor.lowrank.forms import FORMS, Ranks
from tersor.lowrank.layers import Splittable, as_kernel, replace, replacement
from tersor.nn.checks import check_model
from tersor.progress import shown

_TRIALS = 7
"""Number of budgets that are tried with ``max_drop``."""

_EVALUATE = "the function 'evaluate'"


@dataclass(frozen=True)
class LayerSummary:
    """Form, ranks, costs and error of one layer after `decompose`.

    Parameters
    ----------
    name
        Name of the module.
    form
        Name of the form, or ``dense``.
    ranks
        Its ranks; none for a dense layer.
    operations
        Multiply-additions for a sample, before and after; 0 if there were no data.
    parameters
        Weights, before and after.
    error
        Predicted squared error of the model's output that it causes, as a share; without data,
        the share of the weight's energy that is lost.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    >>> (row,) = tersor.lowrank.decompose(model, ratio=1.3).layers
    >>> row.name, row.form, row.ranks, row.parameters
    ('0', 'outputs', (24,), (4096, 3072))
    """

    name: str
    form: str
    ranks: Ranks
    operations: tuple[int, int]
    parameters: tuple[int, int]
    error: float


@dataclass(frozen=True)
class Decomposed:
    """Result of `decompose`: forms and ranks of all layers, and what the model costs.

    Parameters
    ----------
    layers
        One summary for each layer that could be split, in the order of the model.
    left
        Reason, by name, why other layers with a matrix were left.
    operations
        Multiply-additions of all linear layers and convolutions for a sample, before and after; 0
        without data.
    parameters
        Parameters of the whole model, before and after.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> done = tersor.lowrank.decompose(model, flops=0.5, data=[torch.randn(256, 64)])
    >>> done.plan, done.operations
    ({'0': ('outputs', (16,))}, (4096, 2048))
    """

    layers: tuple[LayerSummary, ...]
    left: Mapping[str, str]
    operations: tuple[int, int]
    parameters: tuple[int, int]

    @property
    def plan(self) -> dict[str, tuple[str, Ranks]]:
        """Form and ranks of the layers that were split, as `restructure` takes them."""
        return {row.name: (row.form, row.ranks) for row in self.layers if row.form != "dense"}

    @property
    def error(self) -> float:
        """Predicted squared error of the outputs as a share: the sum over the layers."""
        return sum(row.error for row in self.layers)


def decompose(
    model: nn.Module,
    *,
    flops: float | None = None,
    ratio: float | None = None,
    max_drop: float | None = None,
    evaluate: Callable[[nn.Module], object] | None = None,
    data: Iterable[Any] | None = None,
    calibration: Calibration | None = None,
    forms: Sequence[str] = tuple(FORMS),
    keep: Sequence[str] = (),
) -> Decomposed:
    """Replace layers of a model by layers of low rank, in place, where that costs the least.

    Each linear layer and convolution may become two or three ordinary layers of torch, in an
    `nn.Sequential` of its name. Their ranks follow from one budget for the whole model: operations
    or parameters are saved where they avoid the least error of the outputs. The result exports,
    compiles and trains as before, and `tersor.compress` makes it smaller still. To load its weights
    into a model that its code makes anew, call `restructure` first.

    With ``data``, layers are approximated for the inputs that they get, the importance of layers is
    measured, and normalisation is matched at the end.

    Parameters
    ----------
    model
        Model with its trained weights.
    flops
        Share of the operations of linear layers and convolutions that is left, such as 0.5. Needs
        data.
    ratio
        Parameters of the model divided by those of the result.
    max_drop
        Largest allowed drop of ``evaluate``; operations become as few as that allows (without data,
        parameters). Exactly one of ``flops``, ``ratio`` and ``max_drop`` must be given.
    evaluate
        Function that takes a copy of the model and returns a number, higher for better models.
    data
        Batches of typical inputs, as for `tersor.calibrate`; a thousand samples in all.
    calibration
        Result of `tersor.calibrate` of this model, if there is one already.
    forms
        Names of the forms that layers may take; by default all: ``outputs``, ``inputs``,
        ``spatial``, ``tucker`` and ``depthwise``.
    keep
        Patterns of names of modules that are left as they are, such as ``"head*"``.

    Returns
    -------
    Decomposed
        Forms, ranks, operations and parameters.

    Raises
    ------
    InputError
        If not exactly one budget is given, if operations are asked for without data, if there is no
        such form, or if the model cannot run with the layers replaced. The model is then unchanged.
    BudgetError
        If ranks of 1 would still take more than the budget; the message says what is possible.

    References
    ----------
    Ou, Chen, Zhu, Liu, 2023: *Low Rank Optimization for Efficient Deep Learning: Making a Balance
    between Compact Architecture and Fast Training*, arXiv 2303.13635.

    Examples
    --------
    >>> layers = torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3)
    >>> model = torch.nn.Sequential(*layers)
    >>> done = tersor.lowrank.decompose(model, flops=0.5, data=[torch.randn(64, 3, 12, 12)])
    >>> done.operations[1] <= 0.5 * done.operations[0]
    True
    """
    _check(model, (flops, ratio, max_drop), evaluate, data, forms)
    batches = None if data is None else list(batches_of(data))
    if batches == []:
        raise InputError(f"the loader is empty; {NEEDED}")
    dense = copy.deepcopy(model)
    if batches is not None and calibration is None:
        calibration = calibrate(dense, batches)
    found = _Candidates.of(dense, batches, calibration, forms, keep)
    if max_drop is not None:
        chosen = _within_drop(dense, found, batches, max_drop, evaluate)
    else:
        chosen = found.within(flops=flops, ratio=ratio)
    _apply(model, found, chosen, dense, batches)
    return found.summary(chosen, model)


@dataclass(frozen=True)
class _Candidates:
    """Ways to compute with each layer.

    Parameters
    ----------
    model
        The dense model.
    layers, ways
        Layers of it by name; the dense way is the first of each.
    left
        Reasons for other layers.
    operations
        Of all layers of the dense model; 0 if unknown.
    calibration
        As for `decompose`.
    """

    model: nn.Module
    layers: Mapping[str, Splittable]
    ways: Mapping[str, list[Way]]
    left: Mapping[str, str]
    operations: int
    calibration: Calibration | None

    @staticmethod
    def of(
        model: nn.Module,
        batches: Sequence[Any] | None,
        calibration: Calibration | None,
        forms: Sequence[str],
        keep: Sequence[str],
    ) -> _Candidates:
        layers, left = splittable(model)
        kept = [name for name in layers if any(fnmatchcase(name, k) for k in keep)]
        left |= dict.fromkeys(kept, "it is to be kept")
        layers = {name: layer for name, layer in layers.items() if name not in kept}
        sizes: dict[nn.Module, Sizes] = {} if batches is None else sizes_of(model, batches[0])
        operations = sum(
            size.operations([cast(nn.Linear, layer).weight.shape], "dense")
            for layer, size in sizes.items()
        )
        found = {}
        with shown("decomposing") as progress:
            for number, (name, layer) in enumerate(layers.items()):
                progress(name, number / len(layers))
                weight = f"{name}.weight"
                found[name] = ways(weight, layer, sizes.get(layer), calibration, forms)
        return _Candidates(model, layers, found, left, operations, calibration)

    def within(self, *, flops: float | None = None, ratio: float | None = None) -> dict[str, Way]:
        """Return one way for each layer, with the least error within the budget."""
        attribute = "operations" if flops is not None else "parameters"
        if flops is not None:
            total, budget = self.operations, int(flops * self.operations)
        else:
            total = _count(self.model)
            budget = int(total / float(ratio or 1))
        fixed = total - sum(getattr(of_layer[0], attribute) for of_layer in self.ways.values())
        options = [[(getattr(w, attribute), w.error) for w in each] for each in self.ways.values()]
        picked = choose(options, budget - fixed) if options else ([] if fixed <= budget else None)
        if picked is None:
            least = fixed + sum(min(cost for cost, _ in each) for each in options)
            raise BudgetError(
                f"{budget:,} {attribute} are asked for, of {total:,}; with ranks of 1, and layers "
                f"that cannot be split, {least:,} are the fewest: ask for "
                + (
                    f"flops={least / total:.2g} or more"
                    if flops is not None
                    else f"a ratio of {total / least:.3g} or less"
                )
            )
        pairs = zip(self.ways.items(), picked, strict=True)
        return {name: each[index] for (name, each), index in pairs}

    def summary(self, chosen: Mapping[str, Way], model: nn.Module) -> Decomposed:
        """Return what was chosen, as the user sees it."""
        rows = []
        for name, way in chosen.items():
            dense = self.ways[name][0]
            pairs = (dense.operations, way.operations), (dense.parameters, way.parameters)
            rows.append(LayerSummary(name, way.form, way.ranks, *pairs, way.error))
        saved = sum(row.operations[0] - row.operations[1] for row in rows)
        parameters = _count(self.model), _count(model)
        operations = self.operations, self.operations - saved
        return Decomposed(tuple(rows), self.left, operations, parameters)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _apply(
    model: nn.Module,
    found: _Candidates,
    chosen: Mapping[str, Way],
    dense: nn.Module,
    batches: Sequence[Any] | None,
) -> None:
    """Replace layers of a model, unless it does not run with them."""
    made = copy.deepcopy(dense)
    for name, way in chosen.items():
        if way.form != "dense":
            replace(made, name, _split(found, name, way))
    if batches is not None:
        try:
            with torch.no_grad():
                call(made.eval(), batches[0], 1)
        except InputError as error:
            raise InputError(
                f"the model does not run with layers of low rank in the place of its own; name "
                f"those whose weights it uses by itself in keep: {error}"
            ) from error
        if normalizations(made):
            match_normalization(made, dense, batches)
    modules = dict(made.named_modules())
    for name, way in chosen.items():
        if way.form != "dense":
            replace(model, name, modules[name].train(model.get_submodule(name).training))
    own = normalizations(model)
    for name, layer in normalizations(made).items():
        own[name].load_state_dict(layer.state_dict())


def _split(found: _Candidates, name: str, way: Way) -> nn.Module:
    layer = found.layers[name]
    calibration = found.calibration
    metric = None if calibration is None else calibration.metric(f"{name}.weight")
    metric = None if metric is None else metric.to(torch.float64)
    split = FORMS[way.form].split(as_kernel(layer.weight), metric)
    return replacement(layer, way.form, split(way.ranks), way.ranks)


def _within_drop(
    model: nn.Module,
    found: _Candidates,
    batches: Sequence[Any] | None,
    max_drop: float,
    evaluate: Callable[[nn.Module], object] | None,
) -> dict[str, Way]:
    """Return the ways of the fewest operations whose measured quality is high enough."""
    assert evaluate is not None
    before = evaluated(evaluate, copy.deepcopy(model), _EVALUATE)
    best = {name: each[0] for name, each in found.ways.items()}
    low, high = 0.0, 1.0
    for _ in range(_TRIALS):
        share = (low + high) / 2
        try:
            budget = {"flops": share} if found.operations else {"ratio": 1 / share}
            chosen = found.within(**budget)
        except BudgetError:
            low = share
            continue
        trial = copy.deepcopy(model)
        _apply(trial, found, chosen, model, batches)
        if evaluated(evaluate, trial, _EVALUATE) >= before - max_drop:
            best, high = chosen, share
        else:
            low = share
    return best


def _check(
    model: nn.Module,
    budgets: tuple[float | None, float | None, float | None],
    evaluate: Callable[[nn.Module], object] | None,
    data: Iterable[Any] | None,
    forms: Sequence[str],
) -> None:
    check_model(model)
    flops, ratio, max_drop = budgets
    if sum(value is not None for value in budgets) != 1:
        raise InputError(
            f"give exactly one of flops, ratio and max_drop; got flops={flops}, ratio={ratio}, "
            f"max_drop={max_drop}"
        )
    if flops is not None and not 0 < flops <= 1:
        raise InputError(f"flops is the share of the operations that is left, got {flops!r}")
    if ratio is not None and not 1 <= ratio < float("inf"):
        raise InputError(f"ratio must be a number of at least 1, got {ratio!r}")
    if max_drop is not None and (evaluate is None or not 0 <= max_drop < float("inf")):
        raise InputError(
            f"max_drop must be a number that is not negative, with evaluate, which measures it; "
            f"got {max_drop!r} and {evaluate!r}"
        )
    if flops is not None and data is None:
        raise InputError(
            "operations depend on the sizes of the inputs: give data, such as [batch], or ratio, "
            "which counts parameters"
        )
    if data is not None:
        check_loader(data)
    if unknown := [form for form in forms if form not in FORMS]:
        raise InputError(f"there are no forms {unknown}; forms are {', '.join(FORMS)}")
