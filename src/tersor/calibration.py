"""Second moments of the inputs of a model's weights, seen while the model runs.

A layer computes ``W x``, and an error ``E`` of its weights costs ``E[|E x|²] = tr(E H Eᵀ)`` in what
it computes, where ``H = E[x xᵀ]``. Here the ``H`` of all layers are measured in one pass over a few
batches. Inputs are used up as they come: what is kept is a matrix for each weight.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError, explained
from tersor.moments import Layer, Moment
from tersor.nn.checks import check_model
from tersor.nn.observe import Look, observing
from tersor.nn.owner import FactoredOwner
from tersor.nn.sites import Site, Weight, find_sites
from tersor.plan.classify import reason_to_keep
from tersor.plan.progress import shown

_MOST_INPUTS = 4096
"""Longest row whose second moments are kept: they take 64 MB then."""

_MOST_GROUPED = 2**22
"""Elements up to which the groups of a convolution have moments of their own."""

_DAMPING = 0.01
"""Ridge as a share of the mean diagonal; that of GPTQ."""

_SMALLEST = 1e-36
"""Mean squares below this are taken for zero: their ridge would not be a normal number."""

_NEEDED = "batches that the model can be called with are needed: tensors, tuples or dicts"


@dataclass(frozen=True)
class Calibration:
    """Second moments of the inputs of weights.

    Parameters
    ----------
    moments
        Means of ``x xᵀ`` by the weight's name in ``state_dict``, float32, on the CPU: (m, m), where
        m is the length of a flattened row of the weight, whose order of elements they have. Of a
        grouped convolution (groups, m, m), unless that is large: then their mean, (m, m). A weight
        that several modules share has one entry, of all their inputs, under its first name.
    samples
        Sum of the sizes of the batches.
    rows
        Number of the input vectors that each mean is of; in a convolution, one for each position.
    skipped
        Weights that will be factored but have no moments, and why.
    """

    moments: Mapping[str, Tensor]
    samples: int
    rows: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def regularized(self, name: str) -> Tensor:
        """Second moments plus a ridge: positive definite, of the same shape.

        The ridge is 1 % of the mean diagonal, as in GPTQ, times the inputs per input vector where
        there are fewer vectors than inputs. Inputs that were always zero count by the ridge alone,
        and if all were, the result is a multiple of the identity.

        References
        ----------
        Frantar, Ashkboos, Hoefler, Alistarh, 2022: *GPTQ: Accurate Post-Training Quantization for
        Generative Pre-trained Transformers*, arXiv 2210.17323.
        """
        return self.moments[name] + ridge(self.moments[name], self.rows[name])


def ridge(moments: Tensor, rows: int) -> Tensor:
    """What `Calibration.regularized` adds to moments (..., m, m) of so many input vectors."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    # A silent group gets the ridge of the others: it may be silent in these samples only.
    overall = float(diagonal.mean())
    mean = diagonal.mean(-1).clamp_min(overall if overall > _SMALLEST else 1.0)
    missing = max(1.0, moments.shape[-1] / rows)
    return _DAMPING * missing * mean[..., None, None] * torch.eye(moments.shape[-1])


def calibrate(
    model: nn.Module, loader: Iterable[Any], *, samples: int | None = None
) -> Calibration:
    """Measure the second moments of what reaches the weights of a model.

    The weights are those of Linear, Conv1d, Conv2d and Conv3d modules that `tersor.compress` would
    factor, except for rows longer than 4096. Embeddings are not among them: what reaches those is
    no vector. Each weight takes 4 m² bytes, where m is the length of its rows. Vectors of padding
    tokens count like others: batches of texts of about one length are better.

    Parameters
    ----------
    model
        Run in evaluation mode without gradients, on its device; unchanged.
    loader
        Yields batches: a tensor, which the model is called with; a tuple or list, of which as many
        items are passed as ``forward`` has positional parameters without defaults, at least one, so
        that of (images, labels) the images are; or a mapping, alone or as the first item, which is
        passed as keywords, without ``labels``.
    samples
        Stop after the batch that makes it this many; by default at the end of the loader.

    Returns
    -------
    Calibration
        Moments, and what has none.

    Raises
    ------
    InputError
        If there are no batches, the model cannot be called with them, or activations are NaN or
        infinite.

    Warns
    -----
    UserWarning
        If weights saw fewer input vectors than they have inputs: more samples would help.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
    >>> calibration = tersor.calibrate(model, [torch.randn(100, 32)])
    >>> calibration.moments["0.weight"].shape
    torch.Size([32, 32])
    """
    _check_arguments(model, loader, samples)
    moments, looks, skipped = _prepare(model)
    seen = 0
    with shown("calibrating") as progress, torch.no_grad(), observing(model, looks, after=True):
        for number, batch in enumerate(_batches(loader), start=1):
            seen += _run(model, batch, number)
            progress(f"batch {number}", _share_done(seen, samples, number, loader))
            if samples is not None and seen >= samples:
                break
    if not seen:
        raise InputError(f"the loader is empty; {_NEEDED} (a generator can be used only once)")
    for name in [name for name, moment in moments.items() if not moment.rows]:
        skipped[name] = "no input reached it: its module was not called"
        del moments[name]
    means = {name: _checked(name, moment.mean()) for name, moment in moments.items()}
    _warn_of_few(moments)
    return Calibration(means, seen, {name: m.rows for name, m in moments.items()}, skipped)


