# SPDX-License-Identifier: Apache-2.0
"""Tables at the widths that terminals have."""

import io
import re

import pytest
import torch
from rich.console import Console
from samples import plain, random_factors

from tersor.coding import records
from tersor.report import table
from tersor.storage.archive import Alias, Archive, Entry, Reason
from tersor.storage.summary import summarize

LAYER = "model.encoder.layers.{}.self_attention_layer_norm"


def rendered(entries, width):
    report = summarize(Archive(entries, 90_000))
    console = Console(width=width, file=io.StringIO())
    console.print(table.render(report))
    return console.file.getvalue()


def factored(snr=15.0, rank=3, shape=(60, 100)):
    return Entry(shape, torch.float32, records.encode(random_factors(shape, 4, rank), snr))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_break_between_their_parts(width):
    name = "vision_model.encoder.layers.11.self_attention.out_projection.weight"
    text = rendered({name: factored(), f"{name}_scale": plain(torch.ones(3), Reason.VECTOR)}, width)
    parts = re.split(r"[._]", name)
    words = re.split(r"[._\s]+", text)
    assert all(words.count(part) >= parts.count(part) for part in parts)
    assert max(map(len, text.splitlines())) <= width


def test_a_part_longer_than_its_column_is_folded():
    text = rendered({"w" * 200: factored()}, 80)
    assert text.count("w") >= 200 and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_kept_tensors_are_folded_by_reason(width):
    entries = {"w": factored(), "v": factored()}
    for i in range(30):
        for j, kind in enumerate(("weight", "bias")):
            entries[f"{LAYER.format(i)}{'abcdef'[i % 6] * (i + 1)}.{kind}"] = plain(
                torch.ones(8 + j), Reason.VECTOR, rounded=True
            )
    entries |= {f"steps{i}": plain(torch.tensor(i), Reason.NOT_FLOAT) for i in range(9)}
    entries |= {f"tied{i}": Entry((60, 100), torch.float32, Alias("vw"[i > 1])) for i in range(3)}
    text = rendered(entries, width)
    assert len(text.splitlines()) < 25
    lines = " ".join(text.split())
    assert re.search(r"at 16 bits: not a matrix or.* 60 1020 ", lines)
    assert re.search(r"exact: not floating-point of.* 9 72 ", lines)
    assert "same as another 3 0 tied*, tied2" in lines


def test_what_has_no_noise_is_exact():
    """Also an all-zero tensor, of which files say 300 dB."""
    text = rendered({"zero": factored(float("inf"), rank=0), "w": factored(29.96)}, 80)
    assert "exact" in text and "300" not in text.split("Unfactored")[0].split("bytes (")[0]


def test_low_ratios_are_marked_and_warned_of():
    text = rendered({"weak.weight": factored(7.0), "good.weight": factored(25.0)}, 80)
    assert "! 7.0" in text and "! 25.0" not in text
    assert "warning: 1 weight is below 12 dB of signal to noise: 'weak.weight' (7.0)" in text
    assert " ".join(text.split()).count("predicted, without data, to differ by about 45 %") == 1
    assert "outputs are predicted, without data, to differ by about 5.6 %" in rendered(
        {"good.weight": factored(25.0)}, 80
    )
