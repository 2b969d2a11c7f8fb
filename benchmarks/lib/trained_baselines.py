# SPDX-License-Identifier: Apache-2.0
"""Other ways to compress a network by training, each as a parametrization of its weights.

- ``vq``: k-means on tiles; indices stay, codebooks train, as in BGD (Stock et al., 2020) and PQF
  (Martinez et al., 2021);
- ``dkm``: weights attend to the codebook, ever more sharply (Cho et al., 2022), then as ``vq``;
- ``lsq2``, ``lsq1``: 2 and 1 bit with learned steps (Esser et al., 2020), first and last layer with
  8 bits as there. With 2 bits small weights are pruned, ever more during the first half of the
  steps (Zhu and Gupta, 2017), until the coded integers are within the budget;
- ``svd``: low-rank factors of 8 bits.

Tile sizes, numbers of codewords and ranks are chosen for each layer, to lower the sum of the
layers' relative squared errors most per byte. Everything is stored as tightly as ours: integers by
our own coder, indices by a range coder with the frequencies of their layer (`indices`); biases and
normalisation parameters have as many binary digits as ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.lib import indices
from tersor.coding import records
from tersor.compression.assembly import survey
from tersor.factors import Factors
from tersor.nn.source import source_of
from tersor.nn.weight import round_through
from tersor.storage import container
from tersor.storage.archive import Archive
from tersor.tiling import Tiling, window_size
from tersor.training.rounding import Rounding, digits_of

RESERVE = 0.985
"""Share of the budget that is given out at first: trained integers are a little less regular."""

SHARPENING = 1e-3
"""Temperature of the attention at the end, of that at the beginning."""

PRUNED = 0.05, 8.0
"""Magnitude below which weights are pruned, over the root of their mean square: at first, most."""

CODEWORDS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Form(nn.Module):
    """What a baseline makes of one weight, and what its file holds of that."""

    resting: bool = False
    """Whether all integers but those of codebooks stay as they are."""

    def at(self, share: float) -> None:
        """Be as is due after this share of the steps in which integers move."""

    def rest(self, weight: Tensor) -> None:
        """Fix the integers, as they are for a weight."""
        self.resting = True

    def rates(self) -> dict[nn.Parameter, float]:
        """Parameters, with their learning rates over that of a dense weight."""
        return {p: 1.0 for p in self.parameters()}

    def stored(self, weight: Tensor) -> Factors | indices.Indexed:
        """What the file holds; computes what `forward` does."""
        raise NotImplementedError


class Clustered(Form):
    """Tiles from a codebook: those at fixed indices or, at first, those that are near.

    Parameters
    ----------
    tiling
        How the weight is cut into tiles.
    codebook
        Real numbers (k, d).
    labels
        Indices (n,) of the tiles.
    soft
        Whether tiles attend to the codebook until they rest.
    """

    def __init__(self, tiling: Tiling, codebook: Tensor, labels: Tensor, soft: bool) -> None:
        super().__init__()
        self.tiling, self.soft = tiling, soft
        self.codebook = nn.Parameter(codebook)
        self.register_buffer("labels", labels)
        self.register_buffer("scale", 1.25 * codebook.abs().max().clamp_min(1e-12) / 127)
        self.temperature = 0.0
        self.share = 0.0

    def at(self, share: float) -> None:
        self.share = share

    def forward(self, weight: Tensor) -> Tensor:
        soft = self.soft and not self.resting
        tiles = self._attended(weight) if soft else self._rounded()[self.labels]
        return self.tiling.join(tiles.T)

    def rest(self, weight: Tensor) -> None:
        super().rest(weight)
        if self.soft:
            self.labels.copy_(self._distances(weight).argmin(1))

    def _attended(self, weight: Tensor) -> Tensor:
        """One step of soft k-means, through which gradients pass; its centres are the next start.

        (In the paper steps are repeated until the centres stay; they start where the last ones
        ended, so that one for each forward pass follows the weights as they train.)
        """
        tiles = self.tiling.split(weight).T
        attention = self._attention(weight)
        mass = attention.sum(0)[:, None]
        centres = (attention.T @ tiles + 1e-3 * self.codebook) / (mass + 1e-3)
        if self.training:
            self.codebook.data.copy_(centres.detach())
        return attention @ centres

    def _attention(self, weight: Tensor) -> Tensor:
        distances = self._distances(weight)
        if not self.temperature:
            self.temperature = 2 * float(distances.detach().min(1).values.mean())
        return (-distances / (self.temperature * SHARPENING**self.share)).softmax(1)

    def _distances(self, weight: Tensor) -> Tensor:
        tiles, codebook = self.tiling.split(weight).T, self.codebook.detach()
        return (tiles**2).sum(1, keepdim=True) - 2 * tiles @ codebook.T + (codebook**2).sum(1)

    def _rounded(self) -> Tensor:
        return round_through((self.codebook / self.scale).clamp(-127, 127)) * self.scale

    def stored(self, weight: Tensor) -> indices.Indexed:
        codebook = (self.codebook.detach() / self.scale).clamp(-127, 127).round().to(torch.int16)
        return indices.Indexed(self.tiling, codebook, self.labels.clone(), float(self.scale))


class Scalar(Form):
    """Multiples of a learned step, from a few levels.

    Parameters
    ----------
    weight
        Dense weight.
    low, high
        Least and largest multiple; -1 and 1 without 0 if ``binary``.
    """

    def __init__(self, weight: Tensor, low: int, high: int, binary: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.binary, self.dead = low, high, binary, PRUNED[0]
        mean = float(weight.abs().mean())
        # Esser et al., 2020, section 2.1; for 1 bit the step of least squared error.
        self.step = nn.Parameter(torch.tensor([mean if binary else 2 * mean / math.sqrt(high)]))
        self.gain = 1 / math.sqrt(weight.numel() * high)
        self.register_buffer("coded", torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        step = self.step * self.gain + (self.step * (1 - self.gain)).detach()
        if self.resting:
            return self.coded * step
        within = (weight / step).clamp(self.low, self.high)
        return (within + (self.now(weight.detach()) - within).detach()) * step

    def now(self, weight: Tensor) -> Tensor:
        """The integers of a weight; those fixed if they rest."""
        if self.resting:
            return self.coded
        if self.binary:
            return torch.where(weight < 0, -1.0, 1.0)
        levels = (weight / self.step.detach()).clamp(self.low, self.high).round()
        pruned = weight.abs() < self.dead * weight.square().mean().sqrt()
        return torch.where(pruned, 0.0, levels)

    def rest(self, weight: Tensor) -> None:
        self.coded.copy_(self.now(weight))
        super().rest(weight)

    def stored(self, weight: Tensor) -> Factors:
        latent = self.now(weight).reshape(1, -1).to(torch.int16)
        one = torch.ones(1, 1, dtype=torch.int16)
        return Factors(one, latent, float(self.step), tuple(weight.shape))


class LowRank(Form):
    """The product of two thin matrices of integers.

    Parameters
    ----------
    weight
        Dense weight.
    rank
        Columns of one, rows of the other.
    most
        Largest integer.
    """

    def __init__(self, weight: Tensor, rank: int, most: int = 127) -> None:
        super().__init__()
        self.tiling, self.most = Tiling(tuple(weight.shape), weight[0].numel()), most
        u, s, v = torch.linalg.svd(self.tiling.split(weight), full_matrices=False)
        factors = u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * v[:rank]
        units = [1.25 * float(f.abs().max()) / most for f in factors]
        self.left, self.right = (nn.Parameter(f / u) for f, u in zip(factors, units, strict=True))
        self.register_buffer("scale", torch.tensor(units[0] * units[1]))

    def forward(self, weight: Tensor) -> Tensor:
        left, right = (round_through(f.clamp(-self.most, self.most)) for f in self.parameters())
        return self.tiling.join(left @ right * self.scale)

    def rates(self) -> dict[nn.Parameter, float]:
        # About as in a dense weight, whose elements have a magnitude of some 0.05.
        return {p: 20 * float(p.detach().abs().mean()) for p in self.parameters()}

    def stored(self, weight: Tensor) -> Factors:
        left, right = (
            f.detach().clamp(-self.most, self.most).round().to(torch.int16)
            for f in self.parameters()
        )
        return Factors(left, right, float(self.scale), self.tiling.shape)


class Choice(NamedTuple):
    """One way to compress one weight."""

    nbytes: float
    error: float
    make: Callable[[], Form]


def digits_for(dense: nn.Module, target: int) -> int:
    """Binary digits of biases and normalisation parameters, as many as ours have."""
    return digits_of(sum(p.numel() for p in dense.parameters() if p.ndim > 1), target)


def vectors(model: nn.Module) -> list[nn.Parameter]:
    """Biases and normalisation parameters."""
    named = model.named_parameters()
    return [p for name, p in named if p.ndim == 1 and ".parametrizations." not in name]


def others_bytes(dense: nn.Module, digits: int) -> int:
    """Bytes of a file besides the weights; the dense model is rounded."""
    Rounding(vectors(dense), digits)
    source = source_of(dense)
    return container.size(Archive(survey(source)[0], source.nbytes))


def make(model: nn.Module, method: str, budget: float) -> dict[str, Form]:
    """The forms of a method for a dense model, of so many bytes in all; by weights' names."""
    source = source_of(model)
    weights = {w.name for w in survey(source)[1]}
    tensors = {n: source.load(n).detach().float().clone() for n in source.names if n in weights}
    return METHODS[method](tensors, budget)


