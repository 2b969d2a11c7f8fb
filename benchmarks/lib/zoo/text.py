# SPDX-License-Identifier: Apache-2.0
"""Words to find and to read: of WikiText-2, in many fonts, on photographs; all are known."""

from __future__ import annotations

import io
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from benchmarks.lib.places import data_folder

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

SIDE = 320


@cache
def _vocabulary() -> list[str]:
    text = (data_folder() / "wikitext2_test.txt").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"\b[A-Za-z]{4,12}\b", text)))


@cache
def _fonts() -> list[str]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf")
    return [str(p) for n in names for p in sorted(folder.glob(n)) if "Display" not in p.name]


@cache
def _photographs(count: int) -> list[Image.Image]:
    data = np.load(data_folder() / "imagenet_dev911_224.npz")
    stream, offsets = data["jpeg"].tobytes(), data["offsets"]
    pieces = [stream[offsets[i] : offsets[i + 1]] for i in range(count)]
    return [Image.open(io.BytesIO(piece)).convert("RGB") for piece in pieces]


def _written(image: Image.Image, word: str, place: tuple[int, int], size: int, font: str) -> Box:
    """Write a word, dark on light ground or light on dark; returns where its letters are."""
    draw = ImageDraw.Draw(image)
    face = ImageFont.truetype(font, size)
    box = draw.textbbox(place, word, font=face)
    ground = np.asarray(image.crop(tuple(int(v) for v in box))).mean()
    draw.text(place, word, font=face, fill=(10, 10, 30) if ground > 120 else (250, 250, 240))
    return box


@cache
def pages(part: str, count: int = 12) -> tuple[list[Image.Image], list[list[Box]]]:
    """Photographs of 320 x 320 with four words each, one below the other, and where these are."""
    chance = random.Random(part)
    images, boxes = [], []
    for photograph in _photographs(2 * count)[part == "held out" :: 2]:
        image = photograph.resize((SIDE, SIDE)).point(lambda v: 60 + v * 0.6)
        found = []
        for line in range(4):
            word, font = chance.choice(_vocabulary())[:9], chance.choice(_fonts())
            place = chance.randrange(8, 60), 12 + 78 * line + chance.randrange(20)
            found.append(_written(image, word, place, chance.randrange(32, 42), font))
        images.append(image)
        boxes.append(found)
    return images, boxes


@cache
def words(part: str, count: int = 320) -> tuple[Tensor, list[str]]:
    """Single words, grey, (n, 1, 64, 384) from -1 to 1, and what they are.

    Behind a word its last column is repeated, as readers fill their images.
    """
    chance = random.Random(part)
    photographs = _photographs(200)[part == "held out" :: 2]
    images, texts = [], []
    for _ in range(count):
        crop = chance.randrange(100), chance.randrange(100)
        ground = chance.choice(photographs).crop((*crop, crop[0] + 110, crop[1] + 20))
        image = ground.resize((384, 64)).point(lambda v: 70 + v * 0.6)
        word, font = chance.choice(_vocabulary()), chance.choice(_fonts())
        box = _written(image, word, (8, chance.randrange(4, 12)), chance.randrange(28, 37), font)
        pixels = np.array(image.convert("L"))
        end = min(383, int(box[2]) + 8)
        pixels[:, end:] = pixels[:, end : end + 1]
        images.append(pixels)
        texts.append(word)
    return torch.from_numpy(np.stack(images))[:, None].float() / 127.5 - 1, texts


def components(mask: np.ndarray, scale: float, grow: float) -> list[Box]:
    """Boxes around connected parts of a mask, larger by a share of their height; in pixels.

    Parts of less than 60 pixels are left out.
    """
    labels, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1)) * scale**2
    found = []
    for size, (rows, columns) in zip(sizes, ndimage.find_objects(labels), strict=True):
        if size < 60:
            continue
        height = rows.stop - rows.start
        more = grow * height
        box = columns.start - more, rows.start - more, columns.stop + more, rows.stop + more
        found.append(tuple(v * scale for v in box))
    return found


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / sum([(v[2] - v[0]) * (v[3] - v[1]) for v in (a, b)], -both)


def harmonic_mean(found: list[list[Box]], wanted: list[list[Box]]) -> float:
    """Harmonic mean of precision and recall in percent; words count that overlap by half."""
    hits = 0
    for these, those in zip(found, wanted, strict=True):
        hits += sum(any(_overlap(a, b) > 0.5 for a in these) for b in those)
    return 200 * hits / max(1, sum(map(len, found)) + sum(map(len, wanted)))
