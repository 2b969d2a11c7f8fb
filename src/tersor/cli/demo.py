# SPDX-License-Identifier: Apache-2.0
"""Run the demo: compress a small network for handwritten digits 10 and 30 times, and fine-tune it.

The demo uses real data without a download: the digits that scikit-learn includes, 1,797 images of
8x8 pixels. It measures as for any model: sizes are bytes on disk, and accuracies are those of the
model that a fresh process loads from the file.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.calibration.calibrate import calibrate
from tersor.calibration.normalization import match_normalization
from tersor.compression import baselines
from tersor.compression.api import compress
from tersor.errors import MissingExtraError, QualityWarning
from tersor.io import load, save
from tersor.progress import shown
from tersor.storage.checkpoint import open_checkpoint

SEED = 0
RATIOS = (6, 10, 15, 20, 30, 40, 60)
"""Compression ratios of the picture."""

DENSE_EPOCHS, FINETUNING_EPOCHS = 8, 10


class Split(NamedTuple):
    """Images (n, 1, 8, 8) and labels (n,) for training and for the test."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Row(NamedTuple):
    """Row of the table."""

    model: str
    nbytes: int
    accuracy: float


def digits() -> Split:
    """Return the digits, of which a quarter is for the test.

    Raises
    ------
    MissingExtraError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("the demo needs its extra: pip install 'tersor[demo]'") from None
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(data.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=0.25, stratify=data.target, random_state=SEED
    )
    return Split(images[train], labels[train], images[test], labels[test])


class Network(nn.Sequential):
    """Four convolutions with normalisation and a linear layer: 103 thousand weights."""

    def __init__(self) -> None:
        widths = (1, 32, 64, 64, 64)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            if i % 2:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(widths[-1] * 4, 10))


def train(
    model: nn.Module, data: Split, *, epochs: int, rate: float, teacher: nn.Module | None = None
) -> None:
    """Train a model in the ordinary way: Adam, one-cycle schedule, cross-entropy.

    A compressed model is trained like any other. With a teacher, the loss is the distance from the
    teacher's outputs (Hinton et al., 2015), and normalisation keeps its statistics.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    batches = -(-len(data.train) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    shuffle = torch.Generator().manual_seed(SEED)
    model.train(teacher is None)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train), generator=shuffle).split(64):  # type: ignore[no-untyped-call]
            output = model(data.train[batch])
            loss = F.cross_entropy(output, data.train_labels[batch])
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(data.train[batch]).log_softmax(1)
                loss = F.kl_div(output.log_softmax(1), answers, log_target=True, reduction="sum")
                loss = loss / len(batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Split) -> float:
    """Return the top-1 accuracy on the test images in percent."""
    hits = model.eval()(data.test).argmax(1) == data.test_labels
    return 100 * float(hits.double().mean())