def attach(model: nn.Module, forms: dict[str, Form]) -> None:
    """Let a dense model compute with its weights in these forms."""
    for name, form in forms.items():
        module, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(module), attribute, form)


def _clustered(soft: bool) -> Callable[[dict[str, Tensor], float], dict[str, Form]]:
    def forms(weights: dict[str, Tensor], budget: float) -> dict[str, Form]:
        return _allocated({n: list(_clusterings(w, soft)) for n, w in weights.items()}, budget)

    return forms


def _clusterings(weight: Tensor, soft: bool) -> Iterable[Choice]:
    window, shape = window_size(tuple(weight.shape)), tuple(weight.shape)
    for size in (window // 3, window, 2 * window) if window > 1 else (2, 4, 8):
        tiling = Tiling(shape, min(size, weight[0].numel()))
        tiles = tiling.split(weight).T.contiguous()
        for k in CODEWORDS:
            if 3 * k <= len(tiles):
                yield _clustering(weight, tiling, tiles, k, soft)


def _clustering(weight: Tensor, tiling: Tiling, tiles: Tensor, k: int, soft: bool) -> Choice:
    kmeans = KMeans(k, n_init=1, max_iter=20, random_state=0).fit(tiles.numpy())
    codebook = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
    labels = torch.from_numpy(kmeans.labels_.astype(np.int64))
    error = float(((tiles - codebook[labels]) ** 2).sum() / (weight**2).sum())
    form = Clustered(tiling, codebook, labels, soft)
    nbytes = len(indices.encode(form.stored(weight)))
    if soft:  # labels will be others: at most these many bits
        nbytes += math.ceil((math.log2(k) - indices.entropy(labels, k)) * len(labels) / 8)
    return Choice(nbytes, error, lambda: form)


def _low_rank(weights: dict[str, Tensor], budget: float) -> dict[str, Form]:
    return _allocated({n: list(_ranks(w)) for n, w in weights.items()}, budget)


def _ranks(weight: Tensor) -> Iterable[Choice]:
    energy = (torch.linalg.svdvals(weight.flatten(1)) ** 2).tolist()
    for rank in range(1, len(energy) + 1):
        form = LowRank(weight, rank)
        nbytes = records.encode(form.stored(weight)).nbytes
        yield Choice(nbytes, sum(energy[rank:]) / sum(energy), lambda form=form: form)


def _allocated(choices: dict[str, list[Choice]], budget: float) -> dict[str, Form]:
    """Choices of least total error within a budget: those of one λ per byte, by bisection."""
    low, high, best = 1e-12, 1e3, None
    for _ in range(60):
        lagrangian = math.sqrt(low * high)
        chosen = {
            n: min(c, key=lambda p: p.error + lagrangian * p.nbytes) for n, c in choices.items()
        }
        if sum(c.nbytes for c in chosen.values()) <= budget:
            high, best = lagrangian, chosen
        else:
            low = lagrangian
    assert best is not None, f"{budget} bytes are too few for the weights"
    return {name: choice.make() for name, choice in best.items()}


def _scalars(bits: int) -> Callable[[dict[str, Tensor], float], dict[str, Form]]:
    def forms(weights: dict[str, Tensor], budget: float) -> dict[str, Form]:
        ends = {next(iter(weights)), next(reversed(weights))}
        few = (-1, 1, True) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return {
            n: Scalar(w, -128, 127) if n in ends else Scalar(w, *few) for n, w in weights.items()
        }

    return forms


METHODS: dict[str, Callable[[dict[str, Tensor], float], dict[str, Form]]] = {
    "vq": _clustered(soft=False),
    "dkm": _clustered(soft=True),
    "lsq2": _scalars(2),
    "lsq1": _scalars(1),
    "svd": _low_rank,
}


def originals(model: nn.Module, forms: Iterable[str]) -> dict[str, Tensor]:
    """The real weights behind the forms of these names."""
    found = {}
    for name in forms:
        module, _, attribute = name.rpartition(".")
        found[name] = model.get_submodule(module).parametrizations[attribute].original.detach()
    return found


def widen(forms: Iterable[Form], factor: float) -> bool:
    """Multiply what scalar forms prune below, within limits; whether any of them changed."""
    changed = False
    for form in forms:
        if isinstance(form, Scalar) and not form.binary:
            dead = min(max(PRUNED[0], form.dead * factor), PRUNED[1])
            changed, form.dead = changed or dead != form.dead, dead
    return changed


def coded_bytes(model: nn.Module, forms: dict[str, Form]) -> int:
    """Bytes of the forms in the file, but for their names."""
    weights = originals(model, forms)
    stored = [form.stored(weights[name]) for name, form in forms.items()]
    return sum(
        records.encode(s).nbytes if isinstance(s, Factors) else len(indices.encode(s))
        for s in stored
    )


def write(
    dense: nn.Module, model: nn.Module, forms: dict[str, Form], digits: int, path: Path
) -> None:
    """Write a file of a trained model.

    Parameters
    ----------
    dense
        Model of the architecture, which is changed.
    model, forms
        Trained model with its forms, by the names of the weights.
    digits
        Of biases and normalisation parameters.
    path
        The file.
    """
    weights = originals(model, forms)
    with torch.no_grad():
        others = {n: t for n, t in model.state_dict().items() if ".parametrizations." not in n}
        dense.load_state_dict(others, strict=False)
    Rounding(vectors(dense), digits)
    indices.write(dense, {n: form.stored(weights[n]) for n, form in forms.items()}, path)
