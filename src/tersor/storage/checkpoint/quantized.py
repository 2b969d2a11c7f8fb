# SPDX-License-Identifier: Apache-2.0
"""Dequantize the 8-bit numbers and scales of quantized checkpoints to weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tersor.errors import InputError
from tersor.storage.checkpoint.source import Content, Stored
from tersor.tiling import Rowwise

_BLOCK = 128
"""Rows and columns of a square block with one scale, as in DeepSeek's and similar checkpoints."""

_FEW = 256
"""Smallest number of integers that may be a weight."""

_PACKED = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4",
    ".quant_map": "bitsandbytes, 4 bits",
    ".W_q": "HQQ",
    "_blocks": "MXFP4",
}
"""Ends of names that occur only in checkpoints with several numbers packed in a byte or word."""

_BESIDE = ("_zero_point", ".input_scale", ".input_zero_point", ".weight_format")
"""Ends of names of other tensors that describe a quantized weight and are useless once it is
dequantized."""


@dataclass(frozen=True)
class _Scale:
    """Name of the tensor of scales of a weight, and the number that divides the scales."""

    name: str
    divisor: float = 1.0


def exact(content: Content) -> Content:
    """Return the same content after checking that every tensor is given as it is stored.

    Raises
    ------
    InputError
        If a tensor is given in other numbers than it is stored in.
    """
    for name, stored in content.stored.items():
        given = stored.dtype and math.prod(stored.shape) * stored.dtype.itemsize
        if given is not None and given != stored.nbytes:
            raise InputError(
                f"{name!r} is quantized to {stored.nbytes} bytes in a format that cannot be kept "
                "as it is; lossless is not possible for this file"
            )
    return content


def meant(content: Content) -> Content:
    """Return the content with bfloat16 weights in place of 8-bit numbers and their scales.

    Raises
    ------
    InputError
        If numbers are packed, or the shape of scales does not fit.
    """
    _check_packed(content.stored)
    scales = dict(_scales(content.stored))
    zeros = {n: f"{n}_zero_point" for n in scales if f"{n}_zero_point" in content.stored}
    for name in scales:
        for other in (scales[name].name, *filter(None, [zeros.get(name)])):
            _check_blocks(name, content.stored[name].shape, other, content.stored[other].shape)
    used = {scale.name for scale in scales.values()}
    beside = [b for n in scales for b in _beside(n) if b in content.stored]
    stored = {
        name: _as_float(kind) if name in scales else kind
        for name, kind in content.stored.items()
        if name not in used and name not in beside
    }
    aliases = {
        n: t for n, t in content.aliases.items() if n in stored and t in stored and n not in scales
    }

    def load(name: str) -> Tensor:
        name = aliases.get(name, name)
        values = content.load(name)
        if name not in scales:
            return values
        values, scale = values.float(), content.load(scales[name].name).float()
        if name in zeros:
            values -= _spread(content.load(zeros[name]).float(), values.shape)
        values *= _spread(scale / scales[name].divisor, values.shape)
        return values.to(torch.bfloat16)

    def view(name: str) -> Rowwise:
        name = aliases.get(name, name)
        return load(name) if name in scales else content.rows(name)

    return replace(
        content,
        stored=stored,
        load=load,
        view=view,
        aliases=aliases,
        ignored=(*content.ignored, *(n for n in beside if not n.endswith("_zero_point"))),
        notes=(*content.notes, *_notes(content.stored, scales, aliases)),
    )


def _as_float(kind: Stored) -> Stored:
    """Return the description of a weight after dequantization."""
    return kind._replace(dtype=torch.bfloat16)


def _is_quantized(kind: Stored) -> bool:
    """Return whether the elements may be quantized numbers that need a scale."""
    dtype = kind.dtype
    if dtype is None or dtype.itemsize != 1:
        return False
    return dtype.is_floating_point or dtype == torch.int8


