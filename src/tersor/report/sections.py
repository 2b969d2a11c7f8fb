"""Build the sections of the page, in the order of the page."""

from __future__ import annotations

import math

from tersor.report import svg
from tersor.report.blocks import details, number, section, table
from tersor.report.facts import Facts, Layer
from tersor.report.layer_card import card
from tersor.report.markup import Markup, join, tag
from tersor.report.table import told
from tersor.report.words import breakable, decibels, name, percent, shape, size
from tersor.storage.doubts import WEAK
from tersor.storage.summary import unfactored_groups
from tersor.version import __version__

_OPEN_CARDS = 6
_MOST_CARDS = 300
_OPEN_ROWS = 40

_PARTS = {
    "Latents": "sparse integers, entropy-coded",
    "Codebooks": "what they are multiplied by",
    "Unfactored tensors": "not factored: exact, or at 16 bits",
    "Header": "names, shapes, sizes, checksums, what the file says of itself",
}


def heading(facts: Facts) -> Markup:
    """Return the name of the file, with its most important figures."""
    report = facts.report
    figures = [
        ("Size", size(report.nbytes), f"{report.nbytes:,} bytes"),
        ("Ratio", f"{report.ratio:.2f}×", f"smaller than {size(report.source_bytes)}"),
        ("Bits per weight", f"{report.bits_per_weight:.2f}", f"{report.weights:,} weights"),
        ("Signal to noise", *_distortion(facts)),
    ]
    cells = [
        tag("div", tag("dt", label), tag("dd", tag("b", value), " ", tag("span", note)))
        for label, value, note in figures
    ]
    return tag(
        "header",
        tag("p", "Compressed model", class_="kind"),
        tag("h1", name(facts.name)),
        tag("dl", *cells, class_="figures"),
        *(tag("p", line) for line in told(report)),
        *(tag("p", f"Warning: {text}", class_="warning") for text in report.warnings),
    )


def _distortion(facts: Facts) -> tuple[str, str]:
    ratios = [s for layer in facts.layers if (s := layer.summary.snr) is not None]
    noisy = [s for s in ratios if decibels(s) != "exact"]
    if not noisy:
        return ("exact", "all layers") if ratios else ("–", "not in the file")
    worst, best = decibels(min(noisy)), decibels(max(noisy))
    if (whole := facts.snr()) is not None:
        return f"{decibels(whole)}\xa0dB", f"{worst} to {best} dB by layer"
    return f"{worst}–{best}\xa0dB", "by layer, from the file"


def division(facts: Facts) -> Markup:
    """Return the section with the bytes of each part and the magnitudes of the latents."""
    total = facts.report.nbytes
    rows = [
        [
            tag("th", label, tag("small", _PARTS[label]), svg.bar(nbytes / total), scope="row"),
            number(f"{nbytes:,}"),
            number(_share(nbytes / total)),
        ]
        for label, nbytes in facts.parts().items()
    ]
    left = table("Parts of the file", {"Part": "", "Bytes": "number", "Share": "number"}, rows)
    return section("Where the bytes are", "", tag("div", left, *_latents(facts), class_="columns"))


