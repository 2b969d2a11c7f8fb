# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning, end to end."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from samples import bits
from torch import nn
from trainable import Net, accuracy, compressed, data, dense, loader

import tersor
from tersor.errors import BudgetError, InputError, MissingExtraError, TrainingError
from tersor.nn import source, state

pytest.importorskip("accelerate", reason="fine-tuning needs its extra, as `make test` installs it")

IMAGES = data()[0]


@pytest.fixture(scope="module")
def teacher():
    return dense()


def content(model):
    """Every bit of what a model computes with."""
    return [bits(source.dense(value)) for value in state(model).values()]


def test_the_accuracy_comes_back_and_the_file_gives_it(tmp_path, teacher):
    model = compressed(teacher, 36)
    size = tersor.save(model, tmp_path / "a.tersor").nbytes
    before = accuracy(model)
    result = tersor.finetune(
        model, loader(count=256), teacher=teacher, evaluate=accuracy, epochs=5, target_size=size
    )
    report = tersor.save(model, tmp_path / "b.tersor")
    assert report.nbytes == result.nbytes <= size
    assert result.value == max(h["value"] for h in result.history if h["nbytes"] <= size)
    assert result.value > before + 0.015 and len(result.history) == 5
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    back = tersor.load(tmp_path / "b.tersor", Net().eval())
    assert content(back) == content(model)
    assert accuracy(back) == accuracy(model) == result.value


def test_in_a_loop_of_your_own(tmp_path, teacher):
    model = compressed(teacher, 20).train()
    size = tersor.save(model, tmp_path / "a.tersor").nbytes
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-3))
    lagrangian = tersor.project(model, target_size=size).lagrangian
    losses = []
    for _ in range(5):
        for images, labels in loader(count=256):
            loss = nn.functional.cross_entropy(model(images), labels)
            losses.append(float(loss.detach()))
            (loss + 1e-5 * tersor.rate_loss(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
            tersor.project(model, lagrangian=lagrangian)
    tersor.project(model.eval(), target_size=size)
    assert tersor.save(model, tmp_path / "b.tersor").nbytes <= size
    back = tersor.load(tmp_path / "b.tersor", Net().eval())
    assert accuracy(back) == accuracy(model) > 0.9
    assert sum(losses[-4:]) < sum(losses[:4])


def test_it_gets_smaller_on_the_way(teacher):
    model = compressed(teacher, 8)
    size = tersor.project(model, lagrangian=0.3).nbytes
    result = tersor.finetune(model, loader(), epochs=5, target_size=int(0.7 * size))
    sizes = [h["nbytes"] for h in result.history]
    assert result.nbytes <= 0.7 * size and sizes[0] > sizes[-1] == result.nbytes
    assert result.history[-1]["loss"] < 0.5


def test_frozen_parameters_and_the_training_flag_stay(teacher):
    model = compressed(teacher).train()
    frozen = model[3].weight_factors
    frozen.requires_grad_(False)
    before = frozen.to_factors().recompose()
    tersor.finetune(model, loader(), epochs=1)
    assert torch.equal(model[3].weight, before) and model.training
    assert not model[3].weight_factors.latent.requires_grad


def test_fixed_statistics_stay_and_are_used(tmp_path, teacher):
    model = compressed(teacher)
    tersor.fold_normalization(model, IMAGES)
    seen = []
    model[1].register_forward_hook(lambda layer, *_: seen.append(layer.training))
    tersor.finetune(model, loader(), epochs=2)  # which sees that they are folded
    assert not any(seen) and len(seen) == 8
    assert not model[1].running_mean.any() and bool((model[1].running_var == 1).all())
    weight = model[1].weight.detach().clone()
    tersor.finetune(model, loader(), epochs=1, lr=0.05, fixed_statistics=True)
    assert not torch.equal(model[1].weight, weight)  # they are trained all the same


def test_statistics_are_settled_over_the_last_batches(teacher):
    model, inputs = compressed(teacher), []
    model[0].register_forward_hook(
        lambda layer, _, output: inputs.append(output.detach()) if model[1].training else None
    )
    tersor.finetune(model, loader(count=640), epochs=2)
    count = 4  # of 80 steps
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs[-count:]]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=0.01, atol=0.01)
    assert model[1].momentum == 0.1


