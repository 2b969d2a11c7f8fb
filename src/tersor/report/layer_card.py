# SPDX-License-Identifier: Apache-2.0
"""Compute the card of a layer: its spectrum, its codebook and its latents."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from tersor.report import svg
from tersor.report.atoms import atoms
from tersor.report.facts import Layer
from tersor.report.words import breakable, decibels, shape

Figure = tuple[str, "Markup | None"]
"""Caption and image. Without an image the caption says why there is none."""


class Card(NamedTuple):
    """Content of a card, as the template shows it."""

    name: Markup
    facts: str
    shape: str
    figures: list[Figure]


def card(layer: Layer) -> Card:
    """Return the card of a layer."""
    t = layer.summary
    facts = [f"{t.nbytes:,}\xa0bytes", f"{t.bits_per_weight:.2f}\xa0bits/weight"]
    if t.snr is not None:
        ratio = decibels(t.snr)
        facts.append(ratio if ratio == "exact" else f"{ratio}\xa0dB")
    figures = [_spectrum(layer), *_atoms(layer), _latents(layer)]
    sizes = f"{shape(t)}, tiles of {t.tile}, rank {t.rank}"
    return Card(breakable(t.name), " · ".join(facts), sizes, figures)


def _spectrum(layer: Layer) -> Figure:
    t, values = layer.summary, layer.spectrum
    assert t.rank is not None
    if not values or not values[0]:
        return f"No spectrum: {_no_spectrum(layer)}.", None
    label = f"rank {t.rank} of {len(values)}" if t.rank <= len(values) else f"rank {t.rank}"
    energy = sum(v**2 for v in values[: t.rank]) / sum(v**2 for v in values)
    share = f", {100 * energy:.1f} % of the energy" if t.rank < len(values) else ""
    caption = f"Spectrum: {label}{share}"
    return caption, svg.spectrum(values, t.rank, caption)


def _no_spectrum(layer: Layer) -> str:
    if layer.spectrum:
        return "all weights are zero"
    return "tiles are single weights" if layer.summary.tile == 1 else "not found for such tiles"


def _atoms(layer: Layer) -> list[Figure]:
    if layer.atoms is None:
        return []
    number, rank = len(layer.atoms), layer.summary.rank
    which = f"{number} columns" if number == rank else f"the {number} strongest of {rank} columns"
    caption = f"Codebook: {which}, {layer.codebook_bytes:,} bytes"
    return [(caption, atoms(layer.atoms, caption))]


def _latents(layer: Layer) -> Figure:
    total = sum(layer.latents)
    if not total:
        return "No latents: the rank is 0.", None
    size = layer.summary.nbytes - layer.codebook_bytes
    caption = f"Latents: {total:,} in {size:,} bytes"
    return caption, svg.histogram(layer.latents, caption)
