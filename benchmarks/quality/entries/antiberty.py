# SPDX-License-Identifier: Apache-2.0
"""AntiBERTy: a masked language model of antibodies, a transformer of eight layers."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures

PACKAGE, GENES = "antiberty==0.1.3", "riot-na==5.2.0"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]


class Model(nn.Module):
    """Tokens (n, length) -> logits of what stands at each place, (n, length, 25)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig.from_json_file(_folder() / "config.json")
        self.bert = BertForMaskedLM(config)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.bert(input_ids=tokens).logits
        return found


def _folder() -> store.Path:
    return store.folder(PACKAGE) / "antiberty" / "trained_models" / "AntiBERTy_md_smooth"


def build() -> nn.Module:
    state = torch.load(_folder() / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model = Model()
    wanted = model.bert.state_dict()
    found = {n: t for n, t in state.items() if n in wanted}
    lacking = set(wanted) - set(found) - {"bert.embeddings.position_ids"}
    assert not lacking, lacking
    model.bert.load_state_dict(found)
    return model.eval()


@cache
def antibodies(part: str) -> list[str]:
    """Variable genes of people and mice, joined with those that follow them."""
    genes = store.folder(GENES) / "riot_na" / "databases" / "gene_db" / "aa_genes_deduplicated"
    found = []
    for species in ("human", "mouse"):
        for chain in ("igh", "igk", "igl"):
            joining = _read(genes / "j_genes" / species / f"{chain}.fasta", chain)
            variable = _read(genes / "v_genes" / f"{species}.fasta", chain)
            found += [v + joining[i % len(joining)] for i, v in enumerate(variable)]
    random.Random(0).shuffle(found)
    return found[:192] if part == "calibration" else found[192:320]


def _read(path: store.Path, chain: str) -> list[str]:
    records = path.read_text().split(">")[1:]
    pairs = [record.split("\n", 1) for record in records]
    sequences = [s.replace("\n", "") for name, s in pairs if f"\t{chain.upper()}\t" in name]
    return [s for s in sequences if set(s) <= set(TOKENS)]


@cache
def masked(part: str) -> list[tuple[Tensor, Tensor]]:
    """Sequences of one length with one in seven places hidden; and the whole ones."""
    generator = torch.Generator().manual_seed(0)
    groups: dict[int, list[list[int]]] = {}
    for sequence in antibodies(part):
        tokens = [TOKENS.index("[CLS]"), *map(TOKENS.index, sequence), TOKENS.index("[SEP]")]
        groups.setdefault(len(tokens), []).append(tokens)
    found = []
    for _, group in sorted(groups.items()):
        whole = torch.tensor(group)
        hidden = torch.rand(whole.shape, generator=generator) < 1 / 7
        hidden[:, 0] = hidden[:, -1] = False
        found.append((whole.masked_fill(hidden, TOKENS.index("[MASK]")), whole))
    return found


def batches(part: str) -> list[Tensor]:
    return [piece for hidden, _ in masked(part) for piece in hidden.split(16)]


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    right = total = 0
    for hidden, whole in masked("held out"):
        places = hidden != whole
        right += int((model(hidden).argmax(dim=2) == whole)[places].sum())
        total += int(places.sum())
    return {"hidden residues right, %": 100 * right / total}


ENTRY = Entry(
    purpose="masked language model of antibodies",
    packages=(PACKAGE, GENES),
    licence="MIT",
    measure="hidden residues right, %, 128 germline sequences",
    build=build,
    batches=batches,
    quality=quality,
)
