# SPDX-License-Identifier: Apache-2.0
import re
import xml.etree.ElementTree as ET

import pytest

from tersor.compression.curve_file import Curve, Point
from tersor.report import curve_chart

POINTS = (Point(1000, 3.0, 88.5), Point(2000, 1.0, None), Point(4000, None, 91.0))
CURVE = Curve(POINTS, "top-1", 91.5, 20_000)


def drawn(curve, nbytes=2000):
    """The line, the dots and the place of the file, in units of the picture."""
    root = ET.fromstring(curve_chart.draw(curve, nbytes))
    paths = {p.get("class"): p.get("d") for p in root.iter("path")}
    line = [tuple(map(float, p.split())) for p in re.split("[ML]", paths.get("line", ""))[1:]]
    dots = [
        (float(c.get("cx")), float(c.get("cy")))
        for c in root.iter("circle")
        if c.get("class") == "dot"
    ]
    mark = float(re.match(r"M([\d.]+)", paths["mark"])[1])
    return line, dots, mark, paths


def test_predictions_and_measurements_share_the_scales():
    line, dots, mark, paths = drawn(CURVE)
    assert len(line) == 2 and len(dots) == 2
    assert dots[0][0] == line[0][0] and dots[0][1] == line[0][1]  # 91.5 - 3.0 is what is measured
    assert mark == line[1][0]
    assert line[1][0] - line[0][0] == pytest.approx(dots[1][0] - line[1][0], abs=0.11)  # a ratio
    height = float(re.match(r"M\d+ ([\d.]+)", paths["dense"])[1])
    assert height < dots[1][1] < line[1][1] < line[0][1]


def test_without_the_dense_score_the_change_is_shown():
    curve = Curve(POINTS, "top-1", None, 20_000)
    line, dots, _, paths = drawn(curve)
    assert len(line) == 2 and not dots and "dense" not in paths
    assert curve_chart.quantity(curve) == "Change in top-1"
    assert line[1][1] < line[0][1]


def test_only_measurements():
    curve = Curve((Point(1000, None, 5.0), Point(3000, None, 6.0)), None, None, 20_000)
    line, dots, _, _ = drawn(curve)
    assert not line and len(dots) == 2 and dots[1][1] < dots[0][1]
    assert curve_chart.quantity(curve) == "the metric"


def test_without_any_metric_the_error_is_shown():
    points = (Point(1000, None, None, 0.25), Point(3000, None, None, 0.01))
    curve = Curve(points, None, None, 20_000)
    line, dots, _, _ = drawn(curve)
    assert len(line) == 2 and not dots and line[1][1] > line[0][1]
    assert curve_chart.quantity(curve) == "Squared error in % of that of zeros"


@pytest.mark.parametrize("nbytes", [1, 10, 2000, 10**12])
@pytest.mark.parametrize("points", [POINTS, POINTS[:1], (Point(2000, None, None),)])
def test_everything_is_inside_the_picture(points, nbytes):
    curve = Curve(points, None, 91.5, 20_000)
    line, dots, mark, _ = drawn(curve, nbytes)
    for x, y in [*line, *dots, (mark, 30)]:
        assert 42 <= x <= 330 and 20 <= y <= 182
    texts = list(ET.fromstring(curve_chart.draw(curve, nbytes)).iter("text"))
    assert any(t.text.startswith("this file: ") for t in texts)
    assert 3 < len(texts) < 16


def test_points_name_their_size_and_value_under_the_mouse():
    root = ET.fromstring(curve_chart.draw(CURVE, 2000))
    titles = [(c.get("class"), c.findtext("title")) for c in root.iter("circle")]
    assert titles == [
        ("spot", "1000 bytes: 88.5, predicted"),
        ("spot", "2000 bytes: 90.5, predicted"),
        ("dot", "1000 bytes: 88.5, measured"),
        ("dot", "4000 bytes: 91, measured"),
    ]
