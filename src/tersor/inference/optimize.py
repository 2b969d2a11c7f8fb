"""`optimize`: a compressed model made ready for inference, each weight in its best form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from tersor.errors import BudgetError, InputError
from tersor.inference.timing import forward_of, times
from tersor.inference.uses import Use, learn_inputs, learn_pairs, uses_of
from tersor.kernels import instructions, missing_on
from tersor.nn.absorb import absorb, absorb_dense, gains
from tersor.nn.convolution import FORMS, ListedWeight
from tersor.nn.frozen import (
    DenseWeight,
    FrozenWeight,
    LookupWeight,
    PackedWeight,
    PanelWeight,
    RecomposedWeight,
)
from tersor.nn.held import HeldWeight
from tersor.nn.owner import FORWARDS, FactoredOwner, attach, forget
from tersor.progress import shown
from tersor.units import format_size, parse_size

Mode = Literal["auto", "dense", "recompose", "factored"]

CACHE = 32_000_000
"""Bytes that are read between two measurements, at most: the weights of a model that is larger than
the cache come from memory each time."""

SLOWER = 0.02
"""Share of the fastest time that "auto" gives for memory."""

LISTED = 0.6
"""Share of nonzero integers up to which lists can be faster than dense weights: measured."""

ORDERS = (torch.channels_last, torch.contiguous_format)
"""Orders in memory of the images between layers; forms are chosen for that with which the model is
faster. Each is measured with what it costs to take and give such images."""


@dataclass(frozen=True)
class Choice:
    """What became of one weight.

    Parameters
    ----------
    name
        First of its names in the dense model's ``state_dict``.
    mode
        "dense", "dense, packed", "recompose", "factored" or, where that is by look-up, "look-up".
    nbytes, dense_bytes
        Bytes in memory, and what the dense weight takes.
    seconds
        Measured time of what a forward does with it; 0 where nothing was to be chosen.
    """

    name: str
    mode: str
    nbytes: int
    dense_bytes: int
    seconds: float


@dataclass(frozen=True)
class Optimized:
    """What `optimize` chose; printing it gives a table.

    Parameters
    ----------
    choices
        What became of each weight.
    absorbed
        Names of the layers of batch normalisation that are done by the convolutions before them.
    """

    choices: tuple[Choice, ...]
    absorbed: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that came as factors."""
        return sum(choice.nbytes for choice in self.choices)

    def __str__(self) -> str:
        lines = [
            f"{c.name}: {c.mode}, {format_size(c.nbytes)} of {format_size(c.dense_bytes)} dense"
            for c in self.choices
        ]
        if self.absorbed:
            lines.append(f"done by the convolution before it: {', '.join(self.absorbed)}")
        return "\n".join([*lines, f"in all {format_size(self.nbytes)}"])


