# SPDX-License-Identifier: Apache-2.0
"""Twelve compressions whose files are recorded, with options of every kind.

A change that shall not change results must leave ``recorded.json`` as it is. After a change that
shall, record them again:

    python tests/golden/recorded.py
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.factorization import methods
from tersor.factorization.projections import integers
from tersor.nn import insert_factors

RECORD = Path(__file__).with_suffix(".json")


class Pictures(nn.Sequential):
    """Convolutions, one of them in groups, with normalisation, and a linear layer."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)]
        super().__init__(*layers)


class Words(nn.Module):
    """A recurrent layer and attention; the output layer is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 24)
        self.recurrent = nn.GRU(24, 24, batch_first=True)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Linear(24, 60)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.embed(tokens))
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0])


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def images() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return nn.functional.avg_pool2d(torch.randn(64, 3, 10, 10, generator=draw), 3, stride=1)


def labelled() -> list[tuple[Tensor, Tensor]]:
    inputs = images()
    labels = inputs.mean((1, 2, 3)).argsort().argsort() % 10
    return list(zip(inputs.split(32), labels.split(32), strict=True))


def quality(model: nn.Module) -> float:
    """Minus the squared error of the output, against that of the dense model."""
    with torch.no_grad():
        return -float((model(images()) - made(Pictures)(images())).square().mean())


def tokens() -> Tensor:
    return torch.randint(60, (40, 12), generator=torch.Generator().manual_seed(2))


def matrix(rows: int = 48, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.1


def written(model: nn.Module, folder: Path) -> bytes:
    tersor.save(model, folder / "model.tersor")
    return (folder / "model.tersor").read_bytes()


def by_command(folder: Path, command: str, result: str, model: nn.Module, *options: str) -> bytes:
    """Return the file that a command writes for a model's checkpoint."""
    checkpoint, output = folder / "model.safetensors", folder / result
    save_file(model.state_dict(), checkpoint)
    arguments = [command, str(checkpoint), "-o", str(output), *options]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return output.read_bytes()


def numbers_of(*tensors: Tensor) -> bytes:
    return b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors)


def data_free(folder: Path) -> bytes:
    return by_command(folder, "compress", "out.tersor", made(Pictures), "--ratio", "8")


def overridden(folder: Path) -> bytes:
    options = ["--target-size", "9kB", "--keep", "0.*", "--bits", "3*=3", "--content-hash"]
    options += ["--metadata", "licence=CC0-1.0", "--metadata", "name=größer"]
    return by_command(folder, "compress", "out.tersor", made(Pictures), *options)


def lossless(folder: Path) -> bytes:
    model = Pictures().half()
    for number, value in enumerate(
        model.state_dict().values(), 1
    ):  # no random numbers, which differ too
        value.copy_(((torch.arange(value.numel()) * number) % 61 - 30).reshape(value.shape) / 64)
    model.register_buffer("odd", torch.tensor([float("nan"), -0.0], dtype=torch.float64))
    return by_command(folder, "compress", "out.tersor", model, "--lossless")


def tied_bfloat16(folder: Path) -> bytes:
    model = made(Words).bfloat16()
    tersor.compress(model, bits_per_weight=3)
    return written(model, folder)


def calibrated(folder: Path) -> bytes:
    dense = made(Pictures)
    dense.train()(images())
    dense.eval()
    model = copy.deepcopy(dense)
    found = tersor.calibrate(model, [(images(),)])
    tersor.compress(model, ratio=12, calibration=found)
    tersor.match_normalization(model, dense, [images()])
    tersor.reconstruct(model, dense, [images()])
    return written(model, folder)


def recurrent(folder: Path) -> bytes:
    model = made(Words)
    tersor.compress(model, ratio=9, calibration=tersor.calibrate(model, [tokens()]))
    return written(model, folder)


def looked_up(folder: Path) -> bytes:
    model = made(Pictures)
    tersor.fold_normalization(model, images())
    tersor.compress(model, bits_per_weight=4, lookup=["7.*"])
    return written(model, folder)


