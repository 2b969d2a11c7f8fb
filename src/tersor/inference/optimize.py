# SPDX-License-Identifier: Apache-2.0
"""Prepare a compressed model for inference: choose the best form of each weight."""

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
"""Most bytes that are read between two measurements. Reading them evicts weights from the cache, as
in a model that is larger than the cache, whose weights come from memory each time."""

SLOWER = 0.02
"""Share of the fastest time that "auto" may add in order to save memory."""

LISTED = 0.6
"""Measured share of nonzero integers up to which lists can be faster than dense weights."""

ORDERS = (torch.channels_last, torch.contiguous_format)
"""Memory formats of the images between layers. Forms are chosen for the format with which the model
is faster. The time of a form includes the conversion of images from and to the format."""


@dataclass(frozen=True)
class Choice:
    """The form that was chosen for one weight.

    Parameters
    ----------
    name
        First name of the weight in the dense model's ``state_dict``.
    mode
        "dense", "dense, packed", "recompose", "factored", or "look-up" for a factored form that
        uses look-up kernels.
    nbytes, dense_bytes
        Bytes in memory of this form, and of the dense weight.
    seconds
        Measured time that a forward pass spends on the weight; 0 if the mode left no choice.
    """

    name: str
    mode: str
    nbytes: int
    dense_bytes: int
    seconds: float


