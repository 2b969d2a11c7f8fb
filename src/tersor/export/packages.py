# SPDX-License-Identifier: Apache-2.0
"""Import the packages of a target, or say which extra brings them; keep them quiet."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from typing import Any

from tersor.errors import MissingExtraError

_EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnx_ir": "onnx", "onnxruntime": "onnx-runtime"}


def needed(name: str, purpose: str) -> Any:
    """Return a package.

    Parameters
    ----------
    name
        Name of the package.
    purpose
        The subject of the message, such as "the export to ONNX".

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs the package {package}: pip install 'tersor[{_EXTRAS[package]}]'"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out warnings of packages about themselves, and graphs that they print beside errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
