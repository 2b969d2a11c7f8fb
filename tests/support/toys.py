# SPDX-License-Identifier: Apache-2.0
"""Small models and random factors for the tests of `tersor.nn`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.factors import Factors
from tersor.nn import insert_factors

torch.set_num_threads(2)


def random_factors(shape: tuple[int, ...], *, integer: bool = True, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    row = math.prod(shape[1:])
    d, k = min(9, row), 4
    n = shape[0] * -(-row // d)
    codebook = torch.randint(-20, 21, (d, k), generator=generator, dtype=torch.int16)
    latent = torch.randint(-3, 4, (k, n), generator=generator, dtype=torch.int16)
    if not integer:
        codebook, latent = codebook + 0.3, latent * 0.7
    return Factors(codebook, latent, 1e-3 * (1 + seed), tuple(shape))


def factors_of(model: nn.Module, **options: object) -> dict[str, Factors]:
    """Random factors for all matrices and kernels."""
    return {
        name: random_factors(tuple(weight.shape), **options)
        for name, weight in model.named_parameters()
        if weight.ndim >= 2
    }


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, dict[str, Factors]]:
    """A dense model, the same with factors of the same weights, and the factors."""
    torch.manual_seed(0)
    dense = make()
    factors = factors_of(dense)
    weights = {name: value.recompose() for name, value in factors.items()}
    dense.load_state_dict(weights, strict=False)
    factored = copy.deepcopy(dense)
    insert_factors(factored, factors)
    return dense, factored, factors


def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    result = model(*inputs)
    return result[0] if isinstance(result, tuple) else result


class SameConv(nn.Conv2d):
    """A convolution with a forward of its own, as model zoos have them."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Projection(nn.Module):
    """Owns parameters directly, singly and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(6, 10))
        self.gain = nn.Parameter(torch.ones(10))
        self.several = nn.ParameterList([torch.randn(10, 10), torch.randn(10)])
        self.named = nn.ParameterDict({"a": torch.randn(10, 3)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.proj * self.gain) @ self.several[0] + self.several[1]
        return hidden @ self.named["a"]


class Attention(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, need_weights=False)[0]


class TiedModel(nn.Module):
    """Embedding and output layer share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(tokens)))


torch.manual_seed(0)  # all processes of a distributed test see the same inputs
TOKENS = torch.arange(12).reshape(3, 4) % 11

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "linear": (lambda: nn.Linear(20, 6), (torch.randn(4, 20),)),
    "linear, no bias": (lambda: nn.Linear(9, 6, bias=False), (torch.randn(2, 9),)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same"), (torch.randn(2, 4, 9),)),
    "conv2d, strided": (lambda: nn.Conv2d(3, 4, 3, stride=2), (torch.randn(2, 3, 9, 9),)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (torch.randn(2, 4, 6, 6),)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (torch.randn(2, 4, 6, 6),)),
    "conv2d, dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), (torch.randn(2, 3, 8, 8),)),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        (torch.randn(2, 3, 5, 5),),
    ),
    "conv2d, own forward": (lambda: SameConv(3, 4, 3), (torch.randn(2, 3, 5, 5),)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), (torch.randn(1, 2, 4, 4, 4),)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 3, 3), (torch.randn(2, 4, 5),)),
    "transposed 2d, grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        (torch.randn(2, 4, 5, 5),),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (torch.randn(1, 2, 3, 3, 3),)),
    "embedding": (lambda: nn.Embedding(11, 8, padding_idx=0), (TOKENS,)),
    "embedding, max_norm": (lambda: nn.Embedding(11, 8, max_norm=0.05), (TOKENS,)),
    "embedding bag": (lambda: nn.EmbeddingBag(11, 8), (TOKENS,)),
    "tied": (TiedModel, (TOKENS,)),
    "lstm": (
        lambda: nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True),
        (torch.randn(2, 6, 5),),
    ),
    "lstm, projected": (lambda: nn.LSTM(5, 4, proj_size=3), (torch.randn(6, 2, 5),)),
    "gru": (lambda: nn.GRU(5, 4), (torch.randn(6, 2, 5),)),
    "rnn": (lambda: nn.RNN(5, 4), (torch.randn(6, 2, 5),)),
    "attention": (Attention, tuple(torch.randn(2, 5, 12) for _ in range(3))),
    "attention, kdim and vdim": (
        lambda: Attention(kdim=7, vdim=9),
        (torch.randn(2, 5, 12), torch.randn(2, 6, 7), torch.randn(2, 6, 9)),
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True),
        (torch.randn(2, 5, 12),),
    ),
    "custom": (Projection, (torch.randn(4, 6),)),
}
