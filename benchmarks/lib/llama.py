# SPDX-License-Identifier: Apache-2.0
"""Synthetic checkpoints with the shapes of a Llama, as Hugging Face stores them.

The weights are bfloat16 and heavy-tailed (Student's t); rows and inputs have different scales, and
embeddings a few strong directions. They are made and written one tensor at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

SEED = 0
DEGREES = 5.0
"""Degrees of freedom of Student's t distribution: excess kurtosis 6, as in language models."""

_SHARD = 1 << 30
"""Bytes of a shard at which the next one begins."""

_ROWS = 8192
"""Rows of an embedding that are made at once."""


class Llama(NamedTuple):
    """The sizes of a Llama; keys and values have a quarter of the heads of the queries."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 32000


SIZES = {
    "30M": Llama(512, 1376, 4, 16000),
    "100M": Llama(768, 2048, 8),
    "300M": Llama(1024, 2816, 19),
    "1B": Llama(2048, 5632, 22),
    "3B": Llama(3200, 8640, 26),
}
"""Shapes by about how many weights they have; those of 1B are TinyLlama's."""


def write(folder: Path, llama: Llama) -> int:
    """Write a folder of sharded safetensors with an index, and return the number of weights."""
    folder.mkdir(parents=True)
    shard_of, shard, held, weights = dict[str, str](), dict[str, Tensor](), 0, 0
    for name, tensor in tensors(llama):
        if held and held + tensor.nbytes > _SHARD:
            _write_shard(folder, shard, shard_of)
            shard, held = {}, 0
        shard[name] = tensor
        held += tensor.nbytes
        weights += tensor.numel()
    _write_shard(folder, shard, shard_of)
    index = {"metadata": {"total_size": 2 * weights}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    return weights


def _write_shard(folder: Path, shard: dict[str, Tensor], shard_of: dict[str, str]) -> None:
    file = f"model-{1 + len(set(shard_of.values())):05}.safetensors"
    save_file(shard, folder / file)
    shard_of |= dict.fromkeys(shard, file)


def tensors(llama: Llama) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model by name."""
    generator = torch.Generator().manual_seed(SEED)
    hidden, inner = llama.hidden, llama.inner
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    yield "model.embed_tokens.weight", embedding(llama, generator)
    for layer in range(llama.layers):
        for part, shape in shapes.items():
            yield f"model.layers.{layer}.{part}.weight", _stored(matrix(shape, generator))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", _stored(torch.ones(hidden))
    yield "model.norm.weight", _stored(torch.ones(hidden))
    yield "lm_head.weight", embedding(llama, generator)


def _stored(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16)


def matrix(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Return heavy-tailed weights whose rows and inputs have log-normal scales."""
    inputs = torch.randn(1, shape[1], generator=generator).mul(0.2).exp()
    return _rows(shape, generator) * inputs / math.sqrt(shape[1])


def _rows(shape: tuple[int, int], generator: Generator) -> Tensor:
    squares = torch.zeros(shape)
    for _ in range(int(DEGREES)):
        squares += torch.randn(shape, generator=generator).square_()
    scales = torch.randn(shape[0], 1, generator=generator).mul(0.3).exp()
    normal = torch.randn(shape, generator=generator)
    return normal.div_(squares.div_(DEGREES).sqrt_()).mul_(scales)


def embedding(llama: Llama, generator: Generator) -> Tensor:
    """Return independent weights, and 32 directions that take a third of the energy."""
    rank, hidden = 32, llama.hidden
    basis = torch.randn(rank, hidden, generator=generator)
    result = torch.empty(llama.vocabulary, hidden, dtype=torch.bfloat16)
    for start in range(0, llama.vocabulary, _ROWS):
        rows = result[start : start + _ROWS]
        noise = matrix((len(rows), hidden), generator)
        strong = torch.randn(len(rows), rank, generator=generator) @ basis
        rows.copy_(noise + strong * (noise.norm() / strong.norm()) / math.sqrt(2))
    return result
