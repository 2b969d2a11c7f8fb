"""Models <-> archives: compress a model in place, take its tensors, fill it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tersor.compress import compress_source
from tersor.factors import Factors
from tersor.nn import insert_factors, state
from tersor.plan.progress import shown
from tersor.storage.archive import Archive, Plain
from tersor.storage.checkpoint import Source, shared
from tersor.storage.records import EncodedFactors
from tersor.storage.summary import Report, summarize


def compress(
    model: nn.Module,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
) -> Report:
    """Replace the weights of a model by factors, in place, so that its file has the asked size.

    The model stays an ordinary module, trains as before and computes from the factors: exactly what
    `tersor.save` writes. Biases and normalisation parameters are rounded to 16 bits.

    Parameters
    ----------
    model
        Model with its trained weights, of any device and floating-point type.
    ratio
        Bytes of all parameters and buffers, tied ones once, over bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file over the number of weights. Exactly one of the three is to be given.

    Returns
    -------
    Report
        What became of each tensor, and the size of the file.

    Raises
    ------
    BudgetError
        If the size cannot be reached, or is not below that of the model.
    InputError
        If weights are NaN or infinite, or a module cannot hold factors. The model is unchanged.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=10)
    >>> report.nbytes <= 4 * (64 * 64 + 64) / 10
    True
    """
    source = source_of(model)
    with shown("compressing") as progress:
        archive = compress_source(
            source,
            ratio=ratio,
            target_size=target_size,
            bits_per_weight=bits_per_weight,
            progress=progress,
        )
    fill(model, archive)
    return summarize(archive)


def source_of(model: nn.Module) -> Source:
    """The tensors of a model, dense even where it holds factors."""
    entries = state(model)
    plain = {name: t for name, t in entries.items() if isinstance(t, Tensor)}
    factored: dict[Factors, str] = {}
    aliases = shared(plain)
    for name, value in entries.items():
        if isinstance(value, Factors) and (first := factored.setdefault(value, name)) != name:
            aliases[name] = first
    size = sum(nbytes(value) for name, value in entries.items() if name not in aliases)
    return Source(list(entries), lambda name: dense(entries[name]), size, aliases)


def dense(value: Factors | Tensor) -> Tensor:
    """The tensor itself, whether factored or not, on the CPU."""
    return (value.recompose() if isinstance(value, Factors) else value.detach()).cpu()


def nbytes(value: Factors | Tensor) -> int:
    """Bytes of the dense tensor."""
    return value.numel * value.dtype.itemsize if isinstance(value, Factors) else value.nbytes


def fill(model: nn.Module, archive: Archive) -> None:
    """Put the content of an archive into a model whose names and shapes are known to fit."""
    names = [n for n, e in archive.entries.items() if isinstance(e.content, EncodedFactors)]
    insert_factors(model, {name: cast(Factors, archive.value(name)) for name in names})
    with torch.no_grad():
        for name, tensor in state(model).items():
            entry = archive.entries.get(name)
            if isinstance(tensor, Tensor) and entry and isinstance(entry.content, Plain):
                tensor.copy_(entry.content.values)