def _check_arguments(model: nn.Module, loader: Iterable[Any], samples: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"an nn.Module is needed to calibrate, got a {type(model).__name__}")
    check_model(model)
    if isinstance(loader, Tensor):  # it could be iterated over, but in single samples
        raise InputError("the loader is a tensor; give a list of batches, such as [tensor]")
    if samples is not None and samples < 1:
        raise InputError(f"the number of samples must be positive, got {samples}")


def _warn_of_few(moments: Mapping[str, Moment]) -> None:
    few = [name for name, moment in moments.items() if moment.rows < moment.inputs]
    if few:
        worst = min(few, key=lambda name: moments[name].rows / moments[name].inputs)
        warnings.warn(
            f"{len(few)} of {len(moments)} weights saw fewer input vectors than they have inputs, "
            f"such as {worst!r}: {moments[worst].rows} for {moments[worst].inputs}. Their moments "
            "are regularized more; give more samples",
            stacklevel=3,
        )


def _checked(name: str, mean: Tensor) -> Tensor:
    if not bool(mean.isfinite().all()):
        raise InputError(f"squares of the inputs of {name!r} overflow; scale the model's inputs")
    return mean


def _prepare(
    model: nn.Module,
) -> tuple[dict[str, Moment], dict[nn.Module, Look], dict[str, str]]:
    """Empty moments by name, how modules fill them, and weights that have none, with the reason."""
    moments: dict[str, Moment] = {}
    looks: dict[nn.Module, Look] = {}
    skipped: dict[str, str] = {}
    for name, sites in _factored_weights(model).items():
        reason = _reason_to_skip(sites)
        if reason is not None:
            skipped[name] = reason
            continue
        layers = [cast(Layer, site.module) for site in sites]
        moments[name] = Moment(_groups(layers), math.prod(layers[0].weight.shape[1:]))
        for layer in layers:
            looks[layer] = partial(_look, name, moments[name], layer)
    return moments, looks, skipped


def _factored_weights(model: nn.Module) -> dict[str, list[Site]]:
    """All uses of each weight that compression would factor, by the first of its names."""
    uses: dict[Weight, dict[str, Site]] = {}
    for name, site in find_sites(model).items():
        uses.setdefault(site.weight, {})[name] = site
    found = {next(iter(sites)): list(sites.values()) for sites in uses.values()}
    return {
        name: sites
        for name, sites in found.items()
        if reason_to_keep(name, getattr(sites[0].module, sites[0].attribute)) is None
    }


def _reason_to_skip(sites: list[Site]) -> str | None:
    for module, attribute, weight in sites:
        dense = module.dense_class if isinstance(module, FactoredOwner) else type(module)
        kind = dense.__name__
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return f"used by the {kind}, whose inputs are no vectors"
        if not isinstance(module, Layer) or attribute != "weight":
            return f"used by the {kind}, which is no Linear, Conv1d, Conv2d or Conv3d"
        if (length := math.prod(weight.shape[1:])) > _MOST_INPUTS:
            return f"its rows have {length} inputs, more than {_MOST_INPUTS}"
    return None


def _groups(layers: list[Layer]) -> int:
    """Groups with moments of their own: all, or one that takes in the vectors of all."""
    groups = {layer.groups if not isinstance(layer, nn.Linear) else 1 for layer in layers}
    inputs = math.prod(layers[0].weight.shape[1:])
    largest = max(groups)
    return largest if len(groups) == 1 and largest * inputs**2 <= _MOST_GROUPED else 1


def _look(name: str, moment: Moment, layer: Layer, x: Tensor) -> None:
    if not bool(x.isfinite().all()):
        raise InputError(
            f"inputs of the module of {name!r} are NaN or infinite; check the batches and the model"
        )
    moment.add(layer, x)


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    with explained("the loader", _NEEDED):
        yield from loader


def _run(model: nn.Module, batch: Any, number: int) -> int:
    """Call the model with a batch; returns the number of samples."""
    args, kwargs = _arguments(batch, _required(model))
    parameter = next(model.parameters(), None)
    if parameter is not None:
        args = tuple(_to(parameter.device, value) for value in args)
        kwargs = {name: _to(parameter.device, value) for name, value in kwargs.items()}
    with explained(f"the model, called with batch {number} of the loader,", _NEEDED):
        model(*args, **kwargs)
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return len(tensors[0]) if tensors and tensors[0].ndim else 1


def _arguments(batch: Any, required: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    if isinstance(batch, tuple | list) and batch:
        if required < 2 and isinstance(batch[0], Mapping):
            batch = batch[0]
        else:
            return tuple(batch[: max(1, required)]), {}
    if isinstance(batch, Mapping):
        return (), {name: value for name, value in batch.items() if name != "labels"}
    if isinstance(batch, Tensor):
        return (batch,), {}
    empty = " without items" if isinstance(batch, tuple | list) else ""
    raise InputError(f"a batch of the loader is a {type(batch).__name__}{empty}; {_NEEDED}")


def _required(model: nn.Module) -> int:
    """Positional parameters of ``forward`` that have no defaults."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _to(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _share_done(seen: int, samples: int | None, batches: int, loader: Iterable[Any]) -> float:
    """As far as the end is known."""
    if samples is not None:
        return min(1.0, seen / samples)
    return batches / len(loader) if isinstance(loader, Sized) and len(loader) else 0.0
