"""The driver: tensors in, factors of the asked size out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import BudgetError, InputError
from tersor.factorization.rate_aware import factorize_weight
from tersor.factors import Factors, signal_to_noise
from tersor.plan import classify, tiles
from tersor.plan.budget import format_size, target_bytes
from tersor.plan.progress import Progress, silent
from tersor.plan.search import finest_fit
from tersor.storage import container, records
from tersor.storage.archive import Alias, Archive, Entry
from tersor.storage.checkpoint import Source
from tersor.storage.records import EncodedFactors
from tersor.tiling import as_float32, is_tileable

_DISTORTION = 0.09
"""Squared error per weight in units of the step squared, about, at rates from 0.5 to 3 bits."""

_EXPECTED_PASSES = 4


@dataclass(frozen=True)
class _Weight:
    """What is known of a tensor that will be factored, without holding it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    variance: float

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def compress_source(
    source: Source,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
    progress: Progress = silent,
) -> Archive:
    """Compress named tensors into an archive of at most the asked size.

    Parameters
    ----------
    source
        Where the tensors come from; they are loaded one at a time, several times.
    ratio, target_size, bits_per_weight
        The budget; exactly one of them. See `tersor.plan.budget.target_bytes`.
    progress
        Called as the work goes on.

    Returns
    -------
    Archive
        Its file has at most the bytes asked for, usually at least 99.7 % of them.

    Raises
    ------
    BudgetError
        If the target is not below the input's size, or below the smallest possible size.
    InputError
        If a tensor has NaN or infinite weights.
    """
    entries, weights = _survey(source, progress)
    numel = sum(e.numel for e in entries.values() if not isinstance(e.content, Alias))
    target = target_bytes(
        source.nbytes,
        numel,
        ratio=ratio,
        target_size=target_size,
        bits_per_weight=bits_per_weight,
    )
    least = container.size(Archive(entries, source.nbytes))
    if target < least:
        raise BudgetError(
            f"{format_size(target)} is too small: the smallest possible file has {least} bytes, "
            f"with every weight zero; the tensors that are kept take most of it"
        )
    if not weights:
        return Archive(entries, source.nbytes)
    attempt = _Attempt(source, entries, weights, progress)
    guess = _guess_step([(w.numel, w.variance) for w in weights], 8 * (target - least))
    return finest_fit(attempt, target, guess)[1]


def _survey(source: Source, progress: Progress) -> tuple[dict[str, Entry], list[_Weight]]:
    """Entries of all tensors, factored ones still as zeros, and what will be factored."""
    entries: dict[str, Entry] = {}
    weights: list[_Weight] = []
    for name in source.names:
        progress(f"reading {name}", 0.0)
        tensor = source.load(name)
        shape = tuple(tensor.shape)
        if name in source.aliases:
            entries[name] = Entry(shape, tensor.dtype, Alias(source.aliases[name]))
        elif (reason := classify.reason_to_keep(name, tensor)) is not None:
            entries[name] = classify.keep(name, tensor, reason)
        else:
            nothing = factorize_weight(torch.zeros(shape, dtype=tensor.dtype), 1, 1.0)
            entries[name] = Entry(shape, tensor.dtype, records.encode(nothing))
            variance = float((tensor.detach().double() ** 2).mean())
            weights.append(_Weight(name, shape, tensor.dtype, variance))
    return entries, weights


def _guess_step(weights: Iterable[tuple[int, float]], bits: float) -> float:
    """Step at which independent Gaussian weights, (numbers, variance), take so many bits."""
    known = [(number, variance) for number, variance in weights if variance > 0]
    if not known:
        return 1.0
    low, high = 1e-12, max(variance for _, variance in known)
    low *= high
    for _ in range(60):
        level = math.sqrt(low) * math.sqrt(high)
        spent = sum(n * max(0.0, 0.5 * math.log2(v / level)) for n, v in known)
        low, high = (level, high) if spent > bits else (low, level)
    return math.sqrt(high / _DISTORTION)


class _Attempt:
    """Factors every weight at one step; remembers the tile sizes that the first step chose."""

    def __init__(
        self,
        source: Source,
        entries: Mapping[str, Entry],
        weights: list[_Weight],
        progress: Progress,
    ) -> None:
        self._source, self._entries, self._weights = source, entries, weights
        self._progress = progress
        self._tiles: dict[str, int] = {}
        self._passes = 0

    def __call__(self, step: float) -> tuple[int, Archive]:
        entries, total = dict(self._entries), sum(w.numel for w in self._weights)
        done = 0
        for weight in self._weights:
            passes = max(_EXPECTED_PASSES, self._passes + 1)
            message = f"pass {self._passes + 1}: {weight.name}"
            self._progress(message, (self._passes + done / total) / passes)
            encoded = self._encode(weight.name, self._source.load(weight.name), step)
            entries[weight.name] = Entry(weight.shape, weight.dtype, encoded)
            done += weight.numel
        self._passes += 1
        archive = Archive(entries, self._source.nbytes)
        return container.size(archive), archive

    def _encode(self, name: str, weight: Tensor, step: float) -> EncodedFactors:
        if name not in self._tiles:
            self._tiles[name] = tiles.choose(as_float32(weight), step)
        factors = factorize_weight(weight, self._tiles[name], step)
        return records.encode(factors, signal_to_noise(weight, factors))


def factorize(weight: Tensor, *, bits_per_weight: float) -> Factors:
    """Quantized sparse factors of one weight, within a budget.

    Parameters
    ----------
    weight
        Floating-point, at least two axes, as in a layer: (out, in) or (out, in, *window).
    bits_per_weight
        8 times `Factors.nbytes` over the number of weights will be at most this.

    Raises
    ------
    InputError
        If the weight is no matrix or kernel, or has NaN or infinite elements.
    BudgetError
        If the budget is too small for any factors.

    Examples
    --------
    >>> factors = tersor.factorize(torch.randn(64, 64), bits_per_weight=1.5)
    >>> factors.recompose().shape
    torch.Size([64, 64])
    """
    if not (
        isinstance(weight, Tensor) and weight.is_floating_point() and is_tileable(weight.shape)
    ):
        received = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else weight
        raise InputError(f"a floating-point weight with two axes or more is needed, got {received}")
    classify.check_finite("weight", weight)
    if not 0 < bits_per_weight < math.inf:
        raise InputError(f"bits per weight must be a positive number, got {bits_per_weight!r}")
    target = int(bits_per_weight * weight.numel() / 8)
    least = factorize_weight(torch.zeros_like(weight), 1, 1.0).nbytes
    if target < least:
        raise BudgetError(
            f"{target} bytes are too few: at least {least} are needed, "
            f"{8 * least / weight.numel():.3g} bits per weight"
        )
    size, variance = 0, float((weight.detach().double() ** 2).mean())

    def attempt(step: float) -> tuple[int, Factors]:
        nonlocal size
        size = size or tiles.choose(as_float32(weight), step)
        factors = factorize_weight(weight, size, step)
        return factors.nbytes, factors

    return finest_fit(attempt, target, _guess_step([(weight.numel(), variance)], 8 * target))[1]
