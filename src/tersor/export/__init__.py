# SPDX-License-Identifier: Apache-2.0
"""Export compressed models to other runtimes.

Nothing is imported before it is used: the packages of a target come with an extra of its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.export.session import onnx_session
    from tersor.export.to_c import ExportedC, c
    from tersor.export.to_onnx import Exported, onnx

__all__ = ["Exported", "ExportedC", "c", "onnx", "onnx_session"]

_HOMES = {
    "Exported": "to_onnx",
    "ExportedC": "to_c",
    "c": "to_c",
    "onnx": "to_onnx",
    "onnx_session": "session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tersor.export' has no attribute {name!r}")
    return getattr(import_module(f"tersor.export.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