@dataclass(frozen=True)
class Optimized:
    """The choices of `optimize`, which print as a table.

    Parameters
    ----------
    choices
        The form of each weight.
    absorbed
        Names of the batch normalisation layers that the convolutions before them have absorbed.

    Examples
    --------
    >>> model = torch.nn.Linear(64, 64)
    >>> report = tersor.compress(model, ratio=8)
    >>> print(tersor.optimize(model, "dense"))
    weight: dense, 16.4 kB of 16.4 kB dense
    in all 16.4 kB
    """

    choices: tuple[Choice, ...]
    absorbed: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Return the bytes in memory of all weights that were held as factors before."""
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
    """Prepare a compressed model for inference, in place; it can no longer be trained.

    Each weight that is held as factors takes one of these forms. Data that only training needs is
    freed.

    - "dense": The weight is multiplied out once. It is as fast and as large as in the dense model.
      The factors are gone, so that the model can no longer be saved as a small file.
    - "recompose": Small integers are multiplied out in each forward pass. This works in any module.
    - "factored": Matrices in `torch.nn.Linear` and `torch.nn.Embedding` are held as integers of 2,
      4, 6 or 8 bits and never multiplied out. Matrices that were compressed with ``lookup`` use
      look-up kernels, which process several of their signs at a time ("look-up"). Embeddings
      compute only the requested rows, exactly. Linear layers round their inputs (see
      `tersor.kernels.linear`). The error is about 0.6 % of a layer's output for fewer than 8
      vectors and 0.1 % for more. If some integers take 6 or 8 bits, there is no error from 3
      vectors on. By look-up, the error is about 0.8 % for fewer than 5 vectors and 0.05 % for more.
      In convolutions of one or two dimensions with one group, the integers become lists of the
      terms that each row adds up, with an error of 0.1 %. Other weights are recomposed. On a GPU,
      linear layers compute in the type of their inputs with Triton kernels, and convolutions are
      recomposed.

    With "auto", weights may also be dense and prepared for special kernels. Weights of linear
    layers, and of convolutions of images in the channels-last format, are held only in the order in
    which they are multiplied ("dense, packed"). They are as large as the dense weight, and faster
    for few vectors. Other such kernels return contiguous images: those for depthwise convolutions,
    and those for 3 x 3 windows by Winograd's algorithm, which hold 1.8 or 4 times the dense weight
    in memory in addition to it.

    If inputs are given, a convolution whose weight becomes dense absorbs the batch normalisation of
    its output, which becomes `torch.nn.Identity`. So does each convolution whose weight was not
    factored. The condition is that a run of the model shows no other use of the convolution's
    output. Nothing is absorbed if a batch normalisation layer of the model is not called, is called
    several times, or is in training mode.

    Parameters
    ----------
    model
        Model with factors, from `tersor.compress` or `tersor.load`.
    mode
        One of these forms for all weights, or "auto" (default) for the fastest. "auto" measures the
        forms of each weight on this machine, in a few milliseconds per weight. It gives up to 2 %
        of the time where that saves most memory.
    memory
        Limit of the bytes that these weights take in memory: a text such as ``"8MB"`` (1 kB is
        1000 bytes) or a number of bytes. Only for "auto"; by default there is no limit.
    inputs
        Typical inputs of the model: one tensor, a tuple of all arguments, or a dict of arguments by
        name. For "auto" and "dense" the model is called with them up to three times, to find what
        convolutions can absorb, and, for "auto", to record the input of each weight's module, with
        which the forms are compared. Without inputs the forms are compared with 16 vectors, or with
        one image of 14 x 14, or larger if the window needs it. A form that fails is left out.

    Returns
    -------
    Optimized
        The form of each weight, its bytes, and its time if it was measured.

    Raises
    ------
    InputError
        If the mode is unknown, if ``memory`` is given without "auto", if the model holds no
        factors, or if it fails when it is called with the inputs.
    BudgetError
        If the weights do not fit into ``memory``. The model is then unchanged.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> report = tersor.compress(model, ratio=8)
    >>> done = tersor.optimize(model, "factored")
    >>> done.nbytes < 4 * 64 * 64
    True
    >>> model(torch.randn(1, 64)).shape
    torch.Size([1, 64])
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
    if any(form.is_dense for form, _ in forms):  # otherwise the model can still be saved unchanged
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
    """Return the forms with special kernels, for weights whose modules let them do the product.

    The look-up form takes the fewest bytes and the least time, so that it comes first.
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
        form for form in (LookupWeight, PackedWeight) if form.packing.packable(factors)
    ]
    if use.holder.device.type != "cpu":  # there are no special kernels for convolutions on GPUs
        return own
    exact = use.holder.dtype is torch.float64  # the kernels compute in lower precision
    others: list[type[FrozenWeight]] = [*FORMS, PanelWeight]
    return own + [
        form
        for form in others
        if not (exact and form.is_dense)
        and all(form.takes(site.module, factors) for site in use.sites)
    ]


def _put(use: Use, form: type[FrozenWeight], seconds: float) -> Choice:
    """Replace a weight by a form at all its sites, and free the old one."""
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
    """One form of one weight, with its bytes in memory and its time."""

    form: type[FrozenWeight]
    nbytes: int
    seconds: float


def _chosen(uses: Sequence[Use], memory: int | None) -> list[tuple[type[FrozenWeight], float]]:
    """Return the chosen form of each weight, and its time in seconds."""
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
    """Return one option per weight: the fastest, exchanged for smaller ones as long as allowed.

    The exchange with the least time per saved byte comes first. It is allowed while the memory is
    over its limit, or while the total time exceeds the fastest by at most `SLOWER`.
    """
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
    """Return the forms that a weight can take, measured with images in each of `ORDERS`."""
    forms: list[type[FrozenWeight]] = [DenseWeight, RecomposedWeight]
    if _has_kernels(use.holder.device) or use.is_table:
        forms += [form for form in _own_forms(use) if not _is_hopeless(form, use)]
    factors, dtype, device = use.holder.to_factors(), use.holder.dtype, use.holder.device
    tried = [form(factors, dtype).to(device) for form in forms]

    @torch.inference_mode()
    def measured(order: torch.memory_format) -> list[_Option]:
        seconds = times([forward_of(use, frozen, order) for frozen in tried], use)
        if min(seconds) == math.inf:  # all failed: the module only reads the weight
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
    """Return whether a form is not worth trying: lists are slow if most integers are nonzero."""
    latent = use.holder.to_factors().latent
    return form is ListedWeight and int(latent.count_nonzero()) > LISTED * latent.numel()