def test_the_teacher_is_as_it_was(teacher):
    busy = copy.deepcopy(teacher).train()
    busy[3].eval()
    before = {n: bits(t) for n, t in busy.state_dict().items()}
    tersor.finetune(compressed(teacher), loader(), teacher=busy, epochs=1)
    assert {n: bits(t) for n, t in busy.state_dict().items()} == before
    assert busy[1].training and not busy[3].training


def test_a_layer_used_twice(tmp_path):
    layer = nn.Linear(64, 64)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, 4))
    tersor.compress(model, ratio=6)
    tersor.finetune(model, loader(), epochs=1)
    assert model[1] is model[3]
    tersor.save(model, tmp_path / "m.tersor")
    again = nn.Linear(64, 64)
    back = nn.Sequential(nn.Flatten(), again, nn.ReLU(), again, nn.Linear(64, 4))
    tersor.load(tmp_path / "m.tersor", back)
    assert content(back) == content(model)


def test_batches_may_be_mappings_and_the_loss_your_own():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

        def forward(self, pixels):
            return {"logits": self.net(pixels)}.values()  # nothing that logits() knows

    model = Reader()
    tersor.compress(model, ratio=5)
    images, labels = data()
    batches = [
        {"pixels": x, "labels": y} for x, y in zip(images.split(16), labels.split(16), strict=True)
    ]
    seen = []

    def loss(output, targets):
        seen.append(targets)
        return nn.functional.cross_entropy(*output, targets)

    result = tersor.finetune(model, batches, loss=loss, epochs=2)
    assert len(seen) == 8 and result.history[1]["loss"] < result.history[0]["loss"]


def test_accumulated_batches_are_one_larger_batch(teacher):
    images, labels = data()
    model = compressed(teacher.eval(), 15)
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    for m in (whole, parts):
        m[1].eval().train = lambda mode=True: None  # batch statistics would differ
    run = dict(epochs=2, lr=1e-4)
    tersor.finetune(whole, [(images, labels)], **run)
    tersor.finetune(
        parts, list(zip(images.split(16), labels.split(16), strict=True)), accumulate=4, **run
    )
    torch.testing.assert_close(parts(IMAGES), whole(IMAGES), rtol=1e-3, atol=1e-3)


def test_the_log_has_options_and_history(tmp_path, teacher):
    result = tersor.finetune(
        compressed(teacher), loader(), epochs=2, evaluate=accuracy, log=tmp_path / "log.json"
    )
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["nbytes"] == result.nbytes and log["value"] == result.value
    assert log["history"] == list(result.history) and log["options"]["epochs"] == 2


RUN = """
import os, signal, sys
import torch
import tersor
from trainable import accuracy, compressed, dense, loader

torch.set_num_threads(1)
calls = 0

class Stopping(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)

teacher = dense()
model = torch.nn.Sequential(compressed(teacher, 20), torch.nn.Dropout(0.1))
tersor.finetune(
    model, loader(), teacher=Stopping(teacher), evaluate=accuracy, epochs=3, target_size=1300,
    checkpoint=sys.argv[1] + ".checkpoint", checkpoint_interval=0,
)
tersor.save(model, sys.argv[1])
"""


