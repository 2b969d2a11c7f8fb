# SPDX-License-Identifier: Apache-2.0
"""The tables that are written into other pages."""

import re

import pytest

from benchmarks.lib import record
from benchmarks.lib.places import ROOT
from benchmarks.pages import results, tables

DENSE = {"method": "fp32", "asked": 1, "bytes": 1_000_000, "top1": 91.7}
PEERS = [{"method": "scalar", "asked": 10, "bytes": 99_000, "top1": 80.0}]


def one_call(asked, effort, quality):
    row = {"asked": asked, "effort": effort, "quality": quality, "bytes": 100_000 // asked}
    return row | {"output_error": 0.1, "processor_seconds": 9.6}


def test_the_front_table_shows_the_default_call_beside_scalar_quantization():
    ours = [one_call(10, "best", 90.5), one_call(10, "balanced", 90.25)]
    lines = tables.front_table(DENSE, ours, PEERS).splitlines()
    assert [line.count("|") for line in lines] == [4] * 4
    assert "1,000 kB" in lines[2] and "91.70 %" in lines[2]
    assert lines[3] == "| 10 kB, 10 times smaller | **90.25 %** | 80.00 % |"


def test_the_table_of_efforts_shows_one_size():
    rows = [one_call(n, e, 90.0) for n in (10, 20) for e in ("best", "balanced", "fast")]
    shown = tables.effort_table(rows).splitlines()[2:]
    assert [re.findall("`(.*)`", line) for line in shown] == [["fast"], ["balanced"], ["best"]]
    assert all("5,000" in line and "10 s" in line for line in shown)


def test_a_table_replaces_the_one_before():
    page = f"before\n{results.START}\nold\n{results.END}\nafter"
    once = results.between("new", page)
    assert once == f"before\n{results.START}\nnew\n{results.END}\nafter"
    assert results.between("new", once) == once


@pytest.mark.parametrize("mark", [results.START, results.END])
def test_a_page_without_both_marks_is_refused(mark):
    with pytest.raises(ValueError, match="needs the lines"):
        results.between("new", f"text\n{mark}\nmore")


def test_pages_show_what_the_results_say():
    calls = record.content("one_call")["rows"]
    assert tables.effort_table(calls) in results.EFFORT.read_text()
    peers = record.content("resnet20_cifar10")["rows"]
    dense = next(row for row in peers if row["method"] == "fp32")
    table = tables.front_table(dense, calls, peers)
    for path in (*results.FRONTS, ROOT / "docs" / "results.md"):
        assert table in path.read_text(), path
