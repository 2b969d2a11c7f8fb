# SPDX-License-Identifier: Apache-2.0
"""Each class of `torch.nn` with parameters: saved in every way, loaded anywhere, and used."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from cases import BASES, CASES, Case, Stack, owners
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

import tersor
from tersor.errors import InputError
from tersor.inference.optimize import Mode
from tersor.nn import HeldWeight

WAYS = ("data-free", "calibrated", "lossless")


def test_every_class_of_torch_with_parameters_has_a_case():
    """A class that a new torch brings is to be added to the cases."""
    assert owners() - BASES <= {case.kind.__name__ for case in CASES.values()}


def build(case: Case, seed: int, kind: type[nn.Module] | None = None) -> Stack:
    """A model with random parameters and buffers, all of them told by the seed."""
    torch.manual_seed(seed)
    model = Stack(case.make(kind or case.kind)).eval()
    if isinstance(model.inner, LazyModuleMixin):
        call(model, case)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1 if "var" in name else -0.5, 0.6)
    return model


@torch.no_grad()
def call(model: nn.Module, case: Case) -> Tensor:
    return model(*case.inputs)


class Saved:
    """A model, the file that it was saved to, and what it computes."""

    def __init__(self, name: str, way: str, folder: Path) -> None:
        self.case = CASES[name]
        self.dense, self.model = build(self.case, 0), build(self.case, 0)
        self.batch = dict(zip(("first", "second", "third"), self.case.inputs, strict=False))
        folder.mkdir()
        self.path = folder / "model.tersor"
        if way != "lossless":
            seen = tersor.calibrate(self.model, [self.batch]) if way == "calibrated" else None
            tersor.compress(self.model, bits_per_weight=8, calibration=seen)
        tersor.save(self.model, self.path, lossless=way == "lossless")
        self.state = copy.deepcopy(self.model.state_dict())
        self.output = call(self.model, self.case)  # an embedding's max_norm changes the weight

    def load(self, seed: int = 1) -> Stack:
        return tersor.load(self.path, build(self.case, seed))


@cache
def saved_as(name: str, way: str, folder: Path) -> Saved:
    """Made once in each process, in whichever order tests come."""
    if "transformers" in name:
        pytest.importorskip("transformers", reason="pip install transformers")
    return Saved(name, way, folder / f"{list(CASES).index(name)}-{way}")


SLOW = {"calibrated": pytest.mark.slow}

ALL = [
    pytest.param((name, way), marks=SLOW.get(way, ()), id=f"{name} | {way}")
    for name in CASES
    for way in WAYS
]


@pytest.fixture(params=ALL)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_as(*request.param, tmp_path_factory.getbasetemp())


def on_meta(case: Case) -> Stack:
    model = build(case, 1).to("meta")
    if isinstance(model.inner, nn.RNNBase):
        model.inner._init_flat_weights()
    return model


def subclassed(case: Case) -> Stack:
    if not isinstance(case.make(case.kind), case.kind) or issubclass(case.kind, LazyModuleMixin):
        pytest.skip("its case makes a class of its own")
    return build(case, 1, type("Own", (case.kind,), {}))


TARGETS: dict[str, Callable[[Case], Stack]] = {
    "of another seed": lambda case: build(case, 1),
    "on the meta device": on_meta,
    "of a subclass": subclassed,
}


def is_loaded(model: nn.Module, saved: Saved) -> bool:
    now, wanted = model.state_dict(), saved.state
    assert list(now) == list(wanted)
    assert all(now[n].dtype == wanted[n].dtype and torch.equal(now[n], wanted[n]) for n in wanted)
    return torch.equal(call(model, saved.case), saved.output)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_what_is_loaded_computes_what_was_saved(saved: Saved, target: Callable[[Case], Stack]):
    model = target(saved.case)
    assert model.inner.training is False
    assert is_loaded(tersor.load(saved.path, model), saved)


def test_it_may_be_loaded_twice(saved: Saved):
    assert is_loaded(tersor.load(saved.path, saved.load()), saved)


def test_it_may_be_loaded_by_assignment(saved: Saved):
    model = tersor.load(saved.path, build(saved.case, 1).double(), assign=True)
    assert is_loaded(model, saved)


@pytest.mark.slow
def test_its_state_goes_into_another(saved: Saved):
    model = saved.load()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.load_state_dict(saved.load().state_dict())
    assert is_loaded(model, saved)


def test_copies_compute_the_same(saved: Saved):
    model = saved.load()
    assert is_loaded(copy.deepcopy(model), saved)
    case = saved.case
    assert torch.equal(call(pickle.loads(pickle.dumps(model)), case), saved.output)


def attempt(model: nn.Module, inputs: tuple[Any, ...]) -> Tensor | str:
    """The output, or how torch refuses to compute it in this type."""
    try:
        with torch.no_grad():
            return model(*inputs)
    except RuntimeError as error:
        return str(error)


def same(a: Tensor | str, b: Tensor | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_compute_the_same(saved: Saved, dtype: torch.dtype):
    """As the dense model with the same weights does, or is refused with the same words."""
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in saved.case.inputs)
    dense = build(saved.case, 1)
    dense.load_state_dict(tersor.load_state_dict(saved.path))
    wanted = attempt(dense.to(dtype), inputs)
    assert same(attempt(saved.load().to(dtype), inputs), wanted)


@pytest.mark.slow
def test_autocast_computes_the_same(saved: Saved):
    dense = build(saved.case, 1)
    dense.load_state_dict(tersor.load_state_dict(saved.path))
    model = saved.load()  # not below, where torch remembers weights as they were before
    with torch.autocast("cpu", torch.bfloat16):
        wanted = attempt(dense, saved.case.inputs)
        assert same(attempt(model, saved.case.inputs), wanted)


def is_compressed(model: nn.Module) -> bool:
    return any(isinstance(module, HeldWeight) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(Mode))
def test_optimized_models_compute_nearly_the_same(saved: Saved, mode: Mode):
    model = saved.load()
    if not is_compressed(model):
        with pytest.raises(InputError, match="holds no factors"):
            tersor.optimize(model, mode)
        return
    tersor.optimize(model, mode)
    torch.testing.assert_close(
        call(model, saved.case),
        saved.output,
        rtol=0.03,
        atol=0.03 * float(saved.output.abs().max()),
    )


@pytest.mark.slow
def test_reconstructed_models_are_what_is_saved(saved: Saved, tmp_path: Path):
    model = saved.load()
    if not is_compressed(model):
        with pytest.raises(InputError, match="holds no factors"):
            tersor.reconstruct(model, saved.dense, [saved.batch])
        return
    tersor.reconstruct(model, saved.dense, [saved.batch])
    tersor.save(model, tmp_path / "model.tersor")
    back = tersor.load(tmp_path / "model.tersor", build(saved.case, 1))
    assert torch.equal(call(back, saved.case), call(model, saved.case))


@pytest.mark.slow
def test_trained_models_are_what_is_saved(saved: Saved, tmp_path: Path):
    model = saved.load()
    before = call(model, saved.case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(*saved.case.inputs).float().square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    optimizer.step()
    if is_compressed(model):
        tersor.project(model, lagrangian=1e-9)
    tersor.save(model, tmp_path / "model.tersor", lossless=True)
    back = tersor.load(tmp_path / "model.tersor", build(saved.case, 1))
    assert torch.equal(call(back, saved.case), call(model, saved.case))
    assert not torch.equal(call(model, saved.case), before)


@pytest.fixture(params=CASES)
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_as(request.param, "data-free", tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_exported_programs_compute_the_same(compressed: Saved):
    """Or torch cannot export the dense model either."""
    case = compressed.case
    try:
        torch.export.export(compressed.dense, case.inputs)
    except Exception:
        pytest.skip("torch does not export the dense model")
    with torch.no_grad():
        program = torch.export.export(compressed.load(), case.inputs).module()
        torch.testing.assert_close(program(*case.inputs), compressed.output)


@pytest.mark.slow
def test_compiled_models_compute_the_same(compressed: Saved):
    torch._dynamo.reset()
    compiled = torch.compile(compressed.load(), backend="aot_eager")
    torch.testing.assert_close(call(compiled, compressed.case), compressed.output)
