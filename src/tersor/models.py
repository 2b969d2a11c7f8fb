"""Models <-> archives: compress a model in place, take its tensors, fill it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tersor.calibration import Calibration
from tersor.compress import compress_source
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.nn import HeldWeight, state
from tersor.nn.checks import check_model, check_module
from tersor.nn.convert import replace_weight, replaceable
from tersor.nn.sites import find_sites
from tersor.plan.classify import FEWEST_WEIGHTS
from tersor.plan.overrides import Overrides
from tersor.plan.progress import shown
from tersor.quality import Quality, evaluated
from tersor.storage import container, dtypes
from tersor.storage.archive import Archive, Contents, as_tensor
from tersor.storage.checkpoint import Source, shared
from tersor.storage.summary import Report, summarize
from tersor.tiling import is_tileable


def compress(
    model: nn.Module,
    *,
    ratio: float | None = None,
    target_size: str | int | None = None,
    bits_per_weight: float | None = None,
    max_drop: float | None = None,
    evaluate: Callable[[nn.Module], object] | None = None,
    calibration: Calibration | None = None,
    keep: Sequence[str] = (),
    bits: Mapping[str, float] | None = None,
    fast: Sequence[str] = (),
) -> Report:
    """Replace the weights of a model by factors, in place, so that its file has the asked size.

    The model stays an ordinary module, trains as before and computes from the factors: exactly what
    `tersor.save` writes. Biases and normalisation parameters are rounded to 16 bits.

    Factors are held as numbers of 32 bits, to be trained: in memory, and in files of `torch.save`,
    the model is about as large as before. `tersor.save` writes the small file.

    Parameters
    ----------
    model
        Model with its trained weights, of any device and floating-point type.
    ratio
        Bytes of all parameters and buffers, tied ones once, over bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file over the number of weights. Exactly one of the three, or
        ``max_drop``, is to be given.
    max_drop
        How much lower ``evaluate`` may be for the result than for the model as it is, in its units:
        the file is as small as that allows. At most six evaluations are made.
    evaluate
        Takes a copy of the model and returns a number, higher for better models.
    calibration
        What `tersor.calibrate` saw in this model: the error of what the layers compute is then made
        small, instead of that of their weights.
    keep
        Patterns of names, such as ``"head.*"``, of weights that are to stay as they are.
    bits
        Bits per weight, at most, by patterns of names: ``{"conv1*": 4}``. The other weights share
        what is left.
    fast
        Patterns of names, such as ``"encoder.*"``, of matrices that are to be multiplied by fast:
        their latents are signs, which `tersor.optimize` looks up several at a time. That costs
        about as much accuracy as 0.2 bits per weight less do at 1 bit, and 0.4 at 2. Their bits
        come in steps (16 over the whole numbers), so that of few such weights less of the size may
        be used. Convolutions that match are factored as others are; `tersor.finetune` makes
        ordinary integers of signs.

    Returns
    -------
    Report
        What became of each tensor, and the size of the file.

    Raises
    ------
    BudgetError
        If the size cannot be reached, or is not below that of the model, or if half the size of the
        model drops more than it may.
    InputError
        If weights are NaN or infinite, a module cannot hold factors, a pattern matches no weight
        that would be factored, patterns contradict each other, or ``evaluate`` raises or does not
        return one finite number. The model is unchanged.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=10)
    >>> report.nbytes <= 4 * (64 * 64 + 64) / 10
    True
    """
    overrides = Overrides(keep, {} if bits is None else bits, fast)
    quality = _quality(model, max_drop, evaluate)
    check_holders(model)
    source = source_of(model)
    with shown("compressing") as progress:
        archive = compress_source(
            source,
            ratio=ratio,
            target_size=target_size,
            bits_per_weight=bits_per_weight,
            quality=quality,
            calibration=calibration,
            overrides=overrides,
            measured=False,
            progress=progress,
        )
    fill(model, archive)
    return summarize(archive, container.size(archive.unmeasured()))


def _quality(
    model: nn.Module, max_drop: float | None, evaluate: Callable[[nn.Module], object] | None
) -> Quality | None:
    if max_drop is None and evaluate is None:
        return None
    if max_drop is None or not callable(evaluate):
        raise InputError(
            "max_drop and evaluate, a function of the model, are needed together; got "
            f"{max_drop!r} and {evaluate!r}"
        )

    def measure(archive: Archive | None) -> float:
        trial = copy.deepcopy(model)
        if archive is not None:
            fill(trial, archive)
        return evaluated(evaluate, trial, "evaluate")

    return Quality(max_drop, measure)


def check_holders(model: nn.Module) -> None:
    """Refuse a model that could not hold the factors, before they are computed."""
    check_model(model)
    for name, site in find_sites(model).items():
        if isinstance(site.weight, Tensor):
            dtypes.check(name, site.weight)
        if is_tileable(site.weight.shape) and math.prod(site.weight.shape) >= FEWEST_WEIGHTS:
            check_module(name, site.module)


def source_of(model: nn.Module) -> Source:
    """The tensors of a model, dense even where it holds factors. Buffers are not to be factored."""
    entries = state(model)
    plain = {name: t for name, t in entries.items() if isinstance(t, Tensor)}
    factored: dict[HeldWeight, str] = {}
    aliases = shared(plain)
    for name, value in entries.items():
        if isinstance(value, HeldWeight) and factored.setdefault(value, name) != name:
            aliases[name] = factored[value]
    size = sum(nbytes(value) for name, value in entries.items() if name not in aliases)
    buffers = entries.keys() - find_sites(model).keys()
    return Source(
        list(entries),
        lambda name: dense(entries[name]),
        size,
        aliases,
        unchanged=frozenset(buffers),
    )


def dense(value: HeldWeight | Tensor) -> Tensor:
    """The tensor itself, whether factored or not, on the CPU."""
    if isinstance(value, HeldWeight):
        value = value.to_factors().recompose()
    return value.detach().cpu()


def nbytes(value: HeldWeight | Tensor) -> int:
    """Bytes of the dense tensor."""
    if isinstance(value, HeldWeight):
        return math.prod(value.shape) * value.dtype.itemsize
    return value.nbytes if dtypes.is_dense(value) else 0


def fill(model: nn.Module, contents: Contents) -> None:
    """Put contents into a model whose names and shapes are known to fit, one tensor at a time.

    Raises
    ------
    InputError
        If a module cannot hold factors; the model is unchanged.
    """
    shapes, held = contents.shapes, set(find_sites(model))
    names = distinct(model, shapes)
    factored = {n: shapes[n] for n in names if n in held and contents.is_factored(n)}
    places = replaceable(model, factored)
    # None of the weights that are replaced, which would then stay in memory.
    others = {n: t for n, t in state(model).items() if n in names and n not in places}
    uses: dict[str, list[str]] = {}  # names in the model, by that of the tensor in the contents
    for name in (*places, *others):
        uses.setdefault(contents.original(name), []).append(name)
    with torch.no_grad():
        for original, value in contents.stream(uses):
            for name in uses[original]:
                if isinstance(value, Factors) and name in places:
                    replace_weight(places.pop(name), value)
                elif isinstance(tensor := others[name], Tensor):
                    tensor.copy_(as_tensor(value))


def distinct(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """The first name of each tensor of a model, and the other names that it is tied to."""
    aliases = source_of(model).aliases
    first: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for name in names:
        leader = first.setdefault(aliases.get(name, name), name)
        others = groups.setdefault(leader, [])
        if name != leader:
            others.append(name)
    return groups
