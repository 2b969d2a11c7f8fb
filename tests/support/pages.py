# SPDX-License-Identifier: Apache-2.0
"""Pages about small files, and what finds out what is on a page."""

import json
import math
from html.parser import HTMLParser

import torch
from samples import plain, random_factors

from tersor.coding import records
from tersor.compression import curve_file
from tersor.report import html
from tersor.report.facts import gather
from tersor.storage import container
from tersor.storage.archive import Alias, Archive, Entry, Reason

HOSTILE = (
    "<script>hacked = 1</script>",
    '"><img src=x onerror="hacked=1">',
    "</title><svg onload=hacked=1>",
    "' onclick='hacked=1",
    "\x00\x1b[2J\u202e",
    "名前",
    "",
    "long." * 1000,
)
SECTIONS = [
    "Size and accuracy",
    "Where the bytes are",
    "Bits per weight, layer by layer",
    "Layers",
    "Inside the layers",
    "Unfactored tensors",
]


def entry(shape, tile, rank, snr=12.5, seed=0):
    factors = random_factors(shape, tile, rank, seed)
    return Entry(shape, torch.float32, records.encode(factors, snr))


def curve_of(folder, metric="top-1, %"):
    points = [
        {"bytes": 1000 * 2**i, "predicted_drop": 4.0 / 2**i, "measured": 91 if i == 2 else None}
        for i in range(5)
    ]
    data = {"points": points, "metric": metric, "dense": 91.7, "dense_bytes": 90_000}
    (folder / "curve.json").write_text(json.dumps(data))
    return curve_file.read(folder / "curve.json")


def page_of(folder, entries, name="model.tersor", curve=None):
    container.write(folder / name, Archive(entries, 90_000))
    return html.page(gather(folder / name), curve)


class Collector(HTMLParser):
    """Names of elements, their attributes and the text of a page, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(str(text))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def every_kind():
    """A layer of every kind, and unfactored tensors."""
    return {
        "conv.weight": entry((32, 16, 3, 3), 9, 6),
        "wide.weight": entry((8, 12, 3, 3), 27, 40, math.nan),
        "embed.weight": entry((300, 64), 64, 20),
        "plain.weight": entry((64, 64), 1, 1, math.inf),
        "zero.weight": entry((64, 64), 8, 0, 0.0),
        "conv.bias": plain(torch.zeros(32), Reason.VECTOR, rounded=True),
        "steps": plain(torch.tensor(3), Reason.NOT_FLOAT),
        "tied.weight": Entry((300, 64), torch.float32, Alias("embed.weight")),
    }


def hostile_page(folder):
    names = iter(HOSTILE)
    entries = {next(names): entry((32, 16, 3, 3), 9, 6)}
    entries[next(names)] = plain(torch.zeros(3), Reason.VECTOR)
    entries["tied"] = Entry((32, 16, 3, 3), torch.float32, Alias(HOSTILE[0]))
    entries |= {name: entry((16, 16), 4, 2) for name in names}
    curve = curve_of(folder, '<script>hacked="\ud800"</script>')
    return page_of(folder, entries, "<script>hacked=1<\u2215script>.tersor", curve)
