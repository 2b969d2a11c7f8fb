# SPDX-License-Identifier: Apache-2.0
"""WordLlama: sentence embeddings as means of a table, 32,000 x 256, in half precision."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.lib.zoo import sentences, store
from benchmarks.quality.entries import Entry, Figures

PACKAGE = "wordllama==0.4.0.post1"


class Table(nn.Module):
    """Tokens (n, length) and which are there -> embeddings (n, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32000, 256, dtype=torch.float16)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return (self.embedding(tokens).float() * mask[..., None]).sum(1) / mask.sum(1)[:, None]


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    folder = store.folder(PACKAGE) / "wordllama" / "tokenizers"
    tokenizer = Tokenizer.from_file(str(folder / "l2_supercat_tokenizer_config.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenized(texts: list[str]) -> tuple[Tensor, Tensor]:
    found = _tokenizer().encode_batch(texts, add_special_tokens=False)
    return torch.tensor([f.ids for f in found]), torch.tensor([f.attention_mask for f in found])


def build() -> nn.Module:
    model = Table()
    weights = store.folder(PACKAGE) / "wordllama" / "weights" / "l2_supercat_256.safetensors"
    model.load_state_dict(load_file(weights))
    return model.eval()


def batches(part: str) -> list[tuple[Tensor, Tensor]]:
    return [tokenized(texts) for texts in sentences.texts(part)]


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    return {"Spearman x 100": sentences.spearman(lambda texts: model(*tokenized(texts)))}


ENTRY = Entry(
    purpose="sentence embeddings",
    packages=(PACKAGE,),
    licence="MIT",
    measure="Spearman x 100, first 500 pairs of the STS-B test split",
    build=build,
    batches=batches,
    quality=quality,
)