def _share(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _latents(facts: Facts) -> list[Markup]:
    counts = facts.latents()
    total = sum(counts)
    if not total:
        return []
    zeros = f"{percent(counts[0] / total)} of {total:,} latents are zero"
    chart = svg.histogram(counts, f"Latents by magnitude: {zeros}")
    caption = tag("figcaption", f"Latents by magnitude: {zeros}.")
    return [tag("figure", caption, chart)]


def rates(facts: Facts) -> Markup:
    """Return the section with the bits per weight of each layer."""
    blocks = [
        svg.Block(
            t.numel,
            t.bits_per_weight,
            name(t.name).removesuffix(".weight"),
            f"{name(t.name)}: {t.nbytes:,} bytes, {t.bits_per_weight:.2f} bits per weight",
        )
        for t in (layer.summary for layer in facts.layers)
    ]
    return section(
        "Bits per weight, layer by layer",
        "In the order of the file. Width is the number of weights, height bits per weight: "
        "area is bytes.",
        svg.skyline(blocks, "Bits per weight of each layer; the table below has the numbers"),
    )


def layers(facts: Facts) -> Markup:
    """Return the section with a table of all factored tensors."""
    most = max(layer.summary.nbytes for layer in facts.layers) or 1
    rows = [_row(layer, most) for layer in facts.layers]
    columns = {"Tensor": ""} | dict.fromkeys(("Shape", "Tile", "Rank"), "number minor")
    columns |= dict.fromkeys(("Bytes", "Bits/weight", "SNR, dB"), "number")
    caption = f"{len(rows)} tensors are stored as factors"
    content = table(caption, columns, rows, class_="layers sortable")
    few = len(rows) <= _OPEN_ROWS
    return section("Layers", "", content if few else details(f"All {len(rows)} layers", content))


def _row(layer: Layer, most: int) -> list[Markup]:
    t = layer.summary
    order = -math.inf if t.snr is None else t.snr
    low = "low" if t.snr is not None and t.snr < WEAK else ""
    label = (breakable(t.name), svg.bar(t.nbytes / most))
    return [
        tag("th", *label, scope="row", data_value=name(t.name)),
        number(shape(t), "minor", t.numel),
        number(str(t.tile), "minor"),
        number(str(t.rank), "minor"),
        number(f"{t.nbytes:,}", value=t.nbytes),
        number(f"{t.bits_per_weight:.2f}"),
        number(decibels(t.snr), low, value=max(-1e9, min(order, 1e9))),
    ]


def cards(facts: Facts) -> Markup:
    """Return the section with a card for each layer, the largest first.

    The cards of smaller layers are folded. At most 300 layers have a card.
    """
    ordered = sorted(facts.layers, key=lambda layer: -layer.summary.nbytes)
    first = [card(layer) for layer in ordered[:_OPEN_CARDS]]
    others = [card(layer) for layer in ordered[_OPEN_CARDS:_MOST_CARDS]]
    parts = [tag("div", *first, class_="cards")]
    if others:
        folded = tag("div", *others, class_="cards")
        parts.append(details(f"{len(others)} smaller layers", folded))
    return section("Inside the layers", _legend(facts), *parts)


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


def unfactored(facts: Facts) -> Markup:
    """Return the section with the unfactored tensors.

    Tensors whose names differ only in numbers share a row.
    """
    groups = unfactored_groups(facts.report)
    if not groups:
        return Markup()
    rows = [
        [
            tag("th", breakable(pattern), scope="row"),
            number(f"{len(members):,}"),
            tag("td", members[0].dtype, class_="minor"),
            number(f"{sum(t.nbytes for t in members):,}"),
            tag("td", name(members[0].note)),
        ]
        for pattern, members in groups
    ]
    count = sum(len(members) for _, members in groups)
    columns = {
        "Tensors": "",
        "Number": "number",
        "Type": "minor",
        "Bytes before": "number",
        "How, and why": "",
    }
    content = table(
        "Bytes are those before compression", columns, rows, class_="unfactored-tensors"
    )
    return section(
        "Unfactored tensors", "", details(f"{count:,} tensors are not factored", content)
    )


def notes(facts: Facts) -> Markup:
    """Return the footer, which says where the numbers come from."""
    origin = (
        "as measured when the file was made"
        if facts.dense is None
        else join("measured against ", tag("code", name(facts.dense)))
    )
    return tag(
        "footer",
        tag(
            "p",
            "1 kB is 1000 bytes. Bits per weight of the model count the whole file, those of a "
            "layer its factors. Codebook and latents of a layer share one coded stream; their "
            "division is within a few bytes. Signal-to-noise ratios of the weights: ",
            origin,
            f". Made by tersor {__version__}.",
        ),
    )
