"""Build the card of a layer: its spectrum, its codebook and its latents."""

from __future__ import annotations

from tersor.report import svg
from tersor.report.atoms import atoms
from tersor.report.facts import Layer
from tersor.report.markup import Markup, tag
from tersor.report.words import breakable, decibels, shape


def card(layer: Layer) -> Markup:
    """Return the card of a layer."""
    t = layer.summary
    facts = [f"{t.nbytes:,}\xa0bytes", f"{t.bits_per_weight:.2f}\xa0bits/weight"]
    if t.snr is not None:
        ratio = decibels(t.snr)
        facts.append(ratio if ratio == "exact" else f"{ratio}\xa0dB")
    return tag(
        "article",
        tag("h3", breakable(t.name)),
        tag("p", " · ".join(facts), class_="facts"),
        tag("p", f"{shape(t)}, tiles of {t.tile}, rank {t.rank}", class_="minor-facts"),
        *_spectrum(layer),
        *_atoms(layer),
        *_latents(layer),
    )


def _figure(caption: str, image: Markup) -> Markup:
    return tag("figure", tag("figcaption", caption), image)


def _spectrum(layer: Layer) -> list[Markup]:
    t, values = layer.summary, layer.spectrum
    assert t.rank is not None
    if not values or not values[0]:
        return [tag("p", f"No spectrum: {_no_spectrum(layer)}.", class_="none")]
    label = f"rank {t.rank} of {len(values)}" if t.rank <= len(values) else f"rank {t.rank}"
    energy = sum(v**2 for v in values[: t.rank]) / sum(v**2 for v in values)
    share = f", {100 * energy:.1f} % of the energy" if t.rank < len(values) else ""
    caption = f"Spectrum: {label}{share}"
    return [_figure(caption, svg.spectrum(values, t.rank, caption))]


def _no_spectrum(layer: Layer) -> str:
    if layer.spectrum:
        return "all weights are zero"
    return "tiles are single weights" if layer.summary.tile == 1 else "not found for such tiles"


def _atoms(layer: Layer) -> list[Markup]:
    if layer.atoms is None:
        return []
    number, rank = len(layer.atoms), layer.summary.rank
    which = f"{number} columns" if number == rank else f"the {number} strongest of {rank} columns"
    caption = f"Codebook: {which}, {layer.codebook_bytes:,} bytes"
    return [_figure(caption, atoms(layer.atoms, caption))]


def _latents(layer: Layer) -> list[Markup]:
    total = sum(layer.latents)
    if not total:
        return [tag("p", "No latents: the rank is 0.", class_="none")]
    size = layer.summary.nbytes - layer.codebook_bytes
    caption = f"Latents: {total:,} in {size:,} bytes"
    return [_figure(caption, svg.histogram(layer.latents, caption))]
