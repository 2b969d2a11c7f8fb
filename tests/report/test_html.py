# SPDX-License-Identifier: Apache-2.0
import json
import re

import torch
from pages import HOSTILE, SECTIONS, Collector, curve_of, entry, every_kind, hostile_page, page_of
from safetensors.torch import save_file

from tersor.compression import curve_file
from tersor.report import html
from tersor.report.facts import gather
from tersor.storage import container
from tersor.storage.archive import Archive


def test_the_page_has_all_sections_and_numbers(tmp_path):
    page = page_of(tmp_path, every_kind(), curve=curve_of(tmp_path))
    found = Collector(page)
    assert found.tags.count("h1") == 1 and found.tags.count("section") == len(SECTIONS)
    size = (tmp_path / "model.tersor").stat().st_size
    texts = [f"{size:,} bytes", "same as embed.weight", "rank 6 of 9", "12.5"]
    texts += ["Codebook: the 18 strongest of 40 columns", "recomposed from the file", *SECTIONS]
    for text in texts:
        assert text in found.text.replace("\xa0", " "), text


def test_figures_of_the_table_are_those_of_inspect(tmp_path):
    page = page_of(tmp_path, every_kind())
    report = gather(tmp_path / "model.tersor").report
    rows = re.findall(r"<tr><th scope=\"row\" data-value=.*?</tr>", page)
    assert len(rows) == len(report.factored) == 5
    for row, t in zip(rows, report.factored, strict=True):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        assert cells[1:5] == [str(t.tile), str(t.rank), f"{t.nbytes:,}", f"{t.bits_per_weight:.2f}"]
        assert Collector(row).text.startswith(t.name)
    snrs = [re.findall(r"<td[^>]*>(.*?)</td>", row)[5] for row in rows]
    assert snrs == ["12.5", "–", "12.5", "exact", "0.0"]


def test_with_a_checkpoint_it_says_so(tmp_path):
    torch.manual_seed(0)
    save_file({"conv.weight": torch.randn(32, 16, 3, 3)}, tmp_path / "<b>.safetensors")
    container.write(tmp_path / "m.tersor", Archive({"conv.weight": entry((32, 16, 3, 3), 9, 6)}, 1))
    facts = gather(tmp_path / "m.tersor", tmp_path / "<b>.safetensors")
    text = Collector(html.page(facts)).text
    assert "tiles of the dense weights" in text and "measured against <b>.safetensors" in text
    assert f"{facts.snr():.1f} dB" in text


def test_names_are_hostile_text(tmp_path):
    page = hostile_page(tmp_path)
    found = Collector(page)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    for name in HOSTILE[:4]:
        assert name in found.text and f"same as {HOSTILE[0]}" in found.text
    assert "名前" in found.text and "long." * 30 not in found.text
    page.encode()  # no lone surrogates


def test_a_page_about_hundreds_of_layers_stays_small(tmp_path):
    entries = {
        f"blocks.{i}.conv.weight": entry((32, 16, 3, 3), 9, 9, seed=i % 50) for i in range(500)
    }
    page = page_of(tmp_path, entries)
    assert len(page.encode()) < 2_000_000
    assert page.count("<article>") == 300 and "200 small ones are in the table only" in page
    unfolded = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert unfolded.count("<article>") == 6 and len(unfolded) < 200_000


def test_a_file_of_nothing(tmp_path):
    found = Collector(page_of(tmp_path, {}))
    assert "Where the bytes are" in found.text and "Inside the layers" not in found.text


def test_the_same_file_gives_the_same_page(tmp_path):
    assert page_of(tmp_path, every_kind()) == page_of(tmp_path, every_kind())


def test_a_curve_without_evaluation_is_one_of_the_error(tmp_path):
    unknown = {"predicted_drop": None, "measured": None}
    points = [{"bytes": 1000 * 2**i, "error": 0.1 / 4**i} | unknown for i in range(3)]
    data = {"points": points, "metric": None, "dense": None, "dense_bytes": 90_000}
    (tmp_path / "curve.json").write_text(json.dumps(data))
    curve = curve_file.read(tmp_path / "curve.json")
    text = Collector(page_of(tmp_path, every_kind(), curve=curve)).text
    assert "Size and error" in text and "Squared error, share" in text and "0.025" in text
    assert "Size and accuracy" not in text and "Predicted loss" not in text
