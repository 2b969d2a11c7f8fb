# SPDX-License-Identifier: Apache-2.0
"""The bar as a terminal shows it."""

import io
import re

import pytest
import rich.console

from tersor.progress import shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_times_are_never_cut(monkeypatch, width):
    """What gives way in a narrow terminal is the name of the tensor."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with shown("compressing") as progress:
        progress("pass 1: encoder.block.11.layer.1.DenseReluDense.wi_0.weight[0]" * 2, 0.25)
    assert " 25 %" in screen.getvalue()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).strip().split("\r")[-1]
    assert "left" in last and "-:--:--" in last and "pass 1" in last and "…" in last
    assert len(last) <= width
    assert ("compressing" in last and "0:00:00" in last) == (width >= 72)
    assert rich.console.Console(file=io.StringIO(), width=width).width == width
