# SPDX-License-Identifier: Apache-2.0
"""What runs the documentation notices what is wrong in it."""

import pytest
from documented import file_of, languages, run_page, skipped
from sybil.example import SybilFailure


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A function that writes a page; the current folder is empty but for it."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "page.md"
        path.write_text(text)
        return path

    return write


def test_blocks_run_in_order_and_share_names(page):
    text = "<!-- invisible-code-block: python\na = 1\n-->\n"
    text += (
        "```python\nopen('b', 'w').write(str(a))\n```\n\n```console\n$ cat b  # shows it\n1\n```\n"
    )
    run_page(page(text))


@pytest.mark.parametrize(
    "block, error",
    [
        ("```python\nmissing\n```", NameError),
        ("  ```python\n  missing\n  ```", NameError),
        ("```python\n>>> 1 + 1\n3\n```", SybilFailure),
        ("```console\n$ ls none\n```", AssertionError),
        ("```console\n$ tersor inspect none.tersor\n```", AssertionError),
        ("```console\n$ echo one\ntwo\n```", SybilFailure),
        ("```console\n$ true\n$ false\n```", AssertionError),
        (
            '```python title="a.py"\nmissing\n```\n\n```python\nimport a\n```',
            (NameError, ImportError),
        ),
    ],
    ids=lambda value: value.splitlines()[-2] if isinstance(value, str) else "",
)
def test_what_is_wrong_fails(page, block, error):
    with pytest.raises(error):
        run_page(page(f"text\n\n{block}\n"))


def test_output_may_be_shown_in_part(page):
    run_page(page("```console\n$ printf 'one\\ntwo\\nthree\\n'\none\n...\nthree\n```\n"))


def test_what_is_skipped_says_why(page):
    path = page('<!-- skip: next "needs two GPUs" -->\n```console\n$ false\n```\n')
    run_page(path)
    assert skipped(path) == ["needs two GPUs"] and languages(path) == ["console"]


def test_blocks_with_a_title_are_files(page):
    path = page('```c title="a.c"\nint a;\n```\n\n```console\n$ cat a.c\nint a;\n```\n')
    run_page(path)
    assert file_of(path, "a.c") == "int a;\n"