def run(script, *arguments, before=(), **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, *before, "-c", script] if not before else [*before, script]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_what_is_killed_goes_on_bit_for_bit(tmp_path):
    assert run(RUN, tmp_path / "whole.tersor", 0).returncode == 0
    for stop in (3, 5, 2):  # counted in batches since the last start
        assert run(RUN, tmp_path / "stopped.tersor", stop).returncode == -9
        assert (tmp_path / "stopped.tersor.checkpoint").exists()
    assert run(RUN, tmp_path / "stopped.tersor", 0).returncode == 0
    whole, stopped = (tmp_path / f"{n}.tersor" for n in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


def test_a_finished_run_gives_the_same_again(tmp_path, teacher):
    first, second = compressed(teacher), compressed(teacher)
    for model in (first, second):
        result = tersor.finetune(
            model, loader(), epochs=2, evaluate=accuracy, checkpoint=tmp_path / "c"
        )
        assert len(result.history) == 2
    assert content(first) == content(second)


TRAINING = dict(epochs=2, lr=1e-3, target_size=1500)

PROCESSES = """
import copy, os, sys
import torch
import tersor
from accelerate import Accelerator
from tersor.cli.training import finish_together
from tersor.training.groups import factored_weights
from tersor.training.sharding import Sharded
from test_finetune import TRAINING, content
from trainable import compressed, dense, drifted, loader

torch.set_num_threads(1)
first = int(os.environ["RANK"]) == 0
teacher = dense(norm=False)

def tuned(stop=None, **options):
    model, seen = compressed(teacher, 15), []

    def loss(output, targets):
        seen.append(len(targets))
        if len(seen) == stop:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(output, targets)

    result = tersor.finetune(model, loader(), teacher=teacher, loss=loss, **TRAINING, **options)
    assert torch.distributed.get_world_size() == 2 and set(seen) <= {8}
    return model, result

def keep(name, model, result):
    if first:
        tersor.save(model, f"{sys.argv[1]}/{name}.tersor")
        torch.save([h["loss"] for h in result.history], f"{sys.argv[1]}/{name}.losses")

keep("copies", *tuned())
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
whole, result = tuned()
keep("shards", whole, result)

run = {"checkpoint": sys.argv[1] + "/checkpoint", "checkpoint_interval": 0}
for stop in (3, 6):  # early, and when latents rest; counted from where it went on
    try:
        tuned(stop, **run)
    except KeyboardInterrupt:
        pass
again, after = tuned(**run)
assert content(again) == content(whole) and after == result

model = drifted(compressed(dense(), 15))
tersor.project(model, lagrangian=0.3)
held, wanted = Sharded(model, Accelerator(cpu=True)), copy.deepcopy(model)
parts = sum(p.to_local().numel() for p in held.trained.parameters())
assert 0.4 < parts / sum(p.numel() for p in model.parameters()) < 0.6
for each in (held.trained, wanted):
    for weight in factored_weights(each).values():
        weight.approach(0.5)
held.trained[1].running_mean += int(os.environ["RANK"])  # those of the first process count
for values in (*model.parameters(), model[1].running_mean):
    values.data.zero_()
states = zip(held.gather().state_dict().values(), wanted.state_dict().values(), strict=True)
assert all(map(torch.equal, *zip(*states)))
finish_together()
os._exit(0)  # all is checked; gloo's threads may abort a Python that ends now (PyTorch 2.13)
"""


@pytest.mark.slow
def test_processes_do_what_one_does_as_copies_or_as_shards(tmp_path, teacher):
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run(script, tmp_path, before=torchrun, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    teacher = dense(norm=False)
    one = compressed(teacher, 15)
    loss = nn.functional.cross_entropy
    result = tersor.finetune(one, loader(), teacher=teacher, loss=loss, **TRAINING)
    for name in ("copies", "shards"):
        losses = torch.load(tmp_path / f"{name}.losses")
        assert losses == pytest.approx([h["loss"] for h in result.history], rel=1e-2)
        path = tmp_path / f"{name}.tersor"
        assert path.stat().st_size <= TRAINING["target_size"]
        two = tersor.load(path, Net(norm=False))
        torch.testing.assert_close(one(IMAGES), two(IMAGES), rtol=0.05, atol=0.05)


SHARDED = """
import os, sys
import torch
import tersor
from test_finetune import TRAINING
from trainable import compressed, dense, loader

torch.set_num_threads(1)
store = "file://" + sys.argv[1] + ".store"
torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
model = compressed(dense(norm=False), 15)
result = tersor.finetune(model, loader(), **TRAINING, checkpoint=sys.argv[1] + ".checkpoint")
tersor.save(model, sys.argv[1])
torch.save([h["loss"] for h in result.history], sys.argv[1] + ".losses")
os._exit(0)  # gloo's threads may abort a Python that ends now (PyTorch 2.13)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_the_only_shard_is_the_whole_model(tmp_path):
    path = tmp_path / "m.tersor"
    done = run(SHARDED, path)
    assert done.returncode == 0, done.stderr
    one = compressed(dense(norm=False), 15)
    result = tersor.finetune(one, loader(), **TRAINING)
    losses = torch.load(f"{path}.losses")
    assert losses == pytest.approx([h["loss"] for h in result.history], rel=1e-3)
    two = tersor.load(path, Net(norm=False))
    torch.testing.assert_close(one(IMAGES), two(IMAGES), rtol=0.05, atol=0.05)


class TestBadInput:
    def test_a_teacher_of_another_shape(self, teacher):
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
        with pytest.raises(InputError, match=r"the shape \(16, 7\), the model's \(16, 4\)"):
            tersor.finetune(compressed(teacher), loader(), teacher=other)
        with pytest.raises(InputError, match=r"teacher must be an nn\.Module, got a str"):
            tersor.finetune(compressed(teacher), loader(), teacher="dense.pt")

    @pytest.mark.parametrize(
        "loss, message",
        [
            (nn.CrossEntropyLoss(reduction="none"), r"a tensor of one number, got \(16,\)"),
            (lambda output, targets: 1.0, "a tensor of one number, got a float"),
            (lambda output: output.mean(), "the loss raised TypeError"),
        ],
    )
    def test_a_loss_that_is_no_number(self, teacher, loss, message):
        with pytest.raises(InputError, match=message):
            tersor.finetune(compressed(teacher), loader(), loss=loss)

    def test_nan_stops_says_where_and_keeps_the_best(self, tmp_path, teacher):
        model = compressed(teacher)
        files = []

        def evaluate(candidate):
            tersor.save(candidate, tmp_path / "best.tersor")
            files.append(content(candidate))
            return 0.0

        def loss(output, targets):
            return nn.functional.cross_entropy(output, targets) * (torch.nan if files else 1)

        with pytest.raises(TrainingError, match="the loss is nan at step 5, epoch 2; try"):
            tersor.finetune(model, loader(), loss=loss, evaluate=evaluate, epochs=3)
        assert len(files) == 1 and content(model) == files[0]

    def test_nan_at_once_leaves_a_model_that_can_be_saved(self, tmp_path, teacher):
        model = compressed(teacher)
        with pytest.raises(TrainingError, match="step 1"):
            tersor.finetune(model, loader(), loss=lambda output, _: output.mean() * torch.nan)
        tersor.save(model, tmp_path / "m.tersor")
        assert bool(model(IMAGES).isfinite().all())

    @pytest.mark.parametrize(
        "batches, message",
        [
            ([], "the loader is empty"),
            (iter([1]), "cannot be gone through once for each epoch"),
            (map(str, [1]), "cannot be gone through once for each epoch"),
            (torch.zeros(3, 3), r"the loader is a tensor; give a list of batches"),
            (5, "the loader is a int"),
            ([torch.zeros(2, 1, 8, 8)], "a batch of the loader is a Tensor; batches"),
            ([(torch.zeros(2, 1, 8, 8),)], "a batch of the loader is a tuple of 1; batches"),
            ([(torch.zeros(2, 1, 8, 8), ["a"])], "the targets are a list; class numbers"),
        ],
    )
    def test_loaders(self, teacher, batches, message):
        with pytest.raises(InputError, match=message):
            tersor.finetune(compressed(teacher), batches)

    def test_a_loader_that_tells_another_length(self, teacher):
        class Short(list):
            def __len__(self):
                return 9

        images, labels = data()
        with pytest.raises(InputError, match="gave 1 batches in epoch 1, its length is 9"):
            tersor.finetune(compressed(teacher), Short([(images, labels)]))

    @pytest.mark.parametrize("size", [10, "300B"])
    def test_budgets_that_cannot_be_reached(self, teacher, size):
        model = compressed(teacher)
        before = content(model)
        with pytest.raises(BudgetError, match=r"are too few: .* the file has"):
            tersor.finetune(model, loader(), target_size=size)
        assert content(model) == before

    def test_a_budget_that_grows(self, teacher):
        with pytest.raises(BudgetError, match="start size, 2000 bytes, is below the target"):
            tersor.finetune(compressed(teacher), loader(), start_size=2000, target_size="3kB")

    def test_resuming_with_other_options(self, tmp_path, teacher):
        path = tmp_path / "c"
        tersor.finetune(compressed(teacher), loader(), epochs=1, checkpoint=path)
        with pytest.raises(InputError, match=r"other options: epochs 1 before, 2 now.* remove the"):
            tersor.finetune(compressed(teacher), loader(), epochs=2, checkpoint=path)
        with pytest.raises(InputError, match=r"lr 0\.001 before, 0\.1 now"):
            tersor.finetune(compressed(teacher), loader(), epochs=1, lr=0.1, checkpoint=path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="is damaged, or no checkpoint"):
            tersor.finetune(compressed(teacher), loader(), epochs=1, checkpoint=path)
        with pytest.raises(InputError, match="is a directory"):
            tersor.finetune(compressed(teacher), loader(), checkpoint=tmp_path)

    def test_resuming_with_another_teacher(self, tmp_path, teacher):
        path, options = tmp_path / "c", dict(epochs=1, checkpoint=tmp_path / "c")
        first = tersor.finetune(compressed(teacher), loader(), teacher=teacher, **options)
        same = tersor.finetune(compressed(teacher), loader(), teacher=dense(), **options)
        assert same == first
        other, before = copy.deepcopy(teacher), path.read_bytes()
        other[-1].weight.data.mul_(1.01)
        message = r"other options: teacher 'Net, \d+ numbers, .* now"
        for changed in (other, nn.Sequential(teacher), None):
            with pytest.raises(InputError, match=message):
                tersor.finetune(compressed(teacher), loader(), teacher=changed, **options)
        assert path.read_bytes() == before

    def test_models(self, teacher):
        with pytest.raises(InputError, match=r"no quantized factors; call tersor\.compress first"):
            tersor.finetune(copy.deepcopy(teacher), loader())
        with pytest.raises(InputError, match="all parameters are frozen"):
            tersor.finetune(compressed(teacher).requires_grad_(False), loader())
        with pytest.raises(InputError, match=r"an nn\.Module is needed, got a dict"):
            tersor.finetune({}, loader())

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"epochs": 0}, "epochs must be a whole number, 1 or more, got 0"),
            ({"accumulate": 1.5}, "accumulate must be a whole number"),
            ({"lr": -1.0}, "learning rate must be a positive number"),
            ({"mixed_precision": "fp64"}, "unknown mixed precision 'fp64', choose one of"),
            ({"evaluate": lambda model: "good"}, "evaluate raised ValueError"),
            ({"evaluate": lambda model: float("nan")}, "evaluate returned NaN"),
        ],
    )
    def test_options(self, teacher, options, message):
        with pytest.raises(InputError, match=message):
            tersor.finetune(compressed(teacher), loader(), **options)

    def test_the_first_version_of_sharding(self, monkeypatch, teacher):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        with pytest.raises(InputError, match=r"by FSDP2 only; choose it .*FSDP_VERSION=2"):
            tersor.finetune(compressed(teacher), loader())

    def test_without_accelerate(self, monkeypatch, teacher):
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'tersor\[finetune\]'"):
            tersor.finetune(compressed(teacher), loader())


MIXED = """
import sys
import torch
import tersor
from trainable import compressed, dense, loader

torch.set_num_threads(1)
teacher = dense(norm=False)
model = compressed(teacher, 15)
result = tersor.finetune(
    model, loader(), teacher=teacher, epochs=2, lr=3e-4, mixed_precision="bf16"
)
tersor.save(model, sys.argv[1])
torch.save([h["loss"] for h in result.history], sys.argv[1] + ".losses")
"""


@pytest.mark.slow
def test_mixed_precision_trains(tmp_path):
    done = run(MIXED, tmp_path / "m.tersor")
    assert done.returncode == 0, done.stderr
    assert len(tersor.open(tmp_path / "m.tersor"))
    losses = torch.load(tmp_path / "m.tersor.losses")
    assert losses[1] < losses[0]
