# SPDX-License-Identifier: Apache-2.0
"""Read and write folders of Hugging Face whose weights are a tersor file.

The tersor file is the only tensor, of type uint8, in a safetensors file of a name of its own.
``config.json`` says that the model is quantized by tersor, and names a weights file that does not
exist. `tersor.transformers` replaces that name. Without it, transformers finds no weights and
raises an error; otherwise it would warn of an unknown quantization, and return random weights.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersor.errors import FileFormatError, InputError
from tersor.storage.atomic import check_writable, replacing

VARIANT = "tersor"
"""Name that transformers puts into the names of weights files."""

WEIGHTS = f"model.{VARIANT}.safetensors"
"""The weights file of a compressed folder."""

KEY = "tersor"
"""Name of the only tensor in that file."""

NEEDED = "needs-tersor-so-import-tersor.transformers-first.safetensors"
"""Name of the weights file in ``config.json``, which transformers shows when it does not find it.
"""

METHOD = "tersor"
"""Name of the quantization in ``config.json``."""

_DENSE = "model.safetensors"

_CONFIG = "config.json"

_WEIGHTS_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf"),
    *(".onnx", ".onnx_data", ".tflite", ".mlmodel", ".tersor", ".partial"),
}
"""Endings of files with weights, in any format."""

_LARGEST_HEADER = 1 << 20


def is_compressed(folder: Path) -> bool:
    """Return whether a path is a folder whose weights are a tersor file."""
    return (folder / WEIGHTS).is_file()


def embedded(path: Path) -> tuple[int, int]:
    """Return where the tersor file in a safetensors file starts, and its size in bytes.

    Raises
    ------
    FileFormatError
        If it is not a safetensors file of this one tensor.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _LARGEST_HEADER:
                raise ValueError
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        if list(header) != [KEY] or header[KEY]["dtype"] != "U8":
            raise ValueError
        start, stop = map(int, header[KEY]["data_offsets"])
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError):
        raise FileFormatError(
            f"{path} is a safetensors file without a tersor file in it; give a .tersor file, or a "
            "folder that `tersor compress` wrote"
        ) from None
    if start != 0 or 8 + size + stop != path.stat().st_size:
        raise FileFormatError(f"{path} is damaged: it has another length; get the file again")
    return 8 + size, stop


def embed(tersor_file: Path, path: Path) -> None:
    """Write a safetensors file whose only tensor is a tersor file, as safetensors itself would."""
    size = tersor_file.stat().st_size
    content = {
        "__metadata__": {"format": "pt"},
        KEY: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out, tersor_file.open("rb") as file:
        out.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(file, out)


def mark(folder: Path, **changes: Any) -> None:
    """Say in the configuration of a compressed folder which file the weights need to be loaded.

    Parameters
    ----------
    folder
        Folder with a configuration, which is changed.
    changes
        Other entries of the configuration to change.
    """
    config = _read_config(folder)
    config.setdefault("quantization_config", {"quant_method": METHOD})
    _write_config(folder, {**config, **changes, "transformers_weights": NEEDED})


def check_folder(source: Path, output: Path) -> None:
    """Check before the work starts that a folder can be written next to its source.

    Parameters
    ----------
    source
        Folder of Hugging Face.
    output
        Folder to write later.

    Raises
    ------
    InputError
        If the source has no configuration, or the output exists and is not an empty folder, or
        cannot be created.
    """
    if not (source / _CONFIG).is_file():
        raise InputError(
            f"{source} has no {_CONFIG}, so that it is not a folder of a Hugging Face model; to "
            "write a file, give a name that ends in .tersor"
        )
    _read_config(source)
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise InputError(f"{output} is there already; give a new or an empty folder")
    if output.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{output} would be inside of {source}; give another place")
    check_writable(output)


def write_compressed(source: Path, output: Path, tersor_file: Path, dtype: str) -> None:
    """Write a folder with the configuration and tokenizer of another one, and compressed weights.

    Parameters
    ----------
    source
        Folder of the dense model. All its files but weights and hidden ones are copied.
    output
        Folder to write, new or empty. It appears when it is complete.
    tersor_file
        The weights.
    dtype
        Data type of the weights, such as ``"float32"``, for a configuration that does not say it.
        transformers would take the type of the tensor in the file, which is uint8.
    """
    with _new_folder(output) as folder:
        _copy_others(source, folder)
        embed(tersor_file, folder / WEIGHTS)
        config = _read_config(folder)
        given = config.get("dtype") or config.get("torch_dtype") or dtype
        changes = {"quantization_config": {"quant_method": METHOD}, "dtype": given}
        _write_config(folder, {**config, **changes})
        mark(folder)


def write_dense(source: Path, output: Path, export: Callable[[Path], int]) -> int:
    """Write a folder with the configuration and tokenizer of another one, and dense weights.

    Parameters
    ----------
    source
        Folder with compressed weights.
    output
        Folder to write, new or empty. It appears when it is complete.
    export
        Function that writes the weights as a safetensors file, and returns its size in bytes.

    Returns
    -------
    int
        Bytes of the weights.
    """
    with _new_folder(output) as folder:
        _copy_others(source, folder)
        config = _read_config(folder)
        for name in ("quantization_config", "transformers_weights"):
            config.pop(name, None)
        _write_config(folder, config)
        return export(folder / _DENSE)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the output at the end, unless there is an error."""
    with tempfile.TemporaryDirectory(prefix=f".{output.name[:40]}.", dir=output.parent) as name:
        folder = Path(name) / "folder"  # a folder of its own, for the usual permissions
        folder.mkdir()
        yield folder
        folder.replace(output)


def _copy_others(source: Path, target: Path) -> None:
    """Copy all files but weights and hidden ones, with the folders that they are in."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or _is_weights(path):
            continue
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and not path.is_symlink():
            (target / path.name).mkdir()
            _copy_others(path, target / path.name)
            if not any((target / path.name).iterdir()):
                (target / path.name).rmdir()


def _is_weights(path: Path) -> bool:
    """Return whether a file holds weights, or is the index of such files."""
    return path.suffix.lower() in _WEIGHTS_SUFFIXES or path.name.endswith(".index.json")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not the configuration of a model: it holds no JSON object")
    return config


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    with replacing(folder / _CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")
