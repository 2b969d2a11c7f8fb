"""Models and loaders that a command names as ``module:callable``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from tersor.calibration import Calibration, calibrate
from tersor.errors import InputError, explained
from tersor.plan.classify import reason_to_keep
from tersor.storage.checkpoint import Source, shared

Value = TypeVar("Value")


def calibrate_source(source: Source, model: str | None, loader: str | None) -> Calibration:
    """Calibrate the model of a checkpoint.

    Parameters
    ----------
    source
        The tensors of the checkpoint, which are loaded into the model.
    model, loader
        ``module:callable`` of what returns the model and the batches; both are needed.

    Returns
    -------
    Calibration
        By the names in the checkpoint.

    Raises
    ------
    InputError
        If one of them is missing, cannot be imported, raises or returns something else, or if the
        checkpoint does not fit the model.
    """
    if model is None or loader is None:
        given, missing = ("--calibrate", "--model") if model is None else ("--model", "--calibrate")
        raise InputError(f"{given} is given without {missing}; calibration needs both of them")
    module = call("--model", model)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"--model {model} returned a {type(module).__name__}; an nn.Module is needed"
        )
    batches = call("--calibrate", loader)
    if not isinstance(batches, Iterable):
        raise InputError(
            f"--calibrate {loader} returned a {type(batches).__name__}; an iterable of batches is "
            "needed, such as a list or a DataLoader"
        )
    load_weights(module, source)
    return _for_checkpoint(calibrate(module, batches), module, source)


def call(option: str, reference: str) -> Any:
    """Import ``module:callable``, from the current folder first, and call it without arguments."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise InputError(
            f"{option} {reference!r} is not of the form module:callable, such as net:make for the "
            "function make in net.py"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:  # it stays there: what is called may import more, later
        sys.path.insert(0, folder)
    with explained(
        f"{option} {reference}: the import of {module!r}",
        f"a module in {folder} or an installed one is needed, without .py",
    ):
        target: Any = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(target, part):
            raise InputError(f"{option} {reference}: there is no {part!r} in {target!r}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(
            f"{option} {reference} is a {type(target).__name__}; a function or class is needed, "
            "which is called without arguments"
        )
    with explained(f"{option} {reference}", "it has to work when called without arguments"):
        return target()


def load_weights(model: nn.Module, source: Source) -> None:
    """Load a checkpoint, which may have more tensors than the model, and lack integers.

    Those are counters and tables of positions, which versions of a model differ in; what the model
    starts with is as good.

    Raises
    ------
    InputError
        If shapes differ, or a floating-point tensor of the model is not in the checkpoint, under
        none of its names.
    """
    try:
        found = model.load_state_dict({n: source.load(n) for n in source.names}, strict=False)
    except RuntimeError as error:  # its message lists the shapes, over several lines
        raise InputError(f"the checkpoint does not fit: {' '.join(str(error).split())}") from None
    tied = shared(_tensors(model))
    present = {tied.get(name, name) for name in source.names}
    real = {name for name, tensor in _tensors(model).items() if tensor.is_floating_point()}
    missing = [n for n in found.missing_keys if n in real and tied.get(n, n) not in present]
    if missing:
        raise InputError(
            f"the checkpoint does not fit a {type(model).__name__}: it lacks {_some(missing)}, and "
            f"has {_some(found.unexpected_keys) or 'no more'} that the model lacks; give the "
            "architecture that was saved"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _for_checkpoint(calibration: Calibration, model: nn.Module, source: Source) -> Calibration:
    """Moments by the names in the checkpoint, which may have any names of a tied weight."""
    known = _tensors(model)
    tied = shared(known)

    def rename(values: Mapping[str, Value]) -> dict[str, Value]:
        return {n: values[tied.get(n, n)] for n in source.names if tied.get(n, n) in values}

    unknown = [
        n for n in source.names if n not in known and reason_to_keep(n, source.load(n)) is None
    ]
    return replace(
        calibration,
        moments=rename(calibration.moments),
        rows=rename(calibration.rows),
        skipped=rename(calibration.skipped)
        | dict.fromkeys(unknown, "the model has no such weight"),
    )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
