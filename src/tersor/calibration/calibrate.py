# SPDX-License-Identifier: Apache-2.0
"""Measure the second moments of the inputs of a model's weights while the model runs.

A layer computes ``W x``. An error ``E`` of its weights causes a mean squared error ``E[|E x|²] =
tr(E H Eᵀ)`` of its output, where ``H = E[x xᵀ]``. The matrices ``H`` of all layers are measured in
one pass over a few batches. Inputs are not stored: only one matrix is kept for each weight.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibration.importance import importances
from tersor.calibration.inputs import callers, groups_of, inputs_of, reason_to_skip
from tersor.calibration.moments import Moment, inputs_first, inputs_of_layer
from tersor.calibration.samples import NEEDED, batches_of, call, check_loader
from tersor.calibration.unseen import (
    NOT_CALLED,
    SMALLEST,
    UNUSED,
    unseen_weights,
    warn_of_unseen,
)
from tersor.errors import InputError, explained
from tersor.nn.checks import check_model
from tersor.nn.observe import Look, observing
from tersor.nn.sites import Site, Weight, find_sites
from tersor.progress import shown
from tersor.storage.classify import reason_to_keep

_DAMPING = 0.01
"""Ridge as a share of the mean diagonal, as in GPTQ."""

_SAMPLING = 2.0
"""Additional ridge: this times the number of inputs over the number of input vectors, at most 1, as
a share of the mean diagonal.

With few vectors, an input that did not occur in them may still occur later. For the layers of
MiniLM, with 1,024 and with 4,096 sentences, the error on other sentences is least near this value.
"""

_TRIED = 4
"""Number of batches with which the importance of weights is measured."""

_MEASURING = 0.2
"""Approximate share of the time that the measurement of moments takes."""

_OUTPUT = "it is given what the model returns and the batch, and must return tensors"


@dataclass(frozen=True)
class Calibration:
    """Second moments of the inputs of weights, and the importance of weights.

    Parameters
    ----------
    moments
        Means of ``x xᵀ`` by the weight's name in ``state_dict``, float32, on the CPU: (m, m), where
        m is the length of a flattened row of the weight. They have the order of elements of this
        row. Those of a grouped convolution are (groups, m, m), or, if that is large, their mean,
        (m, m). A weight that several modules share has one entry for all their inputs, under its
        first name.
    samples
        Sum of the sizes of the batches.
    rows
        Number of the input vectors of each mean, by the same names. A convolution has one vector
        for each position. Of many positions of a sample, every other is left out until there are
        about 64, or half as many as elements of a vector.
    skipped
        Reason, by name, why a weight that will be factored has no moments.
    importance
        Relative squared error of the model's output per squared error of a weight, by the same
        names. The squared error is that of `metric` if the moments are known, else that of the
        elements. Bytes go to the weights where they avoid most of this error. Weights without an
        importance count as typical ones.
    unseen
        Reason, by name, why the batches say nothing about a weight, or why the output does not
        depend on it.
    inputs_first
        Names of matrices whose inputs run along the first axis, as in Hugging Face's Conv1D. For
        these, m is the number of rows.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 64)
    >>> found = tersor.calibrate(model, [torch.randn(100, 32)])
    >>> found.samples, found.rows, found.metric("weight").shape
    (100, {'weight': 100}, torch.Size([32, 32]))
    """

    moments: Mapping[str, Tensor]
    samples: int
    rows: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    inputs_first: tuple[str, ...] = ()

    def metric(self, name: str) -> Tensor | None:
        """Return the matrix (m, m) that weighs errors of a weight, or None for the identity.

        The matrix is the regularized moments, for groups their mean, scaled to a mean of 1 on the
        diagonal. It is the identity for a weight without moments.

        Parameters
        ----------
        name
            Name of a weight.

        Returns
        -------
        Tensor or None
            Matrix (m, m), float32, positive definite; None if the weight has no moments.
        """
        if name not in self.moments:
            return None
        moments = self.regularized(name)
        matrix = moments.mean(dim=0) if moments.dim() == 3 else moments
        return matrix / matrix.diagonal().mean()

    def oriented(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight, or an error of it, with the inputs that `metric` is about last.

        Parameters
        ----------
        name
            Name of the weight.
        weight
            Tensor of the weight's shape, or of the returned one, which is turned back.

        Returns
        -------
        Tensor
            The tensor itself, or its transpose for names in ``inputs_first``.
        """
        return weight.T if name in self.inputs_first else weight

    def regularized(self, name: str) -> Tensor:
        """Return the second moments plus a ridge: positive definite, of the same shape.

        The ridge is 1 % of the mean diagonal, as in GPTQ, plus a share that grows as the number of
        input vectors falls. This share is 100 % if there are at most twice as many vectors as
        inputs. Inputs that were always zero have the ridge only. If all inputs were zero, the
        result is a multiple of the identity.

        Parameters
        ----------
        name
            Name of a weight with moments.

        Returns
        -------
        Tensor
            Float32, (m, m), or (groups, m, m) for a grouped convolution.

        Raises
        ------
        KeyError
            If the weight has no moments.

        References
        ----------
        Frantar, Ashkboos, Hoefler, Alistarh, 2022: *GPTQ: Accurate Post-Training Quantization for
        Generative Pre-trained Transformers*, arXiv 2210.17323.
        """
        return self.moments[name] + ridge(self.moments[name], self.rows[name])


