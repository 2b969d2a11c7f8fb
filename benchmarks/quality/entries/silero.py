# SPDX-License-Identifier: Apache-2.0
"""Silero's voice activity detector: a Fourier transform as a convolution, four more, an LSTM."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.zoo import speech, store
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "silero-vad==6.2.3"
CHUNK, CONTEXT = 512, 64


class Detector(nn.Module):
    """The model for 16 kHz, on whole recordings; (n, samples) -> (n, chunks)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples: Tensor) -> Tensor:
        chunks = F.pad(samples, (CONTEXT, 0)).unfold(1, CHUNK + CONTEXT, CHUNK)
        x = F.pad(chunks.flatten(0, 1)[:, None], (0, 64), mode="reflect")
        real, imaginary = self.stft_conv(x).chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        state, hidden = None, []
        for features in x.view(*chunks.shape[:2], -1).unbind(1):
            state = self.lstm_cell(features, state)
            hidden.append(state[0])
        x = F.relu(torch.stack(hidden, dim=2))
        return self.final_conv(x).sigmoid().squeeze(1)


NAMES = {
    "_model.stft.forward_basis_buffer": "stft_conv.weight",
    **{f"_model.encoder.{i}.reparam_conv.": f"conv{i + 1}." for i in range(4)},
    "_model.decoder.rnn.": "lstm_cell.",
    "_model.decoder.decoder.2.": "final_conv.",
}
"""Beginnings of names in the package's TorchScript, and what they are here."""


def _script() -> torch.jit.ScriptModule:
    path = store.folder(PACKAGE) / "silero_vad" / "data" / "silero_vad.jit"
    return torch.jit.load(str(path)).eval()


def build() -> nn.Module:
    state = {}
    for name, tensor in _script().state_dict().items():
        for start, ours in NAMES.items():
            if name.startswith(start):
                state[ours + name.removeprefix(start)] = tensor
    model = Detector()
    model.load_state_dict(state)
    return model.eval()


def original(samples: Tensor) -> Tensor:
    """The TorchScript, chunk by chunk."""
    script = _script()
    return torch.cat([script(chunk, speech.RATE) for chunk in samples.split(CHUNK, 1)], dim=1)


@cache
def streams(part: str, number: int = 8, seconds: int = 30) -> tuple[Tensor, Tensor]:
    """Recordings with pauses between them, and noise 10 dB below the speech; where speech is.

    Speech is where the recording without the noise is at most 30 dB below its mean power.
    """
    generator = torch.Generator().manual_seed(0)
    items = [x for _, x in speech.everyone(part, 100)]
    chance = torch.randperm(len(items), generator=generator).tolist()
    length = seconds * speech.RATE // CHUNK * CHUNK
    clean = torch.zeros(number, length)
    for row in clean:
        place = 0
        while chance:
            place += int(torch.randint(speech.RATE // 2, 3 * speech.RATE, (), generator=generator))
            item = items[chance.pop()][: max(0, length - place)]
            if not len(item):
                break
            row[place : place + len(item)] = item * 0.05 / item.square().mean().sqrt()
            place += len(item)
    spoken = torch.stack([speech.power(row, CHUNK) > 0.05**2 * 1e-3 for row in clean])
    loudness = 0.05 * 10**-0.5
    noise = torch.stack([speech.noise(length, generator) for _ in range(number)])
    return clean + loudness * noise, spoken


def batches(part: str) -> list[Tensor]:
    return list(streams(part)[0].split(1))


@cache
@torch.inference_mode()
def wanted() -> Tensor:
    """The dense model's probabilities for held-out recordings."""
    return build()(streams("held out")[0])


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    samples, spoken = streams("held out")
    found = model(samples)
    agree = (found > 0.5) == (wanted() > 0.5)
    return {
        "decisions right, %": 100 * float(((found > 0.5) == spoken).float().mean()),
        "decisions as dense, %": 100 * float(agree.float().mean()),
        "change of probability": float((found - wanted()).abs().mean()),
    }


ENTRY = Entry(
    purpose="voice activity",
    packages=(PACKAGE, speech.CODEC),
    licence="MIT",
    measure="speech or not, % right, 4 minutes of 4 speakers in noise",
    build=build,
    batches=batches,
    quality=quality,
    debian=speech.DEBIAN,
    original=original,
)
