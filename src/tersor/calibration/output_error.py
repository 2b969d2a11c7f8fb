"""How far the outputs of a model are from those of the dense one, on batches held out for that.

Calibration and reconstruction fit a model to their batches: what it is worth shows on others.
`held_out` leaves about an eighth of the samples to `output_error`, always the same ones.
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
"""One of so many batches, or samples, is held out."""


def output_error(model: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> float:
    """Squared error of a model's outputs, as a share of their energy in the dense model.

    Its square root is how much they differ: 0.001 is 3.2 %.

    Parameters
    ----------
    model, dense
        Models that take the same batches, run in evaluation mode; unchanged.
    batches
        As in `tersor.calibrate`; best those that were held out from it.

    Returns
    -------
    float
        Mean over all floating-point tensors in what the models return, each of which counts alike.

    Raises
    ------
    InputError
        If there are no batches, the models cannot be called with them, or they return no
        floating-point tensors, or such of different shapes.

    Examples
    --------
    >>> used, held = tersor.held_out(batches)
    >>> tersor.compress(model, ratio=20, calibration=tersor.calibrate(model, used))
    >>> error = tersor.output_error(model, dense, held)
    >>> print(f"outputs differ by {100 * error**0.5:.1f} %")
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
    """Batches to calibrate with, and others to measure the error of the output with.

    Parameters
    ----------
    batches
        As in `tersor.calibrate`.

    Returns
    -------
    list, list
        The second has every eighth batch. Of fewer than eight it has the last samples of the last
        one, an eighth of all; if its tensors are not of one length, that batch, or nothing if it is
        the only one.
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
    """Some of the samples of a batch."""
    return mapped(lambda value: value[part] if value.ndim else value, batch)


def outputs_in(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in what a model returns, but for a loss, which labels decide."""
    if isinstance(value, Mapping):
        value = [item for name, item in value.items() if name != "loss"]
    return (tensor for tensor in tensors_in(value) if tensor.is_floating_point())


def share(found: Tensor, wanted: Tensor) -> float:
    """Squared error of an output, as a share of its energy; 1 if that is no number.

    Elements that are equal, infinite ones too, have no error, and infinite ones no energy.
    """
    finite = torch.where(wanted.isinf(), 0, wanted)
    energy = float(torch.linalg.vector_norm(finite, dtype=torch.float64))
    difference = torch.where(found == wanted, 0, found - wanted)
    error = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    value = (error / energy) ** 2 if energy else float(error > 0)
    return value if math.isfinite(value) else 1.0  # as if nothing were left of the output


def mean_share(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Mean of `share` over outputs."""
    shares = [share(a, b) for a, b in zip(found, wanted, strict=True)]
    return sum(shares) / len(shares)