def ridge(moments: Tensor, rows: int) -> Tensor:
    """Return the ridge that `Calibration.regularized` adds to moments of ``rows`` input vectors."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    # A group without inputs gets the ridge of the others, because other samples may have inputs.
    overall = float(diagonal.mean())
    mean = diagonal.mean(-1).clamp_min(overall if overall > SMALLEST else 1.0)
    share = _DAMPING + min(1.0, _SAMPLING * moments.shape[-1] / rows)
    return share * mean[..., None, None] * torch.eye(moments.shape[-1])


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    output: Callable[[Any, Any], Any] | None = None,
) -> Calibration:
    """Measure which weights of a model, and which of their inputs, matter to its output.

    Inputs are measured, by their second moments, of weights that `tersor.compress` would factor in
    Linear, Conv1d, Conv2d and Conv3d, LSTM, GRU, RNN and their cells, MultiheadAttention and
    Bilinear, and in Hugging Face's Conv1D, except for rows longer than 4096. Embeddings are not
    among them: what reaches those is no vector. Each weight takes 4 m² bytes, where m is the length
    of its rows. Vectors of padding tokens count like others: batches of texts of about one length
    are better.

    The importance of each weight is measured with four of the batches, chosen at random, so that
    small batches save time: by backward passes, or, if the model has batch normalisation, by adding
    noise to one weight at a time and comparing the output of the model with the original output. If
    the model returns ``logits``, their errors count by the probabilities that they change.

    Parameters
    ----------
    model
        Model to measure. It runs in evaluation mode without gradients, on its device, and is not
        changed.
    loader
        Yields batches. A tensor is the model's argument. Of a tuple or list, as many items are
        passed as ``forward`` takes, nested or not, so that only the images of (images, labels) are
        passed. A mapping, alone or as the first item, a dataclass or a named tuple is passed by
        name, without ``labels``. Encoder-decoder models get ``labels`` if they have no other inputs
        of their decoder. Give dicts if the last item could be either labels or an argument, since
        integers are refused in this case.
    samples
        Number of samples after which to stop, at the end of a batch. The default is to stop at the
        end of the loader.
    output
        Function of the model's return value and the batch, which returns the tensor or tensors that
        matter. By default all floating-point tensors in the return value count alike.

    Returns
    -------
    Calibration
        Moments, importance, and the names of weights without them.

    Raises
    ------
    InputError
        If there are no batches, if the model cannot be called with them, if the last item of a
        batch may be either labels or an argument, or if activations are NaN or infinite.

    Warns
    -----
    UserWarning
        If weights saw fewer input vectors than they have inputs, so that more samples would help.
        If the batches say nothing about some weights, whose names are in ``unseen``.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU())
    >>> calibration = tersor.calibrate(model, [torch.randn(100, 32)])
    >>> calibration.moments["0.weight"].shape
    torch.Size([32, 32])
    """
    _check_arguments(model, loader, samples)
    moments, looks, skipped = _prepare(model)
    seen, tried, chance = 0, list[Any](), random.Random(0)
    with shown("calibrating") as progress, torch.no_grad():
        with observing(model, looks, after=True):
            for number, batch in enumerate(batches_of(loader), start=1):
                _sample(tried, batch, number, chance)
                seen += call(model, batch, number)[1]
                done = _share_done(seen, samples, number, loader)
                progress(f"batch {number}", _MEASURING * done)
                if samples is not None and seen >= samples:
                    break
        if not seen:
            raise InputError(f"the loader is empty; {NEEDED} (a generator can be used only once)")
        for name in [name for name, moment in moments.items() if not moment.rows]:
            skipped[name] = NOT_CALLED
            del moments[name]
        means = {name: _checked(name, moment.mean()) for name, moment in moments.items()}
        rows = {name: moment.rows for name, moment in moments.items()}
        _warn_of_few(moments)
        first = {name: sites[0] for name, sites in _factored_weights(model).items()}
        turned = tuple(n for n in means if inputs_first(first[n].module))
        found = Calibration(means, seen, rows, skipped, inputs_first=turned)
        weights = {n: s.weight for n, s in first.items() if isinstance(s.weight, nn.Parameter)}

        def told(message: str, done: float) -> None:
            progress(message, _MEASURING + (1 - _MEASURING) * done)

        importance, idle = importances(model, weights, found, _calls(tried, output), told)
    found = replace(found, importance=importance)
    unseen = unseen_weights(found, idle, all_tried=number <= _TRIED)
    warn_of_unseen(unseen)
    known = {n: v for n, v in importance.items() if unseen.get(n, UNUSED) == UNUSED}
    return replace(found, importance=known, unseen=unseen)


def _sample(kept: list[Any], batch: Any, number: int, chance: random.Random) -> None:
    """Keep some of the batches so far, each with equal probability (Vitter's algorithm R)."""
    if len(kept) < _TRIED:
        kept.append(batch)
    elif (place := chance.randrange(number)) < _TRIED:
        kept[place] = batch


def _calls(
    batches: Sequence[Any], output: Callable[[Any, Any], Any] | None
) -> list[Callable[[nn.Module], Any]]:
    """Return one function per batch, which calls a model with it and returns what matters."""

    def called(model: nn.Module, batch: Any, number: int) -> Any:
        returned, _ = call(model, batch, number)
        if output is None:
            return returned
        with explained("the function 'output'", _OUTPUT):
            return output(returned, batch)

    return [partial(called, batch=b, number=n) for n, b in enumerate(batches, start=1)]


def _check_arguments(model: nn.Module, loader: Iterable[Any], samples: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"an nn.Module is needed to calibrate, got a {type(model).__name__}")
    check_model(model)
    check_loader(loader)
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
    """Return empty moments by name, functions that fill them, and the weights without, and why."""
    moments: dict[str, Moment] = {}
    filled: dict[tuple[nn.Module, str], str] = {}
    skipped: dict[str, str] = {}
    for name, sites in _factored_weights(model).items():
        reason = reason_to_skip(sites)
        if reason is not None:
            skipped[name] = reason
            continue
        module, _, weight = sites[0]
        moments[name] = Moment(groups_of(sites), inputs_of_layer(module, weight.shape))
        filled |= {(site.module, site.attribute): name for site in sites}

    def look(module: nn.Module) -> Look:
        return partial(_look, moments, filled, module)

    above = callers(model)
    watched = [above.get(module, module) for module, _ in filled]
    return moments, {module: look(module) for module in watched}, skipped


def _factored_weights(model: nn.Module) -> dict[str, list[Site]]:
    """Return all uses of each weight that compression would factor, by the weight's first name."""
    uses: dict[Weight, dict[str, Site]] = {}
    for name, site in find_sites(model).items():
        uses.setdefault(site.weight, {})[name] = site
    found = {next(iter(sites)): list(sites.values()) for sites in uses.values()}
    return {
        name: sites
        for name, sites in found.items()
        if reason_to_keep(name, getattr(sites[0].module, sites[0].attribute)) is None
    }


def _look(
    moments: Mapping[str, Moment],
    filled: Mapping[tuple[nn.Module, str], str],
    module: nn.Module,
    *args: Any,
    **kwargs: Any,
) -> None:
    for owner, attribute, x in inputs_of(module, *args, **kwargs):
        name = filled.get((owner, attribute))
        if name is None:
            continue
        if not bool(x.isfinite().all()):
            raise InputError(
                f"inputs of the module of {name!r} are NaN or infinite; check the batches and the "
                "model"
            )
        moments[name].add(owner, x)


def _share_done(seen: int, samples: int | None, batches: int, loader: Iterable[Any]) -> float:
    """Return the share of the samples or batches that is done, or 0 if the end is unknown."""
    if samples is not None:
        return min(1.0, seen / samples)
    return batches / len(loader) if isinstance(loader, Sized) and len(loader) else 0.0