def accuracy_of_file(path: Path) -> float:
    """Return the test accuracy in percent of the model in a file, loaded in a fresh process."""
    command = [sys.executable, "-m", "tersor.cli.demo", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compressed(dense: nn.Module, ratio: float, data: Split) -> nn.Module:
    """Return a compressed copy of the dense model, its normalisation matched to it."""
    model, found = copy.deepcopy(dense), calibrate(dense, torch.split(data.train, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the accuracy is measured and shown
        # There must be room for matched statistics, which take more bytes.
        compress(model, ratio=ratio * 1.01, calibration=found)
    match_normalization(model, dense, [data.train])
    return model


def finetuned(model: nn.Module, dense: nn.Module, data: Split) -> nn.Module:
    """Return a fine-tuned copy of a compressed model.

    Its latents are not trained, so that its size does not change.
    """
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(("latent", "scale")))
    train(model, data, epochs=FINETUNING_EPOCHS, rate=0.01, teacher=dense)
    return model


def run(folder: Path, console: Console) -> None:
    """Run the demo: print the table, and write the files and the picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with shown("demo") as progress:
        torch.manual_seed(SEED)
        data, dense = digits(), Network()
        progress("training the dense network", 0.05)
        train(dense, data, epochs=DENSE_EPOCHS, rate=0.01)
        save_file(dense.state_dict(), folder / "dense.safetensors")
        rows = [measure("dense", folder / "dense.safetensors")]
        for ratio in (10, 30):
            progress(f"compressing {ratio} times", 0.2 + ratio / 100)
            model = compressed(dense, ratio, data)
            path = folder / f"compressed{ratio}.tersor"
            save(model, path)
            rows.append(measure(f"compressed {ratio} times", path))
        progress("fine-tuning", 0.5)
        save(finetuned(model, dense, data), folder / "finetuned30.tersor")
        rows.append(measure("the same, fine-tuned", folder / "finetuned30.tersor"))
        progress("comparing with baselines", 0.6)
        curves = trade_off(dense, data, folder / "dense.safetensors")
        curves["tersor, fine-tuned"] = [rows[-1]]
    console.print(table(rows))
    draw(curves, rows[0], folder / "trade_off.png")
    console.print(f"files and picture: {folder}/", highlight=False)


def measure(name: str, path: Path) -> Row:
    """Return the row of the model in a file."""
    return Row(name, path.stat().st_size, accuracy_of_file(path))


def trade_off(dense: nn.Module, data: Split, path: Path) -> dict[str, list[Row]]:
    """Return accuracies and bytes of tersor and the baselines, by method, without training."""
    source = open_checkpoint(path)
    targets = [int(source.nbytes / ratio) for ratio in RATIOS]
    curves: dict[str, list[Row]] = {"tersor": []}
    for ratio in RATIOS:
        model = compressed(dense, ratio, data)
        size = save(model, path.with_name("point.tersor")).nbytes
        curves["tersor"].append(Row("tersor", size, accuracy(model, data)))
    path.with_name("point.tersor").unlink()
    methods = {
        "k-means vector quantization": baselines.vector_quantization,
        "scalar quantization": baselines.scalar,
    }
    for name, method in methods.items():
        curves[name] = []
        for size, weights in method(source, targets):
            model = copy.deepcopy(dense)
            model.load_state_dict(weights, strict=False)
            match_normalization(model, dense, [data.train])
            curves[name].append(Row(name, size, accuracy(model, data)))
    return curves


def table(rows: Sequence[Row]) -> Table:
    """Return a table of sizes, ratios and accuracies. The first row is the dense model."""
    result = Table(title="Handwritten digits", title_justify="left", box=None)
    result.add_column("model")
    for column in ("bytes on disk", "ratio", "test accuracy %"):
        result.add_column(column, justify="right")
    for row in rows:
        ratio = f"{rows[0].nbytes / row.nbytes:.1f}"
        result.add_row(row.model, str(row.nbytes), ratio, f"{row.accuracy:.2f}")
    return result


def draw(curves: dict[str, list[Row]], dense: Row, path: Path) -> None:
    """Draw accuracy against bytes, and write the picture.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("the picture needs: pip install 'tersor[demo]'") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, rows), style in zip(curves.items(), ("o-", "s--", "^--", "*"), strict=True):
        size = 14 if style == "*" else 6
        sizes, hits = [r.nbytes / 1000 for r in rows], [r.accuracy for r in rows]
        axes.plot(sizes, hits, style, markersize=size, label=name)
    axes.axhline(dense.accuracy, color="gray", linewidth=1)
    axes.annotate(
        f"dense, {dense.nbytes / 1000:.0f} kB",
        (0.99, dense.accuracy),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="gray",
    )
    axes.set_xscale("log")
    axes.set_xticks(ticks := [5, 10, 20, 40, 60], [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("kB on disk")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def evaluate(path: Path) -> float:
    """Return the test accuracy in percent of a network in a safetensors or tersor file."""
    model = Network()
    if path.suffix == ".safetensors":
        model.load_state_dict(load_file(path))
    else:
        load(path, model)
    return accuracy(model, digits())


if __name__ == "__main__":
    sys.stdout.write(f"{evaluate(Path(sys.argv[1]))}\n")
