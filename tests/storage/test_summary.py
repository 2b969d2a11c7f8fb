# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest
import torch
from rich.console import Console
from samples import plain, random_factors, small_archive, to_file_bytes

from tersor.coding import records
from tersor.report import table
from tersor.storage import container
from tersor.storage.archive import Archive, Entry, Reason
from tersor.storage.opened import OpenFile
from tersor.storage.summary import summarize, summarize_file, unfactored_groups


def rendered(archive, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table.render(summarize(archive)))
    return console.export_text()


def test_numbers_of_a_file():
    archive = small_archive()
    report = summarize(archive)
    assert report.nbytes == container.size(archive)
    assert report.ratio == 600 / report.nbytes
    assert report.weights == 60 + 4 + 2  # the tied one only once
    assert report.bits_per_weight == 8 * report.nbytes / 66
    weight, bias, steps, tied = report.tensors
    assert (weight.tile, weight.rank, weight.snr, weight.note) == (4, 3, 12.5, "")
    assert weight.nbytes == archive.entries["layer.weight"].content.coded_bytes
    assert (bias.nbytes, bias.note) == (8, "at 16 bits: not a matrix or kernel")
    assert steps.note.startswith("exact: not floating-point")
    assert (tied.nbytes, tied.note) == (0, "same as layer.weight")
    assert report.factored == (weight,)


def test_only_exact_tensors_are_lossless():
    exact = {
        "w": plain(torch.randn(9, 9), Reason.LOSSLESS),
        "n": plain(torch.ones(3), Reason.VECTOR),
    }
    rounded = plain(torch.ones(3), Reason.VECTOR, rounded=True)
    assert summarize(Archive(exact, 9)).lossless
    assert "lossless" in table.total(summarize(Archive(exact, 9)))
    for archive in (Archive(exact | {"r": rounded}, 9), small_archive()):
        assert not summarize(archive).lossless
        assert "lossless" not in table.total(summarize(archive))


def test_the_real_size_can_be_given():
    assert summarize(small_archive(), 300).nbytes == 300


def test_what_was_not_measured_is_not_shown():
    factors = records.encode(random_factors((6, 10), 4, 3))
    (tensor,) = summarize(Archive({"w": Entry((6, 10), torch.float32, factors)}, 9)).tensors
    assert tensor.snr is None


def test_an_empty_file_has_a_summary():
    report = summarize(Archive({}, 0))
    assert report.bits_per_weight == 8 * report.nbytes and report.ratio == 0


def test_every_reason_has_words():
    assert len({kind.describe() for kind in Reason}) == len(Reason)


def test_the_table_tells_everything():
    text = rendered(small_archive())
    for part in (
        "layer.weight",
        "6x10",
        "12.5",
        "layer.bias",
        "at 16 bits",
        "same as layer.weight",
    ):
        assert part in text
    assert f"{container.size(small_archive())} bytes" in text


@pytest.mark.parametrize("name", ["[red]w[/]", "[/nothing]", ":smile:", "\x1b[2J", "名前", ""])
def test_names_are_shown_as_they_are(name):
    """They come from files: not markup, and not what would steer the terminal."""
    entries = {
        name: plain(torch.tensor(1.0), Reason.VECTOR),
        "v": small_archive().entries["layer.bias"],
    }
    text = rendered(Archive(entries, 1))
    assert "\x1b" not in text
    assert (name if name.isprintable() else "x1b[2J") in text


def test_alike_tensors_share_a_row():
    entries = {f"layer.{i}.bias": plain(torch.zeros(4), Reason.VECTOR) for i in range(12)}
    text = rendered(Archive(entries, 1))
    assert "layer.*.bias" in text and "12" in text and "layer.3.bias" not in text


def test_groups_of_unfactored_tensors():
    entries = {
        "a.0": plain(torch.zeros(4), Reason.VECTOR),
        "b": plain(torch.zeros(2), Reason.VECTOR),
        "a.17": plain(torch.zeros(4), Reason.VECTOR),
        "a.2": plain(torch.zeros(4), Reason.LEFT_DENSE),
    }
    groups = unfactored_groups(summarize(Archive(entries, 1)))
    assert [(name, [t.name for t in members]) for name, members in groups] == [
        ("a.*", ["a.0", "a.17"]),
        ("b", ["b"]),
        ("a.2", ["a.2"]),
    ]


def test_json_is_plain_and_complete():
    report = summarize(small_archive())
    data = json.loads(json.dumps(table.to_json(report), allow_nan=False))
    assert data["nbytes"] == report.nbytes and len(data["tensors"]) == 4
    assert math.isclose(data["tensors"][0]["bits_per_weight"], report.tensors[0].bits_per_weight)


def test_the_table_is_the_same_before_and_after_writing():
    """12.5512 dB is 12.55 in the file: rounded once more, that may be another tenth."""
    for snr in (12.5512, 12.5499, 0.04999, math.inf, -0.2501):
        encoded = records.encode(random_factors((6, 10), 4, 3), snr)
        archive = Archive({"w": Entry((6, 10), torch.float32, encoded)}, 9)
        read = summarize_file(OpenFile(to_file_bytes(archive)).layout)
        assert summarize(archive) == read
