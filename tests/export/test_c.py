# SPDX-License-Identifier: Apache-2.0
"""Exported C programs compute what torch computes."""

import random
import subprocess
from pathlib import Path

import firmware
import pytest
import torch
from onnx_models import Wrapped, compressed
from torch import nn
from torch.nn import functional as F

import tersor
from benchmarks.lib.cifar10 import ResNet20
from benchmarks.lib.networks import ResNet8
from tersor.errors import InputError

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def agrees(model, inputs, folder, ratio=4):
    done = tersor.export.c(compressed(model, ratio), inputs, folder)
    assert done.weight_bytes > 0  # something is decoded
    assert "as torch" in firmware.check(folder)
    return done


def mixed():
    """Most layers, in the forms that differ."""
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 16, (3, 5), stride=(2, 1), padding=(1, 2)),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.ZeroPad2d((1, 2, 0, 1)),
        nn.Conv2d(16, 32, 3, dilation=(1, 2), groups=2, bias=False),
        nn.Hardswish(),
        nn.Conv2d(32, 32, 3, padding="same", groups=32),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(32, 24, 1),
        nn.SiLU(),
        nn.AvgPool2d(2, 2, padding=1, count_include_pad=False),
        nn.Hardsigmoid(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(24 * 3 * 2, 20),
        nn.BatchNorm1d(20),
        nn.Tanh(),
        nn.Linear(20, 6),
        nn.Softmax(-1),
    )


class Joined(nn.Module):
    """Sums, concatenation, padding of channels, slices, constants; two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(40, 5, 3)
        self.register_buffer("mean", torch.randn(4, 1, 1))

    def forward(self, x, z):
        a = F.relu((x - self.mean) / 3.0 + 0.5)
        a = self.first(a)
        b = F.relu(a + self.second(a))
        small = F.pad(b[:, :, ::2, 1::2], (0, 0, 0, 0, 2, 6), value=0.25)
        joined = torch.cat([small, z.sigmoid()], 1)
        both = torch.cat([joined, joined[:, :, 1:3]], 2)
        return self.last(both * 0.5), b.mean((2, 3), keepdim=True).flatten(1)


class Sequence(nn.Module):
    """Layers of one dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(6, 24, 5, 2, 2), nn.Conv1d(24, 24, 3, dilation=2)
        self.last = nn.Linear(24 * 4, 3)

    def forward(self, x):
        x = F.max_pool1d(F.relu(self.first(x)), 2)
        x = F.adaptive_avg_pool1d(torch.tanh(self.second(x)), 4)
        return self.last(x.flatten(1)).softmax(1)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (mixed, [(3, 3, 14, 10)]),
        (Joined, [(2, 4, 9, 12), (2, 16, 5, 6)]),
        (Sequence, [(1, 6, 48)]),
        (lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 9)), [(1, 64)]),
        (ResNet8, [(1, 3, 32, 32)]),
        (ResNet20, [(1, 3, 32, 32)]),
    ],
    ids=["mixed", "joined", "sequence", "mlp", "ResNet-8", "ResNet-20"],
)
def test_outputs_are_those_of_torch(tmp_path, make, shapes):
    agrees(make(), tuple(torch.randn(shape) for shape in shapes), tmp_path / "out")


@pytest.mark.parametrize("seed", range(6))
def test_random_convolutions(tmp_path, seed):
    draw = random.Random(seed)
    layers, channels = [], 8
    for _ in range(3):
        groups, added = draw.choice([(1, 0), (2, 0), (channels, 0), (1, 8)])
        kernel = draw.randint(1, 4), draw.randint(1, 4)
        options = {
            "stride": (draw.randint(1, 2), draw.randint(1, 2)),
            "dilation": draw.randint(1, 2),
        }
        padding = draw.randint(0, 3), draw.randint(0, 3)
        layers += [nn.Conv2d(channels, channels + added, kernel, padding=padding, groups=groups,
                             bias=draw.random() < 0.5, **options)]  # fmt: skip
        channels += added
        layers += [nn.BatchNorm2d(channels)] * draw.randint(0, 1)
        layers += [draw.choice([nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid, nn.Identity])()]
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=4), *layers, nn.Conv2d(channels, 40, 1))
    agrees(model, torch.randn(2, 3, 31, 26), tmp_path / "out")


