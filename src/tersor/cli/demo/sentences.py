# SPDX-License-Identifier: Apache-2.0
"""Collect sentences to search in: what Python says of the functions of its own library."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

MODULES = (
    "base64", "bisect", "bz2", "calendar", "copy", "csv", "difflib", "email.utils", "fnmatch",
    "functools", "getpass", "glob", "gzip", "hashlib", "heapq", "html", "io", "itertools", "json",
    "linecache", "locale", "math", "mimetypes", "os.path", "pickle", "platform", "pprint",
    "random", "re", "secrets", "shlex", "shutil", "signal", "socket", "sqlite3", "statistics",
    "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time", "timeit",
    "traceback", "unicodedata", "urllib.parse", "urllib.request", "uuid", "warnings", "webbrowser",
    "zipfile", "zlib",
)  # fmt: skip
"""Modules whose functions are searched."""

_LONGEST = 30
"""Largest number of words of a sentence. Longer ones are lists of arguments."""


class Sentence(NamedTuple):
    """Name of a function, such as "math.comb", and the first sentence about it."""

    name: str
    text: str


class Question(NamedTuple):
    """A task in words, and the name of the function that does it."""

    text: str
    answer: str


QUESTIONS = (
    Question("remove a folder and everything inside it", "shutil.rmtree"),
    Question("in how many ways can I pick a team of five from twelve people?", "math.comb"),
    Question("how much space is left on the drive?", "shutil.disk_usage"),
    Question("mix up the order of a deck of cards", "random.shuffle"),
    Question("the middle value of some measurements", "statistics.median"),
    Question("show a web page to the user", "webbrowser.open"),
    Question("which of these words did the user mean to type?", "difflib.get_close_matches"),
    Question("does February have 29 days this year?", "calendar.isleap"),
    Question("break a long text into short lines", "textwrap.wrap"),
    Question("the five largest values of a data set", "heapq.nlargest"),
    Question("make a password that nobody can guess", "secrets.token_hex"),
    Question("an exact duplicate of nested objects", "copy.deepcopy"),
    Question("has the file on disk been changed? compute its fingerprint", "hashlib.file_digest"),
    Question("the ending of a file's name", "os.path.splitext"),
    Question("how many bytes does a file have?", "os.path.getsize"),
    Question("on which operating system does this program run?", "platform.system"),
    Question("ask for a secret without showing what is typed", "getpass.getpass"),
    Question("find all files whose names match a pattern", "glob.glob"),
    Question("is something there at this path?", "os.path.exists"),
)


def collect(modules: tuple[str, ...]) -> list[Sentence]:
    """Return the first sentence about each public function and class, each sentence once."""
    found: dict[str, str] = {}
    for module in modules:
        for name, text in _sentences(module):
            found.setdefault(text, f"{module}.{name}")
    return [Sentence(name, text) for text, name in found.items()]


def _sentences(module: str) -> Iterator[tuple[str, str]]:
    home = importlib.import_module(module)
    for name in getattr(home, "__all__", dir(home)):
        thing = getattr(home, name, None)
        if name.startswith("_") or not callable(thing) or _is_error(thing):
            continue
        text = first_sentence(inspect.getdoc(thing) or "")
        if 5 <= len(text.split()) <= _LONGEST and "->" not in text:
            yield name, text


def _is_error(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring on one line."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    found = re.match(r"(.+?[.!?])(\s|$)", paragraph)
    return found[1] if found else paragraph
