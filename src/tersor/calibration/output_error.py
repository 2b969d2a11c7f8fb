# SPDX-License-Identifier: Apache-2.0
"""Measure how far the outputs of a model are from those of the dense model, on held-out batches.

Calibration and reconstruction fit a model to their batches, so that its quality must be measured on
other batches. `held_out` always sets the same samples aside for `output_error`, about an eighth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibration.samples import calls_of, mapped, tensors_in
from tersor.errors import InputError
from tersor.nn.observe import observing

_EVERY = 8
"""One of this many batches, or samples, is held out."""


def output_error(model: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> float:
    """Return the squared error of a model's outputs as a share of the dense outputs' energy.

    The square root of this share is the relative difference of the outputs: 0.001 means 3.2 %.

    Parameters
    ----------
    model, dense
        Models that take the same batches. They run in evaluation mode and are not changed.
    batches
        Batches as in `tersor.calibrate`, preferably those that were held out from calibration.

    Returns
    -------
    float
        Mean over all floating-point tensors that the models return. Each tensor has equal weight
        within its batch, and each batch has equal weight.

    Raises
    ------
    InputError
        If there are no batches, if the models cannot be called with them, if they return no
        floating-point tensors, or if the shapes of their outputs differ.

    Examples
    --------
    >>> from copy import deepcopy
    >>> dense = torch.nn.Linear(64, 64)
    >>> model = deepcopy(dense)
    >>> used, held = tersor.held_out([torch.randn(32, 64) for _ in range(16)])
    >>> report = tersor.compress(model, ratio=5, calibration=tersor.calibrate(model, used))
    >>> error = tersor.output_error(model, dense, held)
    >>> print(f"outputs differ by {100 * error**0.5:.0f} %")
    outputs differ by ... %
    """
    errors: list[float] = []
    with torch.no_grad(), observing(model, {}), observing(dense, {}):
        for call in calls_of(batches):
            found, wanted = ([*outputs_in(call(one)[0])] for one in (model, dense))
            if [x.shape for x in found] != [x.shape for x in wanted]:
                raise InputError(
                    "the two models return outputs of different shapes; give the dense model that "
                    "was compressed"
                )
            if not found:
                raise InputError(
                    "what the model returns holds no floating-point tensors: there is no error to "
                    "be measured"
                )
            errors.append(mean_share(found, [y.to(x) for x, y in zip(found, wanted, strict=True)]))
    return sum(errors) / len(errors)


def held_out(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split batches into those for calibration and those for measuring the error of the output.

    Parameters
    ----------
    batches
        Batches as in `tersor.calibrate`.

    Returns
    -------
    list, list
        Batches for calibration, and held-out batches. Every eighth batch is held out. If there are
        fewer than eight, the last samples of the last batch are held out, about an eighth of all
        samples. If the last batch cannot be split, because its tensors differ in length or hold one
        sample only, the whole batch is held out, unless it is the only one.

    Examples
    --------
    >>> used, held = tersor.held_out([torch.randn(32, 64) for _ in range(16)])
    >>> len(used), len(held)
    (14, 2)
    """
    used, held = list(batches), list(batches[_EVERY - 1 :: _EVERY])
    if held:
        del used[_EVERY - 1 :: _EVERY]
        return used, held
    if not used:
        return [], []
    last = used.pop()
    lengths = {len(tensor) for tensor in tensors_in(last) if tensor.ndim}
    length = lengths.pop() if len(lengths) == 1 else 0
    count = min(max(1, length * (len(used) + 1) // _EVERY), length - 1)
    if count > 0:
        first, rest = (_part(last, part) for part in (slice(length - count), slice(-count, None)))
        return [*used, first], [rest]
    return (used, [last]) if used else ([last], [])


def _part(batch: Any, part: slice) -> Any:
    """Return a slice of the samples of a batch."""
    return mapped(lambda value: value[part] if value.ndim else value, batch)


def outputs_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a model's return value, except ``loss``.

    A loss depends on labels, not only on the model.
    """
    if isinstance(value, Mapping):
        value = [item for name, item in value.items() if name != "loss"]
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point())


def share(found: Tensor, wanted: Tensor) -> float:
    """Return the squared error of an output as a share of its energy, or 1 if it is not finite.

    Equal elements have no error, even if they are infinite. Infinite elements have no energy.
    """
    finite = torch.where(wanted.isinf(), 0, wanted)
    energy = float(torch.linalg.vector_norm(finite, dtype=torch.float64))
    difference = torch.where(found == wanted, 0, found - wanted)
    error = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    value = (error / energy) ** 2 if energy else float(error > 0)
    return value if math.isfinite(value) else 1.0  # as for an output of zeros


def mean_share(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the mean of `share` over outputs."""
    shares = [share(a, b) for a, b in zip(found, wanted, strict=True)]
    return sum(shares) / len(shares)
