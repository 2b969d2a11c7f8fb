# SPDX-License-Identifier: Apache-2.0
"""Draw charts as inline SVG. The style sheet of the page gives colours to their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tersor.report.facts import MAGNITUDES
from tersor.report.markup import tag
from tersor.report.words import percent

WIDTH = 300
"""Width of a small chart in its units, which are about the pixels of a telephone."""

_MOST_BARS = 64
_LOWEST = -60
_APART = 60
"""Largest number of blocks with gaps between them. Gaps of more blocks would take the space of
narrow ones."""

_NAMED = 120
"""Width, in thousandths of the chart, above which a block has space for a name."""


def bar(share: float) -> Markup:
    """Return a horizontal bar for a share from 0 to 1, which stands beside the number itself."""
    box = {"viewBox": "0 0 100 4", "preserveAspectRatio": "none"}
    return tag(
        "svg",
        tag("path", d="M0 0h100v4h-100z", class_="track"),
        tag("path", d=f"M0 0h{100 * share:.2f}v4H0z", class_="kept"),
        class_="bar",
        aria_hidden="true",
        **box,
    )


@dataclass(frozen=True)
class Block:
    """Block of a skyline. The browser shows its title when the mouse is over it."""

    width: float
    height: float
    name: str
    title: str


def skyline(blocks: Sequence[Block], label: str) -> Markup:
    """Return a chart of blocks side by side, with names above the wide ones.

    The width of a block is its share of the sum of all widths. The chart is stretched to its box;
    its texts are therefore not part of the SVG image.

    Parameters
    ----------
    blocks
        Blocks from left to right.
    label
        Description of the chart for screen readers.
    """
    total = sum(block.width for block in blocks)
    ticks = round_numbers(0.0, max(block.height for block in blocks) or 1.0)
    top = ticks[-1]
    shapes, labels, x = [], [], 0.0
    for block in blocks:
        w, h = 1000 * block.width / total, 100 * block.height / top
        path = f"M{x:.2f} 100v{-h:.2f}h{w:.2f}V100z"
        shapes.append(tag("path", tag("title", block.title), d=path))
        if w > _NAMED:
            place = f"left:{x / 10:.1f}%;width:{w / 10:.1f}%;bottom:{h:.1f}%"
            labels.append(tag("span", block.name, style=place))
        x += w
    lines = [tag("path", d=f"M0 {100 - 100 * t / top:.1f}H1000", class_="grid") for t in ticks]
    numbers = [tag("i", f"{t:g}", style=f"bottom:{100 * t / top:.1f}%") for t in ticks]
    box = {"viewBox": "0 0 1000 100", "preserveAspectRatio": "none"}
    few = len(blocks) <= _APART
    image = tag("svg", *lines, *shapes, role="img", aria_label=label, **box)
    texts = tag("div", *numbers, *labels, aria_hidden="true")
    return tag("div", image, texts, class_="skyline" if few else "skyline close")


def round_numbers(low: float, high: float) -> list[float]:
    """Return about four evenly spaced round numbers that enclose two numbers."""
    spread = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= spread / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def spectrum(values: Sequence[float], rank: int, label: str) -> Markup:
    """Return a chart of singular values in dB below the first: those within the rank are filled.

    If there are many values, evenly spaced ones are shown.

    Parameters
    ----------
    values
        Singular values, the largest first.
    rank
        Number of values that are filled; the others are outlined.
    label
        Description of the chart for screen readers.
    """
    left, right, top, bottom = 44, WIDTH, 8, 84
    shown = [i * len(values) // _MOST_BARS for i in range(_MOST_BARS)]
    shown = shown if len(values) > _MOST_BARS else list(range(len(values)))
    decibels = [_decibels(values[i] / values[0]) for i in shown]
    floor = max(_LOWEST, 10 * math.floor(min(decibels) / 10) - 5)
    step = (right - left) / len(shown)
    bars = [
        _column(left + i * step, step, bottom, (bottom - top) * max(0.0, 1 - d / floor))
        for i, d in enumerate(decibels)
    ]
    kept = sum(i < rank for i in shown)
    texts = [
        text(left - 5, top + 4, "0 dB", "end"),
        text(left - 5, bottom, f"−{-floor} dB", "end"),
        text(left, bottom + 15, "1"),
        text((left + right) / 2, bottom + 15, "singular value, by size", "middle"),
        text(right, bottom + 15, str(len(values)), "end"),
    ]
    edge = f"M{left + kept * step:.1f} {top - 6}V{bottom + 4}"
    return chart(
        label,
        tag("path", d=f"M{left} {top}H{right}", class_="grid"),
        tag("path", d="".join(bars[:kept]), class_="kept"),
        tag("path", d="".join(bars[kept:]), class_="dropped"),
        tag("path", d=f"M{left} {bottom}H{right}", class_="axis"),
        tag("path", d=edge if 0 < kept < len(shown) else "", class_="mark"),
        *texts,
        height=bottom + 20,
    )


def _decibels(ratio: float) -> float:
    return 20 * math.log10(ratio) if ratio > 10 ** (_LOWEST / 20) else float(_LOWEST)


def _column(x: float, step: float, bottom: float, height: float) -> str:
    """Return the path data of a bar, in a space of width ``step`` with gaps on both sides."""
    return f"M{x + 0.12 * step:.1f} {bottom}v{-height:.1f}h{0.76 * step:.1f}V{bottom}z"


def histogram(counts: Sequence[int], label: str) -> Markup:
    """Return a chart of the share of latents in each range of `MAGNITUDES`, in percent."""
    total, bottom, top = sum(counts) or 1, 84, 16
    step = WIDTH / len(counts)
    most = max(counts) or 1
    bars, texts = [], []
    for i, (count, name) in enumerate(zip(counts, MAGNITUDES, strict=True)):
        height = (bottom - top) * count / most
        bars.append(_column(i * step, step, bottom, height))
        middle = (i + 0.5) * step
        texts.append(text(middle, bottom - height - 4, percent(count / total), "middle"))
        texts.append(text(middle, bottom + 15, name, "middle"))
    return chart(
        label,
        tag("path", d="".join(bars), class_="kept"),
        tag("path", d=f"M0 {bottom}H{WIDTH}", class_="axis"),
        *texts,
        height=bottom + 20,
    )


def chart(label: str, *content: str, height: float, width: float = WIDTH) -> Markup:
    """Return an image with a description.

    Parameters
    ----------
    label
        Description for screen readers.
    content
        Elements of the image.
    height, width
        Size in the units of the elements.
    """
    return tag(
        "svg",
        *content,
        role="img",
        aria_label=label,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
    )


def text(x: float, y: float, words: str, anchor: str = "start") -> Markup:
    """Return a text at a point.

    Parameters
    ----------
    x, y
        Coordinates of the point.
    words
        The text.
    anchor
        Part of the text that is at the point: "start" (the default), "middle" or "end".
    """
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
