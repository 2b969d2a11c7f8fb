# SPDX-License-Identifier: Apache-2.0
"""The driver, from tensors to an archive of the asked size."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from samples import bits, generator, small_state, source_of, to_file_bytes, weights_like_trained

import tersor
from tersor.coding.records import EncodedFactors
from tersor.compression.assembly import survey
from tersor.compression.driver import compress_source
from tersor.compression.fill import MOST_PASSES as MAX_TRIALS
from tersor.compression.overrides import Overrides
from tersor.errors import BudgetError, InputError
from tersor.io import dense_tensors
from tersor.storage import container
from tersor.storage.archive import Plain, Reason
from tersor.storage.checkpoint import Source, open_checkpoint
from tersor.storage.summary import summarize


def passes_of(source, **budget):
    """The archive, and how often the weights were factored."""
    loads = []
    counted = Source(
        source.names,
        lambda name: loads.append(name) or source.load(name),
        source.nbytes,
        source.aliases,
    )
    archive = compress_source(counted, **budget)
    beforehand = 2  # to survey them, and to choose tiles
    return archive, max(loads.count(name) for name in source.names) - beforehand


@pytest.mark.parametrize("ratio", [5, 8, 10, 16, 20])
def test_the_budget_is_filled(ratio):
    source = source_of(weights_like_trained())
    archive, passes = passes_of(source, ratio=ratio)
    size = len(to_file_bytes(archive))
    assert 0.98 * source.nbytes / ratio <= size <= source.nbytes / ratio
    assert passes <= MAX_TRIALS


def test_all_three_budgets_mean_the_same():
    source = source_of(weights_like_trained())
    numel = sum(source.load(n).numel() for n in source.names)
    files = {
        to_file_bytes(compress_source(source, **budget))
        for budget in (
            {"ratio": 10},
            {"target_size": source.nbytes // 10},
            {"bits_per_weight": 8 * (source.nbytes // 10) / numel},
        )
    }
    assert len(files) == 1


def test_more_bytes_give_less_error():
    state = weights_like_trained()
    errors = []
    for ratio in (20, 10, 5):
        dense = dense_tensors(compress_source(source_of(state), ratio=ratio))
        errors.append(sum(float((dense[n] - t).square().sum()) for n, t in state.items()))
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


def model_kinds():
    draw = generator()
    normal = torch.randn(64, 64, generator=draw)
    return {
        "single": {"weight": normal},
        "uniform": {"weight": torch.rand(64, 64, generator=draw) - 0.5},
        "heavy tails": {"weight": normal**5},
        "nearly empty": {"weight": normal * (torch.rand(64, 64, generator=draw) > 0.99)},
        "constant": {"weight": torch.full((64, 64), 0.3)},
        "half": {"a": normal.half(), "b": torch.randn(1000, 7, generator=draw).half()},
        "unequal": {"a": normal * 1e-4, "b": torch.randn(64, 64, generator=draw)},
        "tiny and huge": {"a": normal * 1e-15, "b": torch.randn(64, 64, generator=draw) * 1e15},
        "one row": {"weight": torch.randn(1, 5000, generator=draw)},
        "one column": {"weight": torch.randn(5000, 1, generator=draw)},
        "zero": {"weight": torch.zeros(64, 64)},
    }


@pytest.mark.parametrize("kind", model_kinds())
def test_every_target_is_met_in_a_few_passes(kind):
    """From the smallest possible size to just below the size of the input."""
    source = source_of(model_kinds()[kind])
    least = container.size(container.Archive(survey(source)[0], source.nbytes))
    targets = {least, least + 1, least + 40, source.nbytes // 30, source.nbytes // 6}
    if kind == "single":
        targets |= {source.nbytes - 1}
    for target in sorted(t for t in targets if least <= t < source.nbytes):
        archive, passes = passes_of(source, target_size=target)
        assert len(to_file_bytes(archive)) <= target
        assert passes <= MAX_TRIALS
        assert all(t.isfinite().all() for t in dense_tensors(archive).values())


@pytest.mark.parametrize("kind", model_kinds())
def test_lossless_keeps_every_bit_in_fewer_bytes(kind):
    state = model_kinds()[kind] | {"nan.bias": torch.tensor([torch.nan, -0.0, 0.1])}
    seen = []
    archive = compress_source(source_of(state), lossless=True, progress=lambda *a: seen.append(a))
    assert [name for name, _ in seen] == [f"reading {name}" for name in state]
    assert {n: bits(t) for n, t in dense_tensors(archive).items()} == {
        n: bits(t) for n, t in state.items()
    }
    assert container.size(archive) < 300 + sum(t.nbytes for t in state.values())


def test_lossless_contradicts_budgets_and_calibration():
    source = source_of({"w": torch.randn(20, 20)})
    for budget in ({"ratio": 2}, {"target_size": 0}, {"bits_per_weight": 3}):
        with pytest.raises(InputError, match="give either lossless or one of ratio"):
            compress_source(source, lossless=True, **budget)
    calibration = tersor.Calibration({"w": torch.eye(20)}, 9, {"w": 9})
    with pytest.raises(InputError, match="calibration has no use"):
        compress_source(source, lossless=True, calibration=calibration)


@pytest.mark.parametrize("kind", model_kinds())
def test_the_smallest_size_is_named_and_works(kind):
    source = source_of(model_kinds()[kind] | {"bias": torch.randn(50)})
    with pytest.raises(BudgetError, match="10 bytes are too few: the smallest possible") as caught:
        compress_source(source, target_size=10)
    least = int(str(caught.value).partition("file has ")[2].split()[0])
    assert len(to_file_bytes(compress_source(source, target_size=least))) <= least
    with pytest.raises(BudgetError, match=f"file has {least} bytes"):
        compress_source(source, target_size=least - 1)


def test_fine_budgets_have_no_visible_error():
    state = weights_like_trained(layers=1)
    report = summarize(compress_source(source_of(state), ratio=2.8))
    assert all(t.snr > 45 for t in report.factored)


def test_what_is_kept():
    state = small_state() | {"big.weight": torch.randn(60, 80)}
    archive = compress_source(source_of(state, unchanged=frozenset({"conv.weight"})), ratio=6)
    reasons = {
        n: e.content.reason for n, e in archive.entries.items() if isinstance(e.content, Plain)
    }
    assert reasons == {
        "conv.weight": Reason.LEFT_DENSE,
        "conv.bias": Reason.VECTOR,
        "norm.num_batches_tracked": Reason.NOT_FLOAT,
        "empty": Reason.EMPTY,
        "head.scale": Reason.VECTOR,
    }
    dense = dense_tensors(archive)
    assert list(dense) == list(state)
    assert {n: (t.shape, t.dtype) for n, t in dense.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    for name in ("conv.weight", "norm.num_batches_tracked", "empty", "head.scale"):
        assert bits(dense[name]) == bits(state[name])
    assert torch.equal(dense["conv.bias"], state["conv.bias"].bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_are_given_back(dtype):
    state = {n: t.to(dtype) for n, t in weights_like_trained(layers=1).items()}
    ratio = 5 * dtype.itemsize / 4
    dense = dense_tensors(compress_source(source_of(state), ratio=ratio))
    assert all(t.dtype == dtype for t in dense.values())
    for name, weight in state.items():
        error = (dense[name].double() - weight.double()).square().sum()
        assert error < 0.01 * weight.double().square().sum()


@pytest.mark.parametrize(
    "state, budget",
    [
        ({"steps": torch.arange(4000)}, {"ratio": 3}),
        ({"norm.weight": torch.randn(4000)}, {"ratio": 2}),
        ({"mask": torch.ones(90, 90, dtype=torch.bool)}, {"ratio": 20}),
        ({"a.weight": torch.zeros(3), "b.weight": torch.zeros(30, 30)}, {"ratio": 20}),
    ],
)
def test_checkpoints_without_weights_to_factor(state, budget):
    archive = compress_source(source_of(state), **budget)
    assert not any(
        isinstance(e.content, EncodedFactors) and e.content.rank for e in archive.entries.values()
    )
    assert container.size(archive) <= source_of(state).nbytes / budget["ratio"]


def test_vectors_only_may_not_fit():
    with pytest.raises(BudgetError, match=r"smallest possible file has \d+ bytes"):
        compress_source(source_of({"positions": torch.randn(4000)}), ratio=3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_weights_are_named(value):
    state = weights_like_trained()
    state["2.weight"][3, 4] = value
    with pytest.raises(InputError, match=r"tensor '2\.weight' has 1 elements"):
        compress_source(source_of(state), ratio=10)


def test_tied_tensors_are_stored_once():
    weight = torch.randn(64, 64)
    state = {"a.weight": weight, "b.weight": weight}
    source = Source(list(state), state.__getitem__, weight.nbytes, {"b.weight": "a.weight"})
    dense = dense_tensors(compress_source(source, ratio=8))
    assert dense["a.weight"] is dense["b.weight"]


def test_progress_rises_to_the_end():
    seen = []
    compress_source(
        source_of(weights_like_trained(layers=2)),
        ratio=10,
        progress=lambda message, done: seen.append((message, done)),
    )
    assert {m.split(": ")[-1] for m, _ in seen} >= {"0.weight", "1.weight", "reading 0.bias"}
    assert all(0 <= done <= 1 for _, done in seen)
    per_pass = [done for m, done in seen if m.endswith("1.weight")]
    assert per_pass == sorted(per_pass)


FINGERPRINT = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[2]))
from tersor.compression.driver import compress_source
from tersor.storage import container
from tersor.storage.checkpoint import open_checkpoint
archive = compress_source(open_checkpoint(sys.argv[1]), ratio=12)
print(hashlib.sha256(b"".join(container.to_bytes(archive))).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bytes_for_any_number_of_threads(tmp_path):
    draw = generator()
    state = weights_like_trained() | {
        "conv.weight": torch.randn(64, 32, 3, 3, generator=draw) * 0.05,
        "embed.weight": torch.randn(3000, 64, generator=draw) @ torch.randn(64, 64, generator=draw),
    }
    save_file(state, tmp_path / "model.safetensors")
    archive = compress_source(open_checkpoint(tmp_path / "model.safetensors"), ratio=12)
    here = hashlib.sha256(to_file_bytes(archive)).hexdigest()
    for threads in ("1", "3"):
        command = [sys.executable, "-c", FINGERPRINT, tmp_path / "model.safetensors", threads]
        assert subprocess.check_output(command, text=True).strip() == here


@pytest.mark.parametrize("shape", [(64, 64), (32, 16, 3, 3), (1, 400), (400, 1), (10, 10)])
@pytest.mark.parametrize("bits_per_weight", [1.0, 2.5, 5])
def test_one_weight_can_be_factored(shape, bits_per_weight):
    weight = torch.randn(shape, generator=generator())
    if 8 * 24 / weight.numel() > bits_per_weight:
        with pytest.raises(tersor.BudgetError, match="at least"):
            tersor.factorize(weight, bits_per_weight=bits_per_weight)
        return
    factors = tersor.factorize(weight, bits_per_weight=bits_per_weight).factors
    assert factors.bits_per_weight <= bits_per_weight
    assert factors.recompose().shape == shape


def test_more_bits_make_one_weight_better():
    weight = weights_like_trained()["0.weight"]
    errors = [tersor.factorize(weight, bits_per_weight=b).history[-1] for b in (0.7, 1.4, 2.8)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    "weight, message",
    [
        ([[1.0, 2.0]], "a weight tensor is needed, got a list"),
        (torch.randn(300), r"got torch.float32 \(300,\)"),
        (torch.randn(3, 0), r"\(3, 0\)"),
        (torch.ones(20, 20).long(), "got torch.int64"),
        (torch.ones(20, 20).to(torch.float8_e5m2), "float8_e5m2"),
        (torch.full((20, 20), math.nan), "'weight' has 400 elements that are NaN"),
        (torch.full((20, 20), 1e30), "of moderate size"),
    ],
)
def test_what_cannot_be_factored_is_refused(weight, message):
    with pytest.raises(InputError, match=message):
        tersor.factorize(weight, bits_per_weight=2)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_bits_that_are_no_positive_number_are_refused(value):
    with pytest.raises(InputError, match="bits per weight must be a positive number"):
        tersor.factorize(torch.randn(20, 20), bits_per_weight=value)


def test_too_few_bits_for_one_weight_name_the_fewest():
    weight = torch.randn(20, 20)
    with pytest.raises(BudgetError, match=r"at least 24 are needed, 0\.48 bits per weight"):
        tersor.factorize(weight, bits_per_weight=0.1)
    factors = tersor.factorize(weight, bits_per_weight=0.48).factors
    assert factors.nbytes == 24 and not factors.recompose().any()


def test_kept_weights_are_exact_and_the_others_fill_the_budget():
    state = weights_like_trained()
    archive = compress_source(source_of(state), ratio=1.7, overrides=Overrides(["[12].*"]))
    size = len(to_file_bytes(archive))
    target = int(sum(t.nbytes for t in state.values()) / 1.7)
    assert 0.98 * target <= size <= target
    dense = dense_tensors(archive)
    assert all(bits(dense[f"{i}.weight"]) == bits(state[f"{i}.weight"]) for i in (1, 2))
    assert not torch.equal(dense["0.weight"], state["0.weight"])
    assert {t.name: t.note for t in summarize(archive).tensors}["1.weight"] == "exact: left dense"


def test_weights_whose_bits_are_given_have_these_at_any_size():
    state = weights_like_trained()
    overrides = Overrides((), {"1.weight": 4, "2.weight": 1.5})
    sections = []
    for ratio in (6, 8):
        archive = compress_source(source_of(state), ratio=ratio, overrides=overrides)
        target = sum(t.nbytes for t in state.values()) // ratio
        assert 0.98 * target <= len(to_file_bytes(archive)) <= target
        contents = [archive.entries[f"{i}.weight"].content for i in (1, 2)]
        sections.append([c.streams for c in contents])
        for tensor, wanted in zip(summarize(archive).tensors[2:5:2], (4, 1.5), strict=True):
            assert 0.95 * wanted <= tensor.bits_per_weight <= wanted
    assert sections[0] == sections[1]


def test_everything_may_be_kept_or_given_bits():
    state = weights_like_trained()
    kept = compress_source(source_of(state), ratio=1.05, overrides=Overrides(["*"]))
    assert summarize(kept).factored == ()
    fixed = compress_source(source_of(state), ratio=4, overrides=Overrides((), {"*": 2}))
    assert all(1.9 <= t.bits_per_weight <= 2 for t in summarize(fixed).factored)


def test_overrides_that_leave_too_few_bytes_or_ask_for_too_many():
    state = weights_like_trained()
    with pytest.raises(BudgetError, match=r"too few: .*for tensors that are not factored$"):
        compress_source(source_of(state), ratio=8, overrides=Overrides(["*"]))
    with pytest.raises(BudgetError, match=r"too few: .*, \d{4} for those whose bits are given"):
        compress_source(source_of(state), ratio=20, overrides=Overrides((), {"*": 4}))
    with pytest.raises(BudgetError, match=r"32 bits are asked .* of '0.weight', which has only 32"):
        compress_source(source_of(state), ratio=20, overrides=Overrides((), {"0.*": 32}))
    with pytest.raises(InputError, match=r"'0.bias' matches none of the 4 weights"):
        compress_source(source_of(state), ratio=20, overrides=Overrides(["0.bias"]))
    with pytest.raises(InputError, match="lossless changes no weight"):
        compress_source(source_of(state), lossless=True, overrides=Overrides(["0.*"]))


def test_zero_weights_may_be_overridden():
    state = {"zero": torch.zeros(64, 64), "w": torch.randn(64, 64, generator=generator())}
    archive = compress_source(source_of(state), ratio=8, overrides=Overrides(["zero"], {"w": 2}))
    assert isinstance(archive.entries["zero"].content, Plain)
    archive = compress_source(source_of(state), ratio=8, overrides=Overrides((), {"zero": 2}))
    assert summarize(archive).tensors[0].nbytes < 8


def test_experts_in_one_tensor_are_factored_as_matrices():
    """No tile contains weights of two rows, and none is lost by that."""
    draw = generator()
    weight = torch.randn(8, 256, 32, generator=draw) @ torch.randn(8, 32, 128, generator=draw) / 6
    weight = weight + 0.5 * torch.randn(8, 256, 128, generator=draw)
    weight *= 2 * torch.rand(8, 1, 128, generator=draw).exp()
    errors, tiles = [], []
    for name in ("experts.down_proj", "conv.weight"):
        archive = compress_source(Source([name], lambda _: weight, weight.nbytes), ratio=16)
        errors.append(float((archive.tensor(name) - weight).square().mean()))
        tiles.append(archive.entries[name].content.tile)
    assert 128 % tiles[0] == 0
    assert errors[0] < 1.01 * errors[1]