def _scales(stored: Mapping[str, Stored]) -> Iterator[tuple[str, _Scale]]:
    """Yield the names of the tensors that have scales, and the scales."""
    for name, kind in stored.items():
        if not _is_quantized(kind):
            continue
        stem = name.removesuffix("weight")
        usual = [_Scale(f"{name}_scale_inv"), _Scale(f"{name}_scale")]
        # Names in bitsandbytes (largest magnitude, which is the integer 127) and in ComfyUI.
        usual += [_Scale(f"{stem}SCB", 127.0), _Scale(f"{stem}scale_weight")]
        found = [scale for scale in usual if scale.name in stored and scale.name != name]
        if found:
            yield name, found[0]


def _beside(name: str) -> list[str]:
    stem = name.removesuffix(".weight")
    return [f"{name if end.startswith('_') else stem}{end}" for end in _BESIDE]


def _check_packed(stored: Mapping[str, Stored]) -> None:
    for name, kind in stored.items():
        scheme = next((scheme for end, scheme in _PACKED.items() if name.endswith(end)), None)
        if kind.dtype == torch.int8:  # an int8 holds one number, even under such a name
            continue
        if scheme == "MXFP4" and f"{name.removesuffix('_blocks')}_scales" not in stored:
            continue
        if scheme is not None:
            raise InputError(
                f"{name!r} {kind.shape} holds packed numbers ({scheme}), which are not read. Give "
                "the checkpoint from before quantization, or one that was dequantized (in "
                "transformers: model.dequantize(), model.save_pretrained(folder)); --lossless "
                "keeps this one as it is"
            )


def _blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the length along each axis of a block with one scale, or None if it is unclear."""
    if math.prod(scales) == 1:
        return shape
    if len(scales) == 1 and scales[0] == shape[0]:
        return (1, *shape[1:])
    if len(scales) != len(shape) or 0 in scales:
        return None
    squares = tuple(min(_BLOCK, n) if a >= len(shape) - 2 else 1 for a, n in enumerate(shape))
    if all(-(-n // b) == m for n, b, m in zip(shape, squares, scales, strict=True)):
        return squares
    if any(n % m for n, m in zip(shape, scales, strict=True)):
        return None
    return tuple(n // m for n, m in zip(shape, scales, strict=True))


def _check_blocks(name: str, shape: tuple[int, ...], other: str, scales: tuple[int, ...]) -> None:
    if not shape or 0 in shape or _blocks(shape, scales) is None:
        raise InputError(
            f"{name!r} has the shape {shape}, {other!r} {scales}: one number for all, for each "
            f"row, or for each block of equal or of {_BLOCK} rows and columns is needed"
        )


def _spread(scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the scales expanded to a weight's shape, or to a shape that broadcasts to it."""
    blocks = _blocks(tuple(shape), tuple(scales.shape))
    assert blocks is not None  # `_check_blocks` has checked it
    if scales.numel() == 1:
        return scales.reshape(())
    spread = scales.reshape(*scales.shape, *[1] * (len(shape) - scales.ndim))
    for axis, (block, n) in enumerate(zip(blocks, shape, strict=True)):
        if spread.shape[axis] not in (1, n):
            spread = spread.repeat_interleave(block, axis).narrow(axis, 0, n)
    return spread


def _notes(
    stored: Mapping[str, Stored], scales: Mapping[str, _Scale], aliases: Mapping[str, str]
) -> Iterator[str]:
    if scales:
        first = next(iter(scales))
        yield (
            f"8-bit tensors with scales ({len(scales)}, such as {first!r}) are read as the "
            "bfloat16 weights that they mean"
        )
    used = {scale.name for scale in scales.values()}
    plain = [
        name
        for name, kind in stored.items()
        if _is_quantized(kind)
        and name not in scales
        and name not in used
        and name not in aliases
        and len(kind.shape) >= 2
        and math.prod(kind.shape) >= _FEW
    ]
    if plain:
        yield (
            f"8-bit tensors without scales ({len(plain)}, such as {plain[0]!r}) are kept as they "
            "are; if they are weights, give the checkpoint from before quantization, or convert "
            "them to bfloat16"
        )