def optimize(
    model: nn.Module,
    mode: Mode = "auto",
    memory: str | int | None = None,
    inputs: Any = None,
) -> Optimized:
    """Make a compressed model ready for inference, in place; it cannot be trained any more.

    Each weight that is held as factors takes one form, and what only training needs is freed:

    - "dense": multiplied out once. As fast and as large as the dense model; the factors are gone,
      so that the model can no longer be saved as a small file.
    - "recompose": small integers, multiplied out in each forward; any module.
    - "factored": integers of 2, 4, 6 or 8 bits, of matrices in `torch.nn.Linear` and
      `torch.nn.Embedding`, that are never multiplied out; those that were compressed to be
      ``fast`` are looked up, several signs at a time ("look-up"). Embeddings make only the rows
      asked for, exactly. Linear layers round their inputs: see `tersor.kernels.linear` for the
      error, about 0.6 % of a layer's output for fewer than 8 vectors and 0.1 % for more, where
      some integers take 6 or 8 bits none from 3 vectors on; by look-up about 0.8 % for fewer than
      5 and 0.05 % for more. Of convolutions in one or two dimensions with one group, the integers
      become lists of what each row adds up, with an error of 0.1 %. Other weights are recomposed.
      On a GPU, linear layers compute in the type of their inputs, by Triton's kernels, and
      convolutions are recomposed.

    With "auto", weights may also be dense and prepared for kernels of their own. Of linear layers,
    and of convolutions of images that lie channels last, they are held in the order in which they
    are multiplied, and in no other ("dense, packed"): as large as the dense weight, and of few
    vectors faster. Others give contiguous images: depthwise ones, and 3 x 3 windows by Winograd's
    algorithm, with 1.8 or 4 times the dense weight in memory besides it.

    With inputs given, a convolution whose weight becomes dense takes over the batch normalisation
    of its output, which becomes `torch.nn.Identity`, if the model is seen to use that output for
    nothing else: nothing is, where a layer of batch normalisation is not called, or several times,
    or in training mode. So does each convolution that had a weight of its own.

    Parameters
    ----------
    model
        Model with factors, from `tersor.compress` or `tersor.load`.
    mode
        One of these for all weights, or "auto": what is fastest, measured layer by layer on this
        machine in a few milliseconds each, with up to 2 % of the time given where that saves most
        memory.
    memory
        Most that these weights may take, for "auto", such as ``"8MB"`` (1 kB is 1000 bytes) or a
        number of bytes; by default no limit.
    inputs
        What the model will be called with: one tensor, a tuple of all arguments, or a dict of them
        by name. For "auto" and
        "dense" it runs up to three times: to see what convolutions can take over, and for "auto"
        what the module of each weight gets, with which its forms are compared. By default with
        16 vectors, or with one image of 14 x 14, or larger where the window needs it. A form that
        fails with them is left out.

    Returns
    -------
    Optimized
        The form of each weight, its bytes, and its time where it was measured.

    Raises
    ------
    InputError
        If the mode is unknown, the model holds no factors, or it fails when called with the inputs.
    BudgetError
        If the memory is too little; the model is unchanged.
    """
    if mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}, choose one of {get_args(Mode)}")
    if memory is not None and mode != "auto":
        raise InputError('a limit of memory needs mode="auto", which chooses by it')
    uses = uses_of(model)
    if not uses:
        raise InputError("the model holds no factors to optimize; compress it first, or load one")
    names = {module: name for name, module in model.named_modules()}
    pairs = {} if mode in ("recompose", "factored") else learn_pairs(model, uses, inputs)
    if mode == "auto":
        learn_inputs(model, uses, inputs)
        numbers = min(CACHE, sum(_dense_bytes(use.holder) for use in uses)) // 4
        others = {d: torch.zeros(numbers, device=d) for d in {use.holder.device for use in uses}}
        for use in uses:
            use.others = others[use.holder.device]
        forms = _chosen(uses, None if memory is None else parse_size(memory))
    else:
        forms = [(_fixed(use, mode), 0.0) for use in uses]
    choices = tuple(_put(use, *form) for use, form in zip(uses, forms, strict=True))
    if any(form.is_dense for form, _ in forms):  # else the model can be saved, as it was
        for conv, norm in pairs.items():
            if not isinstance(conv, FactoredOwner):
                absorb_dense(conv, norm)
    absorbed = (names[norm] for norm in pairs.values() if isinstance(norm, nn.Identity))
    return Optimized(choices, tuple(absorbed))


def _fixed(use: Use, mode: str) -> type[FrozenWeight]:
    if mode == "dense":
        return DenseWeight
    own = [form for form in _own_forms(use) if form.mode in ("factored", "look-up")]
    return own[0] if mode == "factored" and own else RecomposedWeight


def _own_forms(use: Use) -> list[type[FrozenWeight]]:
    """Forms with kernels of their own, of weights whose modules all leave the product to them.

    Whatever can be looked up takes fewer bytes then, and less time: it comes first.
    """
    leave = all(
        isinstance(site.module, FactoredOwner)
        and getattr(site.module.dense_class, "forward", None) in FORWARDS
        for site in use.sites
    )
    if use.is_read or not leave:
        return []
    factors = use.holder.to_factors()
    own: list[type[FrozenWeight]] = [
        form for form in (LookupWeight, PackedWeight) if form.way.packable(factors)
    ]
    if use.holder.device.type != "cpu":  # convolutions have no kernels of ours on GPUs
        return own
    exact = use.holder.dtype is torch.float64  # which kernels are not
    others: list[type[FrozenWeight]] = [*FORMS, PanelWeight]
    return own + [
        form
        for form in others
        if not (exact and form.is_dense)
        and all(form.takes(site.module, factors) for site in use.sites)
    ]


