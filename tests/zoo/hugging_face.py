# SPDX-License-Identifier: Apache-2.0
"""How models of transformers and diffusers are made small, from their configurations."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from family import Family, Inputs
from torch import nn

ENCODER = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
"""What most configurations call their sizes."""

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def transformers(
    kind: str,
    configuration: str,
    inputs: Inputs,
    sizes: dict[str, Any],
    *,
    warned: str | None = None,
    dtype: torch.dtype = torch.float32,
    ratio: float = 4,
    **more: Any,
) -> Family:
    """A class of transformers, and the sizes that its configuration is given."""

    def build() -> nn.Module:
        library = importlib.import_module("transformers")
        configured = getattr(library, configuration)(**{**sizes, **more})
        model: nn.Module = getattr(library, kind)(configured)
        return model.to(dtype)

    return Family(build, inputs, "transformers", kind, warned, ratio=ratio)


def diffusers(kind: str, inputs: Inputs, sizes: dict[str, Any], **more: Any) -> Family:
    """A class of diffusers, and its sizes."""

    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module("diffusers"), kind)(**sizes, **more)
        return model

    return Family(build, inputs, "diffusers", kind)
