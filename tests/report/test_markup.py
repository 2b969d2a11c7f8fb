# SPDX-License-Identifier: Apache-2.0
import pytest
from pages import Collector

from tersor.report.markup import tag

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp;", "'", "]]>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_and_attributes_are_escaped(text):
    found = Collector(tag("p", text, title=text))
    assert (found.tags, found.attributes, found.text) == (["p"], [("title", text)], text)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_when_nested(text):
    found = Collector(tag("p", "a", tag("b", text), text))
    assert found.tags == ["p", "b"] and found.text == f"a{text}{text}"


def test_elements_are_not_escaped_again():
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"


def test_names_of_attributes():
    written = tag("th", class_="a", aria_label="b", data_value=0, viewBox="0 0", open=None)
    assert written == '<th class="a" aria-label="b" data-value="0" viewBox="0 0"></th>'
