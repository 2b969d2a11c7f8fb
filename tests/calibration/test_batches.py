# SPDX-License-Identifier: Apache-2.0
"""What models are called with for the batches of a loader."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import tersor
from tersor import InputError
from tersor.calibration.samples import arguments, calls_of, mapped, tensors_in
from tersor.training.batches import Batch

X, STATE, LABELS = torch.randn(40, 16), torch.randn(40, 16), torch.arange(40)
XY, XS = namedtuple("XY", "image label"), namedtuple("XS", "x state")


@dataclass(frozen=True)
class Record:
    x: Tensor
    state: Tensor


def taking(signature: str) -> nn.Module:
    """A model whose forward has a signature, and returns what it got."""
    names = [part.split("=")[0].strip() for part in signature.split(",")]
    given = ", ".join(n.lstrip("*") for n in names if n not in ("*", "/"))
    scope: dict = {}
    exec(f"def forward(self, {signature}): return ({given},)", scope)
    return type("Model", (nn.Module,), {"forward": scope["forward"]})()


def passed(signature: str, batch: object, labelled: bool = True) -> object:
    model = taking(signature)
    args, kwargs = arguments(model, batch, labelled=labelled)
    return model(*args, **kwargs)


def same(found: object, wanted: object) -> bool:
    """Whether two nested things hold the same tensors."""
    if isinstance(wanted, tuple | list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found is wanted or (not isinstance(wanted, Tensor) and found == wanted)


PAIR = (STATE, STATE)
CASES = [
    ("x", X, (X,)),
    ("x", [X], (X,)),
    ("x", (X, LABELS), (X,)),
    ("x", (X, LABELS, "name"), (X,)),
    ("x, state=None", X, (X, None)),
    ("x, state=None", (X,), (X, None)),
    ("x, state=None", (X, PAIR), (X, PAIR)),
    ("x, state=None", (X, {"h": STATE}), (X, {"h": STATE})),
    ("x, state=None", (X, None), (X, None)),
    ("x, state=None", (X, STATE, LABELS), (X, STATE)),
    ("x, state=None", (X, LABELS, LABELS), (X, LABELS)),
    ("x, state=None", {"x": X, "state": LABELS}, (X, LABELS)),
    ("x, state=None", Record(X, STATE), (X, STATE)),
    ("x, state=None", XS(X, LABELS), (X, LABELS)),
    ("x, state", XY(X, LABELS), (X, LABELS)),
    ("x", XY(X, LABELS), (X,)),
    ("x, y", (X, LABELS), (X, LABELS)),
    ("x, labels=None", (X, LABELS), (X, None)),
    ("x, labels=None", {"x": X, "labels": LABELS}, (X, None)),
    ("x, labels=None, state=None", (X, STATE), (X, None, None)),
    ("x, labels", {"x": X, "labels": LABELS}, (X, LABELS)),
    ("x, *, state=None", (X, STATE), (X, None)),
    ("x, *, state=None", {"x": X, "state": STATE}, (X, STATE)),
    ("*xs", (X, PAIR), ((X, PAIR),)),
    ("**named", {"x": X, "labels": LABELS}, ({"x": X},)),
    ("**named", UserDict(x=X), ({"x": X},)),
    ("x, **named", MappingProxyType({"x": X, "z": STATE}), (X, {"z": STATE})),
    ("x, state=None", ({"x": X, "state": STATE}, LABELS), (X, STATE)),
    ("sample", ({"x": X, "labels": LABELS},), ({"x": X, "labels": LABELS},)),
    ("sample", ({"x": X, "labels": LABELS}, LABELS), ({"x": X, "labels": LABELS},)),
    ("x, decoder_input_ids=None, labels=None", {"x": X, "labels": LABELS}, (X, None, LABELS)),
    (
        "x, decoder_input_ids=None, labels=None",
        {"x": X, "decoder_input_ids": STATE, "labels": LABELS},
        (X, STATE, None),
    ),
]


@pytest.mark.parametrize("signature, batch, wanted", CASES)
def test_batches_are_passed_as_far_as_forward_takes_them(signature, batch, wanted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(passed(signature, batch), wanted)


@pytest.mark.parametrize("signature", ["x, state=None", "x=None, state=None", "*xs"])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_what_may_be_labels_or_an_argument_is_refused(signature, kind):
    with pytest.raises(InputError, match=r"are they labels\? give dicts, such as \{.*leave"):
        passed(signature, (X, LABELS.to(kind)))
    assert passed(signature, (X, LABELS), labelled=False)


@pytest.mark.parametrize("item", [STATE, STATE.bool(), STATE.to(torch.complex64)])
def test_what_may_be_a_target_is_passed_and_said(item):
    with pytest.warns(UserWarning, match=r"passed as its argument 'state'; if it is a target"):
        assert same(passed("x, state=None", (X, item)), (X, item))


def test_wrapped_models_take_what_the_model_takes():
    bare = nn.Linear(16, 20)
    for model in (
        nn.DataParallel(bare),
        torch.compile(bare),
        nn.DataParallel(nn.DataParallel(bare)),
    ):
        assert same(arguments(model, (X, LABELS)), ((X,), {}))


def test_packed_sequences_are_one_argument():
    packed = pack_sequence([torch.randn(3, 8), torch.randn(2, 8)])
    lstm = nn.LSTM(8, 16)
    for batch in (packed, [packed], (packed, None), (packed, (torch.zeros(1, 2, 16),) * 2)):
        with torch.no_grad():
            (call,) = calls_of([batch])
            assert isinstance(call(lstm)[0][0], PackedSequence)
    assert isinstance(mapped(lambda v: v.to("cpu"), [packed])[0], PackedSequence)


def test_tensors_are_moved_however_they_are_nested():
    """To the meta device, which is there on all machines."""
    model = taking("x, a, b, c, d, e, f, g")
    model.weight = nn.Parameter(torch.zeros(1, device="meta"))
    moving = SimpleNamespace(to=lambda device: f"on {device}")
    batch = (
        *(X, (STATE, [STATE]), {"deep": {"x": (X,)}}, OrderedDict(x=X), UserDict(x=X)),
        *(XS(X, 5), Record(X, STATE), MappingProxyType({"x": X, "moving": moving})),
    )
    kept = copy.copy(batch)
    (call,) = calls_of([batch])
    found, count = call(model)
    assert count == 40 and all(t.device.type == "meta" for t in tensors_in(found))
    assert len([*tensors_in(found)]) == len([*tensors_in(batch)]) == 10
    assert [type(v) for v in found[:-1]] == [type(v) for v in batch[:-1]]
    assert found[5].state == 5 and found[7]["moving"] == "on meta"
    assert same(batch, kept) and all(t.device.type == "cpu" for t in tensors_in(batch))


# --- every function that takes batches


class Cell(nn.Module):
    """A weight that the state alone reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.input, self.hidden = (
            nn.BatchNorm1d(16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> Tensor:
        y = self.norm(self.input(x))
        return y if state is None else y + self.hidden(state[0])


def cell() -> Cell:
    torch.manual_seed(0)
    model = Cell()
    with torch.no_grad():
        model(10 * X, (STATE,))
    return model.eval()


BATCHES = [(X, (STATE,)), {"x": X, "state": [STATE]}, XS(X, (STATE,))]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_the_state_reaches_its_weight_wherever_batches_are_given(batch):
    dense, seen = cell(), []
    inputs = [batch] if isinstance(batch, dict) else batch

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())

    dense.hidden.register_forward_pre_hook(look)
    model = copy.deepcopy(dense)
    found = tersor.calibrate(dense, [batch])
    torch.testing.assert_close(found.moments["hidden.weight"], STATE.T @ STATE / 40)
    tersor.compress(model, ratio=1.5, calibration=found)
    for use in (
        lambda: tersor.match_normalization(model, dense, [batch]),
        lambda: tersor.reconstruct(model, dense, [batch]),
        lambda: tersor.fold_normalization(copy.deepcopy(model), *inputs),
        lambda: tersor.optimize(copy.deepcopy(model), inputs=batch),
    ):
        seen.clear()
        use()
        assert seen and all(torch.equal(x, STATE) for x in seen)


def test_fine_tuning_passes_the_state():
    pytest.importorskip("accelerate", reason="fine-tuning needs its extra")
    dense, seen = cell(), []
    dense.hidden.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=1.5)
    for batch in ((X, (STATE,), LABELS % 16), {"x": X, "state": (STATE,), "labels": LABELS % 16}):
        tersor.finetune(model, [batch], epochs=1)
    for batch in (BATCHES[1], {"x": X, "state": (STATE,), "labels": LABELS}):
        tersor.finetune(model, [batch], teacher=dense, epochs=1)
    assert len(seen) == 6 and all(torch.equal(x, STATE) for x in seen)


