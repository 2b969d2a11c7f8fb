# SPDX-License-Identifier: Apache-2.0
"""What a model is put through: compressed, saved, loaded into others, compared bit by bit."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from constructs import CONSTRUCTS
from family import Family, arguments, make, outputs
from language import LANGUAGE
from perception import PERCEPTION
from torch import Tensor, nn

import tersor
from tersor.nn import state
from tersor.nn.source import dense

FAMILIES: dict[str, Family] = {**LANGUAGE, **PERCEPTION, **CONSTRUCTS}

Elsewhere = Callable[[str, Path], dict[str, str]]
"""What `loaded` returns, from another process."""


def examine(
    name: str, folder: Path, elsewhere: Elsewhere | None = None, *, calibrated: bool = False
) -> dict[str, Any]:
    """Compress a model of a family, and check all ways to get it back; returns what was measured.

    Raises
    ------
    AssertionError
        If any tensor or output differs from those of the compressed model.
    InputError
        If the family is refused.
    """
    family, path = FAMILIES[name], folder / "model.tersor"
    inputs, original, model = arguments(family), make(family, 0), make(family, 0)
    calibration = tersor.calibrate(model, [inputs]) if calibrated else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = tersor.compress(model, ratio=family.ratio, calibration=calibration)
    told = [str(w.message) for w in caught if "stays as it is" in str(w.message)]
    assert report.factored, "nothing was factored"
    tersor.save(model, path)
    assert path.stat().st_size <= report.source_bytes / family.ratio

    expected = everything(model, inputs)
    back = tersor.load(path, make(family, 1))
    assert everything(back, inputs) == expected
    assert everything(copy.deepcopy(back), inputs) == expected
    if elsewhere is not None:
        assert elsewhere(name, path) == expected
    return {
        "parameters": sum(p.numel() for p in original.parameters()),
        "tensors": len(report.tensors),
        "factored": len(report.factored),
        "bytes": path.stat().st_size,
        "ratio": report.source_bytes / path.stat().st_size,
        "output_error": distance(outputs(model, inputs), outputs(original, inputs)),
        "factored_difference": as_factored(model, inputs),
        "dense_difference": as_dense_tensors(family, path, model, inputs),
        "warning": told[0] if told else None,
    }


def as_factored(model: nn.Module, inputs: dict[str, Any]) -> float:
    """How much outputs differ where weights are multiplied by as they are, packed for inference."""
    packed = copy.deepcopy(model)
    tersor.optimize(packed, mode="factored")
    difference = distance(outputs(packed, inputs), outputs(model, inputs))
    assert difference <= 0.05
    return difference


def as_dense_tensors(family: Family, path: Path, model: nn.Module, inputs: dict[str, Any]) -> float:
    """How much the outputs of a model differ that got the file's dense tensors from torch."""
    weights = tersor.load_state_dict(path)
    found = {name: fingerprint(tensor) for name, tensor in weights.items()}
    assert found == tensors_of(model)
    plain = make(family, 2)
    result = plain.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("_extra_state") for name in result.missing_keys)
    difference = distance(outputs(plain, inputs), outputs(model, inputs))
    assert difference <= family.dense_tolerance
    return difference


def keep_all(name: str, folder: Path) -> None:
    """Check that a file without loss gives another model of the family every bit."""
    family = FAMILIES[name]
    original, inputs = make(family, 0), arguments(family)
    before = everything(original, inputs)
    tersor.save(original, folder / "lossless.tersor", lossless=True)
    back = tersor.load(folder / "lossless.tersor", make(family, 1))
    assert everything(back, inputs) == before
    assert everything(original, inputs) == before


def is_unlike(name: str) -> None:
    """Check that models of two seeds share no tensor, as all comparisons here take for granted."""
    a, b = (state(make(FAMILIES[name], seed)) for seed in (0, 1))
    same = [n for n, t in a.items() if fingerprint(dense(t)) == fingerprint(dense(b[n]))]
    assert not [n for n in same if a[n].dtype.is_floating_point and dense(a[n]).numel()]


def loaded(name: str, path: Path) -> dict[str, str]:
    """`everything` of a model that was made anew and filled from a file."""
    torch.set_num_threads(1)
    model = tersor.load(path, make(FAMILIES[name], 7))
    return everything(model, arguments(FAMILIES[name]))


def everything(model: nn.Module, inputs: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of all that a model returns, and of its tensors."""
    returned = outputs(model, inputs)
    assert returned, "the model returns no tensor"
    return {f"output {i}": fingerprint(t) for i, t in enumerate(returned)} | tensors_of(model)


def tensors_of(model: nn.Module) -> dict[str, str]:
    """Fingerprints of the tensors of a model, dense or factored, by their names."""
    return {name: fingerprint(dense(value)) for name, value in state(model).items()}


def fingerprint(tensor: Tensor) -> str:
    """Hash of shape, type and every bit."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(raw).hexdigest()[:16]}"


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference of two models' outputs, as a share of the largest absolute value."""
    assert len(a) == len(b)
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in pairs)
