# SPDX-License-Identifier: Apache-2.0
"""Compare the outputs of a session of ONNX Runtime with those of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tersor.calibration.samples import tensors_in
from tersor.errors import InputError
from tersor.export.trace import BATCH, Axes, Call, Traced, changed, reason_of

TOLERANCE, TOLERANCE_16 = 1e-3, 5e-2
"""Largest relative errors that are no reason to refuse: of models of 32 bits or more, and of 16."""

_SAMPLES = 3
"""Random samples, if the batch may have any length."""


def check(session: Any, model: nn.Module, traced: Traced) -> tuple[float, tuple[str, ...]]:
    """Return the largest relative error of outputs, for the example and random inputs, and notes.

    The error of an output is its largest difference, divided by its largest absolute value. That of
    an output of integers is the share of those that differ.

    Parameters
    ----------
    session
        Session of the exported model.
    model
        The dense model.
    traced
        The model as it was traced.

    Raises
    ------
    InputError
        If the outputs differ by more than rounding explains, or the session fails.
    """
    error, notes = _error(session, model, traced.call), tuple[str, ...]()
    chance = changed(model, traced.call, lambda old: _random(old, traced.axes))
    try:
        chance.run(model)
    except MemoryError:
        raise
    except Exception as reason:  # the model's own code refuses such values
        notes = (f"random inputs were not compared; the model raised {reason_of(reason)}",)
    else:
        error = max(error, _error(session, model, chance))
    low = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    if error > (TOLERANCE_16 if low else TOLERANCE):
        raise InputError(
            f"outputs of ONNX Runtime differ from those of torch by {error:.1e} of the largest "
            "one; nothing was written. Is the model random, or does it change its own state? With "
            "check=False the folder is written all the same"
        )
    return error, notes


def _random(tensors: list[Tensor], axes: list[Axes]) -> list[Tensor]:
    """Return random tensors of the kind of the given ones, with another number of samples."""
    source = torch.Generator().manual_seed(0)
    found = []
    for x, own in zip(tensors, axes, strict=True):
        shape = [_SAMPLES if own.get(i) == BATCH else n for i, n in enumerate(x.shape)]
        if x.is_floating_point():
            noise = torch.randn(shape, generator=source)
            spread = x.double().std(correction=0) if x.numel() else 1.0
            centre = x.double().mean() if x.numel() else 0.0
            found.append((noise * spread + centre).to(x.dtype))
        else:  # values that the example has: token numbers, masks
            chosen = torch.randint(max(1, x.numel()), shape, generator=source)
            found.append(x.flatten()[chosen] if x.numel() else x)
    return found


def _error(session: Any, model: nn.Module, call: Call) -> float:
    wanted = list(tensors_in(call.run(model)))
    names = [value.name for value in session.get_inputs()]
    fed = {name: _fed(x) for name, x in zip(names, call.tensors, strict=True)}
    try:
        found = session.run_with_ort_values([o.name for o in session.get_outputs()], fed)
    except Exception as error:  # its classes have no common base of their own
        raise InputError(f"ONNX Runtime cannot run the graph: {reason_of(error)}") from error
    if len(found) != len(wanted):
        raise InputError(f"the graph has {len(found)} outputs, the model {len(wanted)}")
    pairs = zip(found, wanted, strict=True)
    return max((_difference(_tensor(a), b) for a, b in pairs), default=0.0)


def _fed(x: Tensor) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.from_dlpack(x.detach().contiguous())


def _tensor(value: Any) -> Tensor:
    return torch.utils.dlpack.from_dlpack(value)


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return float((found != wanted).double().mean())
    a, b = found.double(), wanted.double()
    same = (a == b) | (a.isnan() & b.isnan())  # infinite ones, too
    difference = torch.where(same, 0.0, (a - b).abs())
    if not difference.isfinite().all():
        return float("inf")
    scale = b[b.isfinite()].abs().max() if b.isfinite().any() else torch.tensor(1.0)
    return float(difference.max() / scale.clamp_min(1e-30))
