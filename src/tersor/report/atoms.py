# SPDX-License-Identifier: Apache-2.0
"""Draw the columns of codebooks as small images."""

from __future__ import annotations

from markupsafe import Markup
from torch import Tensor

from tersor.report.markup import tag

_SHADES = 16
"""Number of shades of grey. All cells of a shade are one path, which takes a fraction of the bytes
of one element per cell."""

_ACROSS = 9
"""Number of windows side by side."""


def atoms(images: Tensor, label: str) -> Markup:
    """Return images in shades of grey: black is the most negative value, white the most positive.

    Parameters
    ----------
    images
        Values from -1 to 1, (number, windows of a tile, height, width).
    label
        Description of the images for screen readers.

    Returns
    -------
    Markup
        An SVG element.
    """
    number, windows, height, width = images.shape
    across = windows * (width + 0.5) - 0.5
    per_row = max(1, min(number, _ACROSS // windows))
    shades = ((images + 1) / 2 * (_SHADES - 1)).round().int().tolist()
    cells: dict[int, list[str]] = {}
    frames = []
    for i, image in enumerate(shades):
        left, top = (i % per_row) * (across + 1), (i // per_row) * (height + 1)
        for j, window in enumerate(image):
            x = left + j * (width + 0.5)
            frames.append(f"M{x:g} {top}h{width}v{height}h-{width}z")
            _collect(cells, window, x, top)
    shape = (per_row * (across + 1) - 1, -(-number // per_row) * (height + 1) - 1)
    return tag(
        "svg",
        *(tag("path", d="".join(d), fill=_grey(shade)) for shade, d in sorted(cells.items())),
        tag("path", d="".join(frames), class_="frame"),
        role="img",
        aria_label=label,
        class_="atoms",
        style=f"max-width:{8 * shape[0]:g}px",
        viewBox=f"-0.1 -0.1 {shape[0] + 0.2:g} {shape[1] + 0.2:g}",
    )


def _collect(cells: dict[int, list[str]], window: list[list[int]], left: float, top: int) -> None:
    """Add the squares of a window to the path data of their shades."""
    for y, row in enumerate(window):
        for x, shade in enumerate(row):
            cells.setdefault(shade, []).append(f"M{left + x:g} {top + y}h1v1h-1z")


def _grey(shade: int) -> str:
    return "#" + 3 * f"{255 * shade // (_SHADES - 1):02x}"
