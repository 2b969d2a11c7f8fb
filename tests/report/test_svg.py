# SPDX-License-Identifier: Apache-2.0
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
import torch

from tersor.report import svg
from tersor.report.atoms import atoms


def bars(path):
    """Left edge, bottom and height of the bars of a path."""
    found = re.findall(r"M([\d.]+) ([\d.]+)v(-?[\d.]+)", path)
    return [(float(x), float(y), -float(v)) for x, y, v in found]


def by_class(image, name):
    (path,) = [p for p in ET.fromstring(image).iter("path") if p.get("class") == name]
    return path.get("d")


def test_the_spectrum_is_in_decibels_and_split_at_the_rank():
    image = svg.spectrum([1.0, 10**-0.5, 10**-1.0], 2, "label")
    kept, dropped = bars(by_class(image, "kept")), bars(by_class(image, "dropped"))
    assert len(kept) == 2 and len(dropped) == 1
    heights = [h for _, _, h in kept + dropped]  # 0, -10 and -20 dB above a floor of -25
    assert heights == pytest.approx([76, 76 * 15 / 25, 76 * 5 / 25], abs=0.06)
    assert kept[1][0] < dropped[0][0] and "−25 dB" in image


@pytest.mark.parametrize("values", [[1.0, 0.0], [3.0, 1e-9], [2.0] * 500, [1.0] + [0.5] * 70])
@pytest.mark.parametrize("rank", [0, 1, 600])
def test_any_spectrum_can_be_drawn(values, rank):
    image = svg.spectrum(values, rank, "label")
    drawn = bars(by_class(image, "kept") + by_class(image, "dropped"))
    assert len(drawn) == min(len(values), 64)
    assert all(0 <= h <= 76 for _, _, h in drawn)
    assert (by_class(image, "mark") == "") == (rank != 1)


def test_the_area_of_a_block_is_its_bytes():
    blocks = [svg.Block(100, 2.0, "a", "a: 1"), svg.Block(300, 0.5, "<b>", "<b>: 2")]
    root = ET.fromstring(svg.skyline(blocks, "label"))
    shapes = [p.get("d") for p in root.iter("path") if p.get("class") is None]
    sizes = [re.fullmatch(r"M[\d.]+ 100v-([\d.]+)h([\d.]+)V100z", d).groups() for d in shapes]
    (h1, w1), (h2, w2) = [(float(h), float(w)) for h, w in sizes]
    assert w1 + w2 == 1000 and w2 / w1 == 3
    assert h1 * w1 / (h2 * w2) == pytest.approx(200 / 150)
    assert [t.text for t in root.iter("title")] == ["a: 1", "<b>: 2"]
    assert [s.text for s in root.iter("span")] == ["a", "<b>"]


def test_blocks_without_bytes():
    assert "nan" not in svg.skyline([svg.Block(5, 0.0, "a", "a")], "label")


def test_shares_of_the_histogram():
    image = svg.histogram([50, 25, 24, 1, 0, 0, 0], "label")
    heights = [h for _, _, h in bars(by_class(image, "kept"))]
    assert heights == pytest.approx([68, 34, 68 * 0.48, 68 * 0.02, 0, 0, 0], abs=0.06)
    texts = [t.text.replace("\xa0", " ") for t in ET.fromstring(image).iter("text")]
    assert texts[:4] == ["50 %", "0", "25 %", "1"] and "0 %" in texts


@pytest.mark.parametrize(
    ("low", "high"), [(0, 4.69), (0, 0.003), (88.3, 91.73), (-3, 0), (5, 5), (0, 0), (-1e9, 1e9)]
)
def test_round_numbers_enclose_what_is_drawn(low, high):
    numbers = svg.round_numbers(low, high)
    assert numbers[0] <= low and numbers[-1] >= high and 2 <= len(numbers) <= 7
    steps = [b - a for a, b in pairwise(numbers)]
    assert all(math.isclose(s, steps[0], rel_tol=1e-6) for s in steps)


def test_atoms_have_the_shades_of_their_values():
    image = atoms(torch.tensor([[[[-1.0, 0.0], [0.2, 1.0]]]]), "label")
    root = ET.fromstring(image)
    shades = {p.get("fill"): p.get("d") for p in root.iter("path") if p.get("fill")}
    assert shades["#000000"] == "M0 0h1v1h-1z" and shades["#ffffff"] == "M1 1h1v1h-1z"
    assert len(shades) == 4 and list(shades) == sorted(shades)


def test_windows_of_a_tile_stand_side_by_side():
    root = ET.fromstring(atoms(torch.zeros(2, 3, 3, 3), "label"))
    (frame,) = [p.get("d") for p in root.iter("path") if p.get("class") == "frame"]
    corners = [tuple(map(float, c)) for c in re.findall(r"M([\d.]+) ([\d.]+)h", frame)]
    assert corners == [(0, 0), (3.5, 0), (7, 0), (11, 0), (14.5, 0), (18, 0)]