def test_large_numbers_do_not_break_functions(tmp_path):
    """e^x at its limits: nothing overflows, and nothing is undefined."""
    functions = [torch.sigmoid, torch.tanh, F.silu, F.hardswish, lambda x: x.softmax(1) * 9999]
    model = Wrapped(lambda x: tuple(f(x) for f in functions))
    agrees(model, 1000 * torch.randn(2, 64), tmp_path / "out")


def test_a_file_of_another_process_gives_the_same_program(tmp_path):
    model = compressed(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
    tersor.save(model, tmp_path / "model.tersor")
    x, fresh = torch.randn(1, 64), nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    tersor.export.c(model, x, tmp_path / "one")
    tersor.export.c(fresh, x, tmp_path / "two", file=tmp_path / "model.tersor")
    for path in (tmp_path / "one").glob("*.[ch]"):
        assert path.read_text() == (tmp_path / "two" / path.name).read_text()


def test_weights_are_the_bytes_of_the_file(tmp_path):
    model = compressed(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
    tersor.save(model, tmp_path / "model.tersor")
    tersor.export.c(model, torch.randn(1, 64), tmp_path / "out")
    text = (tmp_path / "out" / "weights.c").read_text().partition("= {")[2]
    data = bytes(int(part.strip(" \n};"), 16) for part in text.split(","))
    assert len(data) > 100 and data in (tmp_path / "model.tersor").read_bytes()


def test_damage_and_too_little_memory_are_codes(tmp_path):
    agrees(ResNet8(), torch.randn(1, 3, 32, 32), tmp_path / "out")
    weights = tmp_path / "out" / "weights.c"
    program = firmware.build(tmp_path / "out", HERE / "model_errors.c")
    assert subprocess.run([program], capture_output=True, text=True).stdout == (
        "the arena is too small: an array of the caller is too small\n"
        "two at a time, in odd places: no error\n"
    )
    first = weights.read_text().index("0x")
    text = weights.read_text()
    weights.write_text(text[: first + 2] + f"{int(text[first + 2 : first + 4], 16) ^ 1:02X}"
                       + text[first + 4 :])  # fmt: skip
    program = firmware.build(tmp_path / "out")
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("damaged or cut off\n")


def test_an_emulated_cortex_m4_computes_the_same(tmp_path):
    """The ceilings are a tenth above what was measured."""
    done = agrees(ResNet8(), torch.randn(1, 3, 32, 32), tmp_path / "out", ratio=20)
    numbers = firmware.made(tmp_path / "out", "qemu")
    assert 40e6 < numbers["instructions"] < 120e6
    sizes = firmware.made(tmp_path / "out", "size")
    assert sizes["flash"] < done.weight_bytes + done.constant_bytes + 14_500
    assert sizes["ram"] == done.arena_bytes + 7 and sizes["stack"] < 900


@pytest.mark.parametrize(
    ("after", "named"),
    [
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: F.gelu(x) * x.exp(), "gelu, exp"),
        (nn.LayerNorm(64), "layer_norm in after"),
        (lambda x: x.reshape(1, 8, 8), "a change of shape to (1, 8, 8)"),
        (lambda x: x[:, ::2], "every other channel"),
        (lambda x: x * x, "two tensors of the run time"),
        (lambda x: x.softmax(0), "softmax over axis 0"),
    ],
)
def test_what_is_missing_is_refused_by_name(tmp_path, after, named):
    with pytest.raises(InputError) as error:
        tersor.export.c(compressed(Wrapped(after)), torch.randn(1, 64), tmp_path / "out")
    assert named in str(error.value), error.value
    assert not (tmp_path / "out").exists()


def test_what_users_get_wrong(tmp_path):
    dense = nn.Linear(64, 64)
    with pytest.raises(InputError, match="holds no factors"):
        tersor.export.c(dense, torch.randn(1, 64), tmp_path / "out")
    model = compressed(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(InputError, match="where C takes one sample of 1 to 3 axes"):
        tersor.export.c(model, torch.randn(1, 2, 2, 2, 64), tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        tersor.export.c(model, torch.randn(1, 64), tmp_path / "missing" / "out")
    model = compressed(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)))
    model[1].running_var[3] = -1.0
    with pytest.raises(InputError, match="infinite or NaN"):
        tersor.export.c(model, torch.randn(1, 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()