def at_most_worse(folder: Path) -> bytes:
    model = made(Pictures)
    tersor.compress(model, max_drop=1e-6, evaluate=quality)
    return written(model, folder)


def integer_methods(folder: Path) -> bytes:
    kinds = [methods.scalar(0.05), methods.ternary(), methods.binary(), methods.rate_aware(0.06)]
    kinds += [methods.few_integers(), methods.binary_sums()]
    found = [tersor.factorize(matrix(), method=kind, tile=8) for kind in kinds]
    found += [tersor.factorize(matrix(), bits_per_weight=b, tile=t) for b, t in ((2, 1), (1, 16))]
    found.append(tersor.factorize(matrix(), bits_per_weight=2, moments=torch.eye(64) + 0.5))
    model = nn.Sequential(*(nn.Linear(64, 48, bias=False) for _ in found))
    insert_factors(model, {f"{i}.weight": s.factors for i, s in enumerate(found)})
    return written(model, folder)


def real_methods(folder: Path) -> bytes:
    kinds = [methods.weight_svd(3), methods.vector_quantization(8), integers(2)]
    kinds += [methods.additive_vector_quantization(8, 2), methods.dictionary_learning(8, 2)]
    found = [tersor.factorize(matrix(), method=kind, tile=8) for kind in kinds]
    factors = [solution.factors for solution in found]
    return numbers_of(*(t for f in factors for t in (f.codebook, f.latent, f.recompose())))


def trained(folder: Path) -> bytes:
    dense = made(Pictures)
    model = copy.deepcopy(dense)
    tersor.compress(model, ratio=6, lookup=["7.*"])
    tersor.finetune(model, labelled(), teacher=dense, epochs=1, target_size="4.4kB")
    tersor.project(model, target_size="4kB")
    return written(model, folder)


def curve(folder: Path) -> bytes:
    return by_command(folder, "curve", "curve.json", made(Pictures), "--points", "4")


JOBS = (
    data_free,
    overridden,
    lossless,
    tied_bfloat16,
    calibrated,
    recurrent,
    looked_up,
    at_most_worse,
    integer_methods,
    real_methods,
    trained,
    curve,
)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(job: Callable[[Path], bytes]) -> dict[str, str | int]:
    """Return the size and the digest of a job's file."""
    with tempfile.TemporaryDirectory() as folder, one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = job(Path(folder))
    return {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def arithmetic() -> str:
    """Return a digest of how torch computes here: its sums differ between processors in last bits.

    Where it differs from the recorded one, files may differ from the recorded ones.
    """
    draw = torch.Generator().manual_seed(4)
    with one_thread():
        a = torch.randn(200, 72, generator=draw)
        gram = a.T @ a
        x = torch.randn(4, 3, 9, 9, generator=draw)
        found = [
            a @ a.T[:, :50],
            gram,
            a.half().float() @ gram[:, 0],
            gram.sum(),
            a.exp(),
            a.norm(),
        ]
        found += [torch.linalg.cholesky(gram), *torch.linalg.eigh(gram.double()), a.std(0)]
        found += [
            *torch.linalg.qr(a),
            torch.linalg.solve(gram, a.T),
            a.bfloat16() @ gram.bfloat16(),
        ]
        found += [nn.functional.conv2d(x, a[:16, :27].reshape(16, 3, 3, 3)), a.tanh()]
        for kind, inputs in ((Pictures, images()), (Words, tokens())):
            model = made(kind)
            y = model(inputs)
            found += [
                y.detach(),
                *torch.autograd.grad(y.softmax(-1).square().sum(), list(model.parameters())),
            ]
    return hashlib.sha256(numbers_of(*found)).hexdigest()


if __name__ == "__main__":
    record = {"arithmetic": arithmetic(), "jobs": {job.__name__: run(job) for job in JOBS}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
