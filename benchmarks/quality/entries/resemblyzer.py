# SPDX-License-Identifier: Apache-2.0
"""Resemblyzer's speaker encoder: three LSTM layers on mel spectra."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.zoo import speech, store
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "resemblyzer==0.1.4"
FRAMES = 160


class Encoder(nn.Module):
    """`resemblyzer.VoiceEncoder`, without what reads audio files."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def build() -> nn.Module:
    path = store.folder(PACKAGE) / "resemblyzer" / "pretrained.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    model = Encoder()
    model.load_state_dict({n: t for n, t in state.items() if not n.startswith("similarity")})
    return model.eval()


def _mel_filters(bands: int = 40, length: int = 400) -> Tensor:
    """Slaney's triangles of equal area, as librosa makes them."""
    low, log_step = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(speech.RATE / 2 / 1000) / log_step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, low * mels, 1000 * np.exp(log_step * (mels - 15)))
    ramps = edges[:, None] - np.linspace(0, speech.RATE / 2, length // 2 + 1)
    widths = np.diff(edges)[:, None]
    triangles = np.maximum(0, np.minimum(-ramps[:-2] / widths[:-1], ramps[2:] / widths[1:]))
    area = 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy((triangles * area[:, None]).astype(np.float32))


def mel_spectra(samples: Tensor) -> Tensor:
    """Power of 40 bands, every 10 ms, at a loudness of -30 dB or more: (frames, 40)."""
    samples = samples * (10**-1.5 / samples.square().mean().sqrt()).clamp_min(1)
    window = torch.hann_window(400)
    spectrum = torch.stft(
        samples, 400, 160, window=window, return_complex=True, pad_mode="constant"
    )
    return (_mel_filters() @ spectrum.abs().square()).T


@cache
def segments(part: str) -> tuple[Tensor, Tensor]:
    """Spectra of 1.6 s, (n, 160, 40), and the number of the speaker of each."""
    heard = [(n, x[: 2 * speech.RATE]) for n, x in speech.everyone(part, 40)]
    pairs = [(n, mel_spectra(x)[:FRAMES]) for n, x in heard]
    return torch.stack([x for _, x in pairs]), torch.tensor([n for n, _ in pairs])


def batches(part: str) -> list[Tensor]:
    return list(segments(part)[0].split(32))


@cache
@torch.inference_mode()
def wanted() -> Tensor:
    """The dense model's embeddings of held-out segments."""
    return build()(segments("held out")[0])


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    mels, speakers = segments("held out")
    found = model(mels)
    same = speakers[:, None] == speakers
    pairs = torch.ones_like(same).triu(1)
    scores = found @ found.T
    return {
        "cosine to dense": float((found * wanted()).sum(dim=1).mean()),
        "equal error rate, %": 100 * equal_error_rate(scores[pairs], same[pairs]),
    }


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """Where as many pairs of one speaker are refused as pairs of two are accepted."""
    order = same[scores.argsort()].double()
    refused = order.cumsum(0) / order.sum()
    accepted = 1 - (1 - order).cumsum(0) / (1 - order).sum()
    place = int((refused - accepted).abs().argmin())
    return float(refused[place] + accepted[place]) / 2


ENTRY = Entry(
    purpose="speaker embeddings",
    packages=(PACKAGE, speech.CODEC),
    licence="Apache-2.0",
    measure="mean cosine to the dense model's embedding, 160 segments of 4 speakers",
    build=build,
    batches=batches,
    quality=quality,
    debian=speech.DEBIAN,
)
