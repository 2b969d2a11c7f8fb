# SPDX-License-Identifier: Apache-2.0
"""Compute what the sections of the page show. The templates say how."""

from __future__ import annotations

import math
from typing import NamedTuple

from tersor.report import svg
from tersor.report.facts import Facts, Layer
from tersor.report.layer_card import card
from tersor.report.table import told
from tersor.report.words import decibels, name, percent, size
from tersor.storage.doubts import WEAK
from tersor.storage.summary import TensorSummary, unfactored_groups

_OPEN_CARDS = 6
_MOST_CARDS = 300
_OPEN_ROWS = 40

_PARTS = {
    "Latents": "sparse integers, entropy-coded",
    "Codebooks": "what they are multiplied by",
    "Unfactored tensors": "not factored: exact, or at 16 bits",
    "Header": "names, shapes, sizes, checksums, what the file says of itself",
}

_COLUMNS = {
    "Tensor": "",
    **dict.fromkeys(("Shape", "Tile", "Rank"), "number minor"),
    **dict.fromkeys(("Bytes", "Bits/weight", "SNR, dB"), "number"),
}
"""CSS class of each column of the table of layers, by its title."""


class Part(NamedTuple):
    """Part of the file: its share as a number, and bytes and share as texts."""

    label: str
    explanation: str
    share: float
    bytes: str
    percent: str


class Row(NamedTuple):
    """Row of the table of layers.

    Parameters
    ----------
    summary
        Summary of the tensor.
    share
        Bytes as a share of those of the largest layer.
    order
        Number by which the signal-to-noise ratio is sorted.
    is_low
        Whether the signal-to-noise ratio is so low that the report warns of it.
    """

    summary: TensorSummary
    share: float
    order: float
    is_low: bool


def values(facts: Facts) -> dict[str, object]:
    """Return what the template of the page uses, by name, besides the facts themselves."""
    report = facts.report
    unfactored = unfactored_groups(report)
    ordered = sorted(facts.layers, key=lambda layer: -layer.summary.nbytes)
    return {
        "figures": _figures(facts),
        "told": told(report),
        "parts": _parts(facts),
        "magnitudes": _magnitudes(facts),
        "blocks": [_block(layer.summary) for layer in facts.layers],
        "rows": _rows(facts.layers),
        "columns": _COLUMNS,
        "cards": [card(layer) for layer in ordered[:_MOST_CARDS]],
        "legend": _legend(facts),
        "unfactored": unfactored,
        "unfactored_count": sum(len(members) for _, members in unfactored),
        "open_cards": _OPEN_CARDS,
        "open_rows": _OPEN_ROWS,
    }


def _figures(facts: Facts) -> list[tuple[str, str, str]]:
    """Return label, value and note of the most important figures."""
    report = facts.report
    return [
        ("Size", size(report.nbytes), f"{report.nbytes:,} bytes"),
        ("Ratio", f"{report.ratio:.2f}×", f"smaller than {size(report.source_bytes)}"),
        ("Bits per weight", f"{report.bits_per_weight:.2f}", f"{report.weights:,} weights"),
        ("Signal to noise", *_distortion(facts)),
    ]


def _distortion(facts: Facts) -> tuple[str, str]:
    ratios = [s for layer in facts.layers if (s := layer.summary.snr) is not None]
    noisy = [s for s in ratios if decibels(s) != "exact"]
    if not noisy:
        return ("exact", "all layers") if ratios else ("–", "not in the file")
    worst, best = decibels(min(noisy)), decibels(max(noisy))
    if (whole := facts.snr()) is not None:
        return f"{decibels(whole)}\xa0dB", f"{worst} to {best} dB by layer"
    return f"{worst}–{best}\xa0dB", "by layer, from the file"


def _parts(facts: Facts) -> list[Part]:
    total = facts.report.nbytes
    return [
        Part(label, _PARTS[label], nbytes / total, f"{nbytes:,}", _share(nbytes / total))
        for label, nbytes in facts.parts().items()
    ]


def _share(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _magnitudes(facts: Facts) -> str:
    """Return the caption of the histogram of latents; empty if there are none."""
    counts = facts.latents()
    if not (total := sum(counts)):
        return ""
    return f"Latents by magnitude: {percent(counts[0] / total)} of {total:,} latents are zero"


def _block(t: TensorSummary) -> svg.Block:
    return svg.Block(
        t.numel,
        t.bits_per_weight,
        name(t.name).removesuffix(".weight"),
        f"{name(t.name)}: {t.nbytes:,} bytes, {t.bits_per_weight:.2f} bits per weight",
    )


def _rows(layers: tuple[Layer, ...]) -> list[Row]:
    most = max((layer.summary.nbytes for layer in layers), default=0) or 1
    return [_row(layer.summary, most) for layer in layers]


def _row(t: TensorSummary, most: int) -> Row:
    order = -math.inf if t.snr is None else t.snr
    is_low = t.snr is not None and t.snr < WEAK
    return Row(t, t.nbytes / most, max(-1e9, min(order, 1e9)), is_low)


def _legend(facts: Facts) -> str:
    of = "the weights recomposed from the file" if facts.dense is None else "the dense weights"
    text = (
        f"Spectrum: singular values of the tiles of {of}, in decibels below the largest. Filled: "
        "within the rank of the factors; outlined: beyond it. "
    )
    if any(layer.atoms is not None for layer in facts.layers):
        text += "Codebook: its columns as kernel windows, black negative, white positive. "
    text += "Latents: their share in percent, by magnitude. The largest layers first"
    left = len(facts.layers) - _MOST_CARDS
    return text + (f"; {left} small ones are in the table only." if left > 0 else ".")
