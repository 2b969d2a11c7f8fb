# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium: nothing is cut off, loaded, run that should not be, or pale."""

import json

import pytest
from browser import CHROMIUM, Browser
from pages import SECTIONS, curve_of, entry, every_kind, hostile_page, page_of


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs the browser chromium, which is not installed (Debian: chromium)")
    with Browser() as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_in_a_browser(tmp_path, browser, width, scheme):
    many = {
        f"blocks.{i}.some_long_name_of_a_layer.weight": entry((64, 64), 8, 8) for i in range(50)
    }
    page = tmp_path / "report.html"
    page.write_text(page_of(tmp_path, every_kind() | many, curve=curve_of(tmp_path)))
    browser.open(page, width, scheme)
    assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
    assert (
        browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)") == SECTIONS
    )
    assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (
        scheme == "dark"
    )
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(overflow) == 0
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.evaluate(overflow) == 0
    outside = """[...document.querySelectorAll('body *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1);
    }).map(e => e.outerHTML.slice(0, 99))"""
    assert browser.evaluate(outside) == []


# Relative luminance and contrast as WCAG 2.1 defines them.
CONTRASTS = """(() => {
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = color => channels(color).slice(0, 3)
        .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((channels(color)[3] ?? 1) > 0) return color;
        }
    };
    const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const found = {};
    for (const element of document.querySelectorAll(SELECTOR)) {
        const style = getComputedStyle(element);
        const color = style[PROPERTY];
        if (color === "none") continue;
        const back = behind(element);
        found[`${color} on ${back}`] = contrast(luminance(color), luminance(back));
    }
    return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("selector", "kind", "least"),
    [
        ("h1, h2, h3, p, td, th, dt, dd, span, small, caption, figcaption, summary", "color", 4.5),
        ("svg text", "fill", 4.5),
        (".kept, .skyline path:not(.grid)", "fill", 3),
        (".mark, .line, .dropped, .dense", "stroke", 3),
    ],
)
def test_contrast(tmp_path, browser, scheme, selector, kind, least):
    page = tmp_path / "report.html"
    page.write_text(page_of(tmp_path, every_kind(), curve=curve_of(tmp_path)))
    browser.open(page, 1280, scheme)
    script = CONTRASTS.replace("SELECTOR", json.dumps(selector)).replace(
        "PROPERTY", json.dumps(kind)
    )
    found = browser.evaluate(script)
    assert found and {k: v for k, v in found.items() if v < least} == {}


def test_the_table_can_be_sorted(tmp_path, browser):
    page, entries = tmp_path / "report.html", every_kind()
    page.write_text(page_of(tmp_path, entries))
    browser.open(page, 1280, "light")
    values = """(column => [...document.querySelector(".sortable").tBodies[0].rows]
        .map(row => row.cells[column].dataset.value ?? row.cells[column].textContent))"""

    def click(column):
        browser.evaluate(f"document.querySelectorAll('.sortable th button')[{column}].click()")
        return browser.evaluate(f"{values}({column})")

    sizes = [float(v) for v in click(4)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert [float(v) for v in click(4)] == sorted(sizes)
    assert click(0) == sorted(
        name for name in entries if name.endswith("weight") and name != "tied.weight"
    )
    state = "[...document.querySelectorAll('.sortable thead th')].map(t => t.ariaSort)"
    assert browser.evaluate(state) == ["ascending", *[None] * 6]
    assert float(click(6)[-1]) == -1e9  # what was not measured is last


def test_hostile_names_do_nothing_in_a_browser(tmp_path, browser):
    page = tmp_path / "report.html"
    page.write_text(hostile_page(tmp_path))
    browser.open(page, 360, "light")
    assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
    assert browser.evaluate("typeof hacked") == "undefined"
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.documentElement.scrollWidth") == 360


def test_the_page_may_not_run_what_it_does_not_know(tmp_path, browser):
    """Even if an escape were forgotten: the policy refuses scripts, images and requests."""
    intruder = "<script>hacked = 1</script><img src='https://example.invalid/x.png'>"
    page = tmp_path / "report.html"
    page.write_text(page_of(tmp_path, every_kind()).replace("<h1>", f"{intruder}<h1>"))
    browser.open(page, 360, "light")
    assert browser.evaluate("typeof hacked") == "undefined"
    assert len(browser.complaints()) >= 2
