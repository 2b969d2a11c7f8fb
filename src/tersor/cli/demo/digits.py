# SPDX-License-Identifier: Apache-2.0
"""Train a small network for handwritten digits, compress it with data, and fine-tune it.

The digits are real and need no download: scikit-learn includes 1,797 images of 8x8 pixels. It is
measured as for any model: sizes are bytes on disk, and accuracies in the table are those of the
model that a fresh process loads from the file.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.compression.api import compress
from tersor.errors import MissingExtraError, QualityWarning
from tersor.io import load

SEED = 0

DENSE_EPOCHS, FINETUNING_EPOCHS = 8, 10

INPUTS = 512
"""Number of training images that compression uses, without their labels."""


class Split(NamedTuple):
    """Images (n, 1, 8, 8) and labels (n,) for training and for the test."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Row(NamedTuple):
    """Name of a model, bytes of its file, and accuracy on the test images in percent."""

    model: str
    nbytes: int
    accuracy: float


def digits() -> Split:
    """Return the digits, of which half is for the test.

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
        range(len(labels)), test_size=0.5, stratify=data.target, random_state=SEED
    )
    return Split(images[train], labels[train], images[test], labels[test])


class Network(nn.Sequential):
    """Four convolutions with normalisation and a linear layer: 95 thousand weights."""

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
            optimizer.zero_grad()
            _loss(model, data, batch, teacher).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def _loss(model: nn.Module, data: Split, batch: Tensor, teacher: nn.Module | None) -> Tensor:
    images = data.train[batch]
    output = model(images)
    if teacher is None:
        return F.cross_entropy(output, data.train_labels[batch])
    with torch.no_grad():
        answers = teacher(images).log_softmax(1)
    return F.kl_div(output.log_softmax(1), answers, log_target=True, reduction="batchmean")


@torch.inference_mode()
def accuracy(model: nn.Module, data: Split) -> float:
    """Return the accuracy on the test images in percent."""
    hits = model.eval()(data.test).argmax(1) == data.test_labels
    return 100 * float(hits.double().mean())


def inputs(data: Split) -> list[Tensor]:
    """Return batches of inputs for compression, without labels."""
    return list(torch.split(data.train[:INPUTS], 64))


def compressed(dense: nn.Module, ratio: float, data: Split) -> nn.Module:
    """Return a compressed copy of the dense model."""
    model = copy.deepcopy(dense)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the accuracy is measured and shown
        compress(model, ratio=ratio, data=inputs(data))
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


def measure(name: str, path: Path) -> Row:
    """Return the row of the model in a file, which a fresh process loads."""
    command = [sys.executable, "-m", __name__, str(path)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Row(name, path.stat().st_size, float(found))


def evaluate(path: Path) -> float:
    """Return the accuracy in percent of a network in a safetensors or tersor file."""
    model = Network()
    if path.suffix == ".safetensors":
        model.load_state_dict(load_file(path))
    else:
        load(path, model)
    return accuracy(model, digits())


if __name__ == "__main__":
    sys.stdout.write(f"{evaluate(Path(sys.argv[1]))}\n")
