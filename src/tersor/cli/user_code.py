# SPDX-License-Identifier: Apache-2.0
"""Find and call the models and loaders that a user names as ``module:callable``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from tersor.calibration import samples
from tersor.calibration.calibrate import Calibration
from tersor.compression.quality import Measure, evaluated
from tersor.errors import InputError, explained
from tersor.nn.load import load_weights, tensors_of
from tersor.storage.archive import Archive
from tersor.storage.checkpoint import Source, shared
from tersor.storage.classify import reason_to_keep

Value = TypeVar("Value")


def batches_of(reference: str) -> list[Any]:
    """Return the batches that ``module:callable`` returns.

    Raises
    ------
    InputError
        If it cannot be imported, raises, or returns something other than batches.
    """
    batches = call("--data", reference)
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise InputError(
            f"--data {reference} returned a {type(batches).__name__}; an iterable of batches "
            "is needed, such as a list or a DataLoader"
        )
    return list(samples.batches_of(batches))


def for_checkpoint(calibration: Calibration, model: nn.Module, source: Source) -> Calibration:
    """Return a calibration with the names of the checkpoint, also those of tied weights.

    Parameters
    ----------
    calibration
        Calibration of the model.
    model
        Model with the weights of the checkpoint.
    source
        Tensors of the checkpoint.
    """
    known = tensors_of(model)
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
        importance=rename(calibration.importance),
        unseen=rename(calibration.unseen),
        inputs_first=tuple(rename(dict.fromkeys(calibration.inputs_first, True))),
        skipped=rename(calibration.skipped)
        | dict.fromkeys(unknown, "the model has no such weight"),
    )


def with_tensors_of(model: nn.Module, source: Source) -> Source:
    """Return a source with the tensors of a model in the place of those of its checkpoint."""
    known = tensors_of(model)

    def load(name: str) -> Tensor:
        tensor = source.load(name)
        return known[name].detach().cpu().to(tensor.dtype) if name in known else tensor

    return replace(source, load=load, view=None)


def model_of(source: Source, reference: str) -> nn.Module:
    """Return the model that ``module:callable`` returns, with the weights of a checkpoint.

    Raises
    ------
    InputError
        If it cannot be imported, raises, or does not return a model, or the checkpoint does not
        fit.
    """
    model = make(reference)
    load_weights(model, source)
    return model


def make(reference: str, option: str = "--model") -> nn.Module:
    """Return the model that the ``module:callable`` of an option returns.

    Raises
    ------
    InputError
        If it cannot be imported, raises, or does not return a model.
    """
    model = call(option, reference)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{option} {reference} returned a {type(model).__name__}; an nn.Module is needed"
        )
    return model


def measure_of(source: Source, model: nn.Module, reference: str) -> Measure:
    """Return a function that evaluates the dense model or an archive with ``module:callable``.

    Parameters
    ----------
    source
        Tensors of the checkpoint.
    model
        Model of these tensors. Each evaluation loads weights into it.
    reference
        ``module:callable`` that takes the model and returns a number, higher for better models.

    Returns
    -------
    Measure
        Function that takes an archive, or None for the dense model. It raises an InputError if the
        user's function raises, or returns anything but a finite number.

    Raises
    ------
    InputError
        If the callable cannot be imported.
    """
    evaluate = find("--eval", reference, "with the model")

    def measure(archive: Archive | None) -> float:
        held = source
        if archive is not None:
            held = Source(list(archive.entries), archive.tensor, archive.source_bytes)
        load_weights(model, held)
        return evaluated(evaluate, model, f"--eval {reference}")

    return measure


def call(option: str, reference: str) -> Any:
    """Return the result of ``module:callable``, called without arguments.

    Raises
    ------
    InputError
        If it cannot be imported, or raises.
    """
    target = find(option, reference, "without arguments")
    with explained(f"{option} {reference}", "it has to work when called without arguments"):
        return target()


def _imported(path: Path) -> ModuleType:
    """Return the module of a file, which may import its neighbours."""
    name = str(path.resolve())  # not the stem, which may be that of another module
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as for each file that ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def find(option: str, reference: str, arguments: str) -> Callable[..., Any]:
    """Return the ``module:callable`` of an option, imported from the current folder first.

    The module may be the path of a file, as in ``folder/net.py:make``.

    Parameters
    ----------
    option
        Option of the command, for messages.
    reference
        Name of the module and of the callable. The callable may be an attribute of an object in the
        module, such as ``net:Net.make``.
    arguments
        Text for messages that says how it will be called, such as "with the model".

    Raises
    ------
    InputError
        If it cannot be imported, or cannot be called.
    """
    module, _, name = reference.rpartition(":")
    if not module or not name:
        raise InputError(
            f"{option} {reference!r} is not of the form module:callable, such as net.py:make or "
            "net:make for the function make in net.py"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:  # it stays in the path: the callable may import more modules later
        sys.path.insert(0, folder)
    needed = f"a file, or a module in {folder} or an installed one is needed"
    with explained(f"{option} {reference}: the import of {module!r}", needed):
        is_path = module.endswith(".py")
        target: Any = _imported(Path(module)) if is_path else importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(target, part):
            raise InputError(f"{option} {reference}: there is no {part!r} in {target!r}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(
            f"{option} {reference} is a {type(target).__name__}; a function or class is needed, "
            f"which is called {arguments}"
        )
    return cast(Callable[..., Any], target)
