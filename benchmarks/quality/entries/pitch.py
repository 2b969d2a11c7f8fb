# SPDX-License-Identifier: Apache-2.0
"""Frames with a pitch, known or not, for models that tell it."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import speech
from benchmarks.lib.zoo.speech import CODEC, DEBIAN
from benchmarks.quality.entries import Figures

__all__ = ["BINS", "CODEC", "DEBIAN", "batches", "quality"]

BINS = 360
"""Pitches told apart, of 20 cents each."""

_LENGTH = 1024


def _normalised(frames: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True).clamp_min(1e-10)


@cache
def voices(part: str) -> Tensor:
    """Frames of speech, (n, 1024), those that are loud."""
    found = [speech.frames(x, _LENGTH, 480) for _, x in speech.everyone(part, 24)]
    frames = torch.cat(found)
    loud = frames.square().mean(dim=1)
    return _normalised(frames[loud > 0.1 * loud.mean()][::4])


@cache
def tones(count: int = 1024) -> tuple[Tensor, Tensor]:
    """Harmonic sounds with noise 10 dB below them, and their pitches in Hz, from 60 to 1000."""
    generator = torch.Generator().manual_seed(0)
    low, high = math.log(60), math.log(1000)
    hertz = (low + (high - low) * torch.rand(count, generator=generator)).exp()
    time = torch.arange(_LENGTH) / speech.RATE
    sound = torch.zeros(count, _LENGTH)
    for harmonic in range(1, 20):
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        strength = torch.rand(count, 1, generator=generator) / harmonic
        heard = (harmonic * hertz[:, None] < speech.RATE / 2).float()
        angle = 2 * math.pi * harmonic * hertz[:, None] * time
        sound += heard * (strength + (harmonic == 1) * 0.3) * torch.sin(angle + phase)
    noise = torch.stack([speech.noise(_LENGTH, generator) for _ in range(count)])
    loudness = sound.square().mean(dim=1, keepdim=True).sqrt()
    return _normalised(sound + 10**-0.5 * loudness * noise), hertz


def batches(part: str) -> list[Tensor]:
    """Half of them speech, half tones."""
    half = 0 if part == "calibration" else 512
    return [*voices(part)[:1024].split(64), *tones(2048)[0][1024 + half : 1536 + half].split(64)]


def _cents(bins: Tensor) -> Tensor:
    """Cents above 10 Hz, from the mean of the bins around the strongest."""
    best = bins.argmax(dim=1)
    window = (best[:, None] + torch.arange(-4, 5)).clamp(0, BINS - 1)
    weights = bins.gather(1, window)
    return (weights * (20 * window + 1997.3794084376191)).sum(dim=1) / weights.sum(dim=1)


def spoken() -> Tensor:
    """What the dense model's pitches are compared on, too."""
    return voices("held out")[:1024]


@torch.inference_mode()
def quality(model: nn.Module, wanted: Tensor) -> Figures:
    frames, hertz = tones()
    error = _cents(model(frames)) - 1200 * (hertz / 10).log2()
    found = model(spoken())
    sure = wanted.amax(dim=1) > 0.5
    change = _cents(found)[sure] - _cents(wanted)[sure]
    return {
        "tones right, %": 100 * float((error.abs() < 50).float().mean()),
        "speech as dense, %": 100 * float((change.abs() < 50).float().mean()),
        "median error of tones, cents": float(error.abs().median()),
    }
