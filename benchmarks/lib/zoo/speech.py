# SPDX-License-Identifier: Apache-2.0
"""Speech at 16 kHz of several speakers: the voice prompts of the telephone exchange Asterisk.

They are packages of Debian (CC-BY-SA 3.0; the Russian one CC-BY 3.0), each of one speaker, coded as
G.722.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.zoo import store

RATE = 16000
CODEC = "G722==1.2.8"
SPEAKERS = {
    "Allison": "asterisk-core-sounds-en-g722",
    "June": "asterisk-core-sounds-fr-g722",
    "Carlo": "asterisk-core-sounds-it-g722",
    "Ivrvoice": "asterisk-core-sounds-ru-g722",
}
DEBIAN = tuple(SPEAKERS.values())


@cache
def recordings(speaker: str, seconds: float = 1.6) -> list[Tensor]:
    """All recordings of a speaker that last so long, from -1 to 1, in the order of their names."""
    codec = store.module(CODEC, "G722").G722
    paths = sorted(store.folder(SPEAKERS[speaker]).rglob("*.g722"))
    found = []
    for path in paths:
        if "silence" in path.parts or path.stat().st_size < seconds * RATE / 2:
            continue
        samples = np.asarray(codec(RATE, 64000).decode(path.read_bytes()), dtype=np.float32)
        found.append(torch.from_numpy(samples / 32768))
    return found


def split(items: list[Tensor], part: str) -> list[Tensor]:
    """Every other one for calibration, the others for evaluation."""
    return items[::2] if part == "calibration" else items[1::2]


def frames(samples: Tensor, length: int, step: int) -> Tensor:
    """Overlapping pieces of a recording, (n, length)."""
    return samples.unfold(0, length, step)


def power(samples: Tensor, length: int) -> Tensor:
    """Mean square of each of the pieces that follow each other."""
    return frames(samples, length, length).square().mean(dim=1)


def noise(count: int, generator: torch.Generator) -> Tensor:
    """Pink noise of power 1."""
    spectrum = torch.fft.rfft(torch.randn(count, generator=generator))
    spectrum /= torch.arange(1, len(spectrum) + 1).sqrt()
    pink = torch.fft.irfft(spectrum, n=count)
    return pink / pink.square().mean().sqrt()


def everyone(part: str, each: int) -> Iterator[tuple[int, Tensor]]:
    """The first so many recordings of each speaker, with the speaker's number."""
    for number, speaker in enumerate(SPEAKERS):
        for samples in split(recordings(speaker), part)[:each]:
            yield number, samples
