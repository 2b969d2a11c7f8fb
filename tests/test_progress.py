# SPDX-License-Identifier: Apache-2.0
"""The bar as a terminal shows it."""

import io

import pytest
import rich.console

from tersor.progress import shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 80, 120])
def test_times_are_never_cut(monkeypatch, width):
    """What gives way in a narrow terminal is the name of the tensor."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with shown("compressing") as progress:
        progress("pass 1: encoder.block.11.layer.1.DenseReluDense.wi_0.weight[0]" * 2, 0.25)
    assert " 25 %" in screen.getvalue()
    last = screen.getvalue().split("compressing")[-1]
    assert "0:00:00" in last and "-:--:--" in last and "…" in last
    assert rich.console.Console(file=io.StringIO(), width=width).width == width
