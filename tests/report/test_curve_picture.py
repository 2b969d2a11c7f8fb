# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
from rich.console import Console

from tersor.compression import curve_file
from tersor.compression.curve_file import Curve, Point
from tersor.errors import InputError, MissingExtraError
from tersor.report import curve_picture

MEASURED = Curve(
    (Point(1000, 2.5, 89.5, 0.25), Point(2000, 1.0, None, 0.1), Point(4000, 0.25, 91.75, 0.01)),
    "top1",
    92.0,
    40_000,
)
PREDICTED = Curve(
    (Point(1000, None, None, 0.25), Point(4000, None, None, 0.01)), None, None, 40_000
)


def text(curve):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(curve_picture.render(curve))
    return [line.split() for line in capture.get().splitlines()]


def test_the_table():
    assert text(MEASURED) == [
        ["bytes", "ratio", "error", "predicted", "drop", "top1"],
        ["1000", "40.0", "25.00", "%", "2.5", "89.5"],
        ["2000", "20.0", "10.00", "%", "1", "-"],
        ["4000", "10.0", "1.00", "%", "0.25", "91.75"],
    ]
    assert text(PREDICTED)[1] == ["1000", "40.0", "25.00", "%"]


@pytest.mark.parametrize("curve", [MEASURED, PREDICTED])
def test_what_is_written_is_read(tmp_path, curve):
    curve_file.write(tmp_path / "curve.json", curve)
    assert curve_file.read(tmp_path / "curve.json") == curve


@pytest.mark.parametrize("curve", [MEASURED, PREDICTED])
@pytest.mark.parametrize("kind, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures(tmp_path, curve, kind, start):
    pytest.importorskip("matplotlib", reason="pictures need the extra plot")
    curve_picture.draw(tmp_path / f"curve.{kind}", curve)
    assert (tmp_path / f"curve.{kind}").read_bytes().startswith(start)


def test_pictures_that_cannot_be_made(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"curve.txt is no picture; .* \.png, \.svg, \.pdf"):
        curve_picture.draw(tmp_path / "curve.txt", MEASURED)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tersor\[plot\]'"):
        curve_picture.check_picture("curve.png")