@pytest.mark.parametrize(
    "signature, item, labelled, args, targets",
    [
        ("x", (X, LABELS), True, (X,), LABELS),
        ("x", (X, LABELS), False, (X,), LABELS),
        ("x", X, False, (X,), None),
        ("x", [X], False, (X,), None),
        ("x, y", (X, STATE), False, (X, STATE), None),
        ("x, y", (X, STATE, LABELS), False, (X, STATE), LABELS),
        ("x, y=None", (X, STATE, LABELS), True, (X, STATE), LABELS),
        ("x, y=None", (X, LABELS), False, (X,), LABELS),
    ],
)
def test_what_fine_tuning_takes_for_targets(signature, item, labelled, args, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(Batch.of(item, taking(signature), labelled=labelled), (args, {}, targets))


def test_targets_that_may_be_an_argument_are_said():
    with pytest.warns(UserWarning, match="taken for targets, which a teacher makes needless"):
        Batch.of((X, STATE), taking("x, state=None"), labelled=False)
    for item in (X, [X]):
        with pytest.raises(InputError, match=r"batches \(inputs, ..., targets\)"):
            Batch.of(item, taking("x"))


def test_parts_of_nested_batches():
    batch = Batch((X, (STATE, torch.tensor(3))), {"more": {"y": STATE}}, LABELS)
    (x, (state, number)), more, labels = batch.part(1, 4, torch.device("cpu"))
    for found, whole in ((x, X), (state, STATE), (more["more"]["y"], STATE), (labels, LABELS)):
        assert torch.equal(found, whole[10:20])
    assert number == 3
    with pytest.raises(InputError, match=r"a batch of 40 samples holds \(2, 40\) too, which 4"):
        Batch((X, torch.zeros(2, 40)), {}, LABELS).part(1, 4, torch.device("cpu"))
    with pytest.raises(InputError, match="a batch of 40 cannot be shared by 3 processes"):
        batch.part(1, 3, torch.device("cpu"))