def _put(use: Use, form: type[FrozenWeight], seconds: float) -> Choice:
    """Replace a weight at all its sites; the old one is freed."""
    holder, owners = use.holder, [(s.module, s.attribute) for s in use.sites]
    use.sites.clear()
    norm = use.norm if form.is_dense else None
    gain = () if norm is None else (gains(owners[0][0], norm)[0],)
    frozen = form(holder.to_factors(), holder.dtype, *gain).to(holder.device)
    del holder, use.holder
    for module, name in owners:
        forget(module, name)
        attach(module, name, frozen)
        if norm is not None:
            absorb(module, norm)
    return Choice(use.name, frozen.mode, frozen.nbytes, _dense_bytes(frozen), seconds)


def _dense_bytes(weight: HeldWeight) -> int:
    return torch.Size(weight.shape).numel() * weight.dtype.itemsize


@dataclass(frozen=True)
class _Option:
    """One form of one weight."""

    form: type[FrozenWeight]
    nbytes: int
    seconds: float


def _chosen(uses: Sequence[Use], memory: int | None) -> list[tuple[type[FrozenWeight], float]]:
    """The form of each weight, and its time."""
    options = []
    with shown("trying forms") as show:
        for number, use in enumerate(uses):
            show(use.name, number / len(uses))
            options.append(_options(use))
    least = sum(min(option.nbytes for option in of_one[0]) for of_one in options)
    if memory is not None and least > memory:
        raise BudgetError(
            f"the weights take at least {format_size(least)} ({least} bytes) in memory, allowed "
            f"are {memory} bytes; allow more, or compress the model further"
        )
    plans = [_trade(of_order, memory) for of_order in zip(*options, strict=True)]
    best = min(plans, key=lambda plan: sum(option.seconds for option in plan))
    return [(option.form, option.seconds) for option in best]


def _trade(options: Sequence[Sequence[_Option]], memory: int | None) -> list[_Option]:
    """The fastest options, then slower ones that save most, as far as allowed or needed."""
    chosen = [min(of_one, key=lambda o: (o.seconds, o.nbytes)) for of_one in options]
    limit = (1 + SLOWER) * sum(option.seconds for option in chosen)
    while True:
        swaps = [
            ((other.seconds - now.seconds) / (now.nbytes - other.nbytes), i, other)
            for i, now in enumerate(chosen)
            for other in options[i]
            if other.nbytes < now.nbytes
        ]
        over = memory is not None and sum(option.nbytes for option in chosen) > memory
        spent = sum(option.seconds for option in chosen)
        allowed = [s for s in swaps if over or spent + s[2].seconds - chosen[s[1]].seconds <= limit]
        if not allowed:
            return chosen
        _, i, other = min(allowed, key=lambda swap: swap[:2])
        chosen[i] = other


def _options(use: Use) -> list[list[_Option]]:
    """The forms that a weight can take here, measured with images in each of `ORDERS`."""
    forms: list[type[FrozenWeight]] = [DenseWeight, RecomposedWeight]
    if _has_kernels(use.holder.device) or use.is_table:
        forms += [form for form in _own_forms(use) if not _is_hopeless(form, use)]
    factors, dtype, device = use.holder.to_factors(), use.holder.dtype, use.holder.device
    tried = [form(factors, dtype).to(device) for form in forms]

    @torch.inference_mode()
    def measured(order: torch.memory_format) -> list[_Option]:
        seconds = times([forward_of(use, frozen, order) for frozen in tried], use)
        if min(seconds) == math.inf:  # the module does something else with it: it only reads it
            seconds = times(tried, use)
        return [
            _Option(type(frozen), frozen.nbytes, taken)
            for frozen, taken in zip(tried, seconds, strict=True)
            if taken < math.inf
        ]

    if not isinstance(use.sites[0].module, nn.Conv2d):
        return [measured(ORDERS[0])] * len(ORDERS)
    return [measured(order) for order in ORDERS]


def _has_kernels(device: torch.device) -> bool:
    return bool(instructions()) if device.type == "cpu" else not missing_on(device)


def _is_hopeless(form: type[FrozenWeight], use: Use) -> bool:
    """Whether a form is not worth its packing: lists of nearly everything are slow."""
    latent = use.holder.to_factors().latent
    return form is ListedWeight and int(latent.count_nonzero()) > LISTED * latent.numel()
