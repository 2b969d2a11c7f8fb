"""`optimize`: a compressed model made ready for inference, each weight in its best form."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor.errors import BudgetError, InputError
from tersor.kernels import instructions, missing_on
from tersor.nn.absorb import Pairs, absorb, absorb_dense, find_pairs, gains
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
from tersor.nn.sites import Site, find_sites
from tersor.nn.weight import FactoredWeight
from tersor.plan.budget import format_size, parse_size
from tersor.plan.progress import shown

Mode = Literal["auto", "dense", "recompose", "factored"]

BATCH = 16
"""Vectors that the forms of a matrix are compared with, if it is not known what it gets."""

PIXELS = 14
"""Height and width of the image that those of a convolution are compared with, if none is known."""

CACHE = 32_000_000
"""Bytes that are read between two measurements, at most: the weights of a model that is larger than
the cache come from memory each time."""

RUNS = 9
"""Times that each form is measured, if it is not `FAR` slower than another."""

FAR = 1.5
"""Times the least time beyond which a form is not measured again."""

SLOWER = 0.02
"""Share of the fastest time that "auto" gives for memory."""

LISTED = 0.6
"""Share of nonzero integers up to which lists can be faster than dense weights: measured."""

ORDERS = (torch.channels_last, torch.contiguous_format)
"""Orders in memory of the images between layers; forms are chosen for that with which the model is
faster. Each is measured with what it costs to take and give such images."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that may read the weights of the modules that they hold, not call these."""


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
    inputs: Tensor | tuple[Any, ...] | None = None,
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
        What the model will be called with, one tensor or a tuple of all arguments. For "auto" and
        "dense" it runs up to three times: to see what convolutions can take over, and for "auto"
        what the module of each weight gets, with which its forms are compared. By default with
        `BATCH` vectors, or with one image of `PIXELS` x `PIXELS`.

    Returns
    -------
    Optimized
        The form of each weight, its bytes, and its time where it was measured.

    Raises
    ------
    InputError
        If the mode is unknown, or the model holds no factors.
    BudgetError
        If the memory is too little; the model is unchanged.
    """
    if mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}, choose one of {get_args(Mode)}")
    if memory is not None and mode != "auto":
        raise InputError('a limit of memory needs mode="auto", which chooses by it')
    weights = _weights(model)
    if not weights:
        raise InputError("the model holds no factors to optimize; compress it first, or load one")
    names = {module: name for name, module in model.named_modules()}
    pairs = {} if mode in ("recompose", "factored") else _find_pairs(model, weights, inputs)
    if mode == "auto":
        _find_inputs(model, weights, inputs)
        numbers = min(CACHE, sum(_dense_bytes(w.holder) for w in weights)) // 4
        others = {d: torch.zeros(numbers, device=d) for d in {w.holder.device for w in weights}}
        for weight in weights:
            weight.others = others[weight.holder.device]
        forms = _chosen(weights, None if memory is None else parse_size(memory))
    else:
        forms = [(_fixed(weight, mode), 0.0) for weight in weights]
    choices = tuple(_put(weight, *form) for weight, form in zip(weights, forms, strict=True))
    if any(form.is_dense for form, _ in forms):  # else the model can be saved, as it was
        for conv, norm in pairs.items():
            if not isinstance(conv, FactoredOwner):
                absorb_dense(conv, norm)
    absorbed = (names[norm] for norm in pairs.values() if isinstance(norm, nn.Identity))
    return Optimized(choices, tuple(absorbed))


@dataclass
class _Named:
    """All sites of one weight."""

    name: str
    sites: list[Site]
    holder: FactoredWeight
    is_read: bool = False
    """Whether a module above one of the sites reads the weight itself."""
    norm: _BatchNorm | None = None
    """What normalises the outputs of its only module, and could be left to it."""
    input: Tensor | None = None
    """What its forms are compared with: what one of its modules gets."""
    others: Tensor | None = None
    """As many bytes as the model's weights, up to `CACHE`, to be read between two measurements."""


def _weights(model: nn.Module) -> list[_Named]:
    readers = [module for module in model.modules() if isinstance(module, READERS)]
    read = {child for module in readers for child in module.children()}
    found: dict[HeldWeight, _Named] = {}
    for name, site in find_sites(model).items():
        if isinstance(site.weight, FactoredWeight):
            weight = found.setdefault(site.weight, _Named(name, [], site.weight))
            weight.sites.append(site)
            weight.is_read |= site.module in read
    return list(found.values())


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _find_pairs(model: nn.Module, weights: Sequence[_Named], inputs: Any) -> Pairs:
    """Convolutions and what normalises their outputs; the weights are told."""
    pairs = {} if inputs is None else find_pairs(model, lambda: model(*_arguments(inputs)))
    for weight in weights:
        if len(weight.sites) == 1:
            weight.norm = pairs.get(weight.sites[0].module)
    return pairs


def _find_inputs(model: nn.Module, weights: Sequence[_Named], inputs: Any) -> None:
    """Tell the weights what their modules get when the model is called."""
    modules: dict[nn.Module, _Named] = {
        site.module: weight
        for weight in weights
        for site in weight.sites
        if isinstance(site.module, (*CONVOLUTIONS, nn.Linear, nn.Embedding))
    }
    if inputs is None or not modules:
        return

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if modules[module].input is None and arguments:
            modules[module].input = arguments[0].detach()

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        with torch.inference_mode():
            model(*_arguments(inputs))
    finally:
        for hook in hooks:
            hook.remove()


def _fixed(weight: _Named, mode: str) -> type[FrozenWeight]:
    if mode == "dense":
        return DenseWeight
    own = [form for form in _own_forms(weight) if form.mode in ("factored", "look-up")]
    return own[0] if mode == "factored" and own else RecomposedWeight


def _own_forms(weight: _Named) -> list[type[FrozenWeight]]:
    """Forms with kernels of their own, of weights whose modules all leave the product to them.

    Whatever can be looked up takes fewer bytes then, and less time: it comes first.
    """
    leave = all(
        isinstance(site.module, FactoredOwner)
        and getattr(site.module.dense_class, "forward", None) in FORWARDS
        for site in weight.sites
    )
    if weight.is_read or not leave:
        return []
    factors = weight.holder.to_factors()
    own: list[type[FrozenWeight]] = [
        form for form in (LookupWeight, PackedWeight) if form.way.packable(factors)
    ]
    if weight.holder.device.type != "cpu":  # convolutions have no kernels of ours on GPUs
        return own
    exact = weight.holder.dtype is torch.float64  # which kernels are not
    others: list[type[FrozenWeight]] = [*FORMS, PanelWeight]
    return own + [
        form
        for form in others
        if not (exact and form.is_dense)
        and all(form.takes(site.module, factors) for site in weight.sites)
    ]


def _put(weight: _Named, form: type[FrozenWeight], seconds: float) -> Choice:
    """Replace a weight at all its sites; the old one is freed."""
    holder, owners = weight.holder, [(s.module, s.attribute) for s in weight.sites]
    weight.sites.clear()
    norm = weight.norm if form.is_dense else None
    gain = () if norm is None else (gains(owners[0][0], norm)[0],)
    frozen = form(holder.to_factors(), holder.dtype, *gain).to(holder.device)
    del holder, weight.holder
    for module, name in owners:
        forget(module, name)
        attach(module, name, frozen)
        if norm is not None:
            absorb(module, norm)
    return Choice(weight.name, frozen.mode, frozen.nbytes, _dense_bytes(frozen), seconds)


def _dense_bytes(weight: HeldWeight) -> int:
    return torch.Size(weight.shape).numel() * weight.dtype.itemsize


@dataclass(frozen=True)
class _Option:
    """One form of one weight."""

    form: type[FrozenWeight]
    nbytes: int
    seconds: float


def _chosen(
    weights: Sequence[_Named], memory: int | None
) -> list[tuple[type[FrozenWeight], float]]:
    """The form of each weight, and its time."""
    options = []
    with shown("trying forms") as show:
        for number, weight in enumerate(weights):
            show(weight.name, number / len(weights))
            options.append(_options(weight))
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


def _options(weight: _Named) -> list[list[_Option]]:
    """The forms that a weight can take here, measured with images in each of `ORDERS`."""
    forms: list[type[FrozenWeight]] = [DenseWeight, RecomposedWeight]
    if _has_kernels(weight.holder.device) or _is_table(weight):
        forms += [form for form in _own_forms(weight) if not _is_hopeless(form, weight)]
    factors, dtype, device = weight.holder.to_factors(), weight.holder.dtype, weight.holder.device
    tried = [form(factors, dtype).to(device) for form in forms]

    @torch.inference_mode()
    def measured(order: torch.memory_format) -> list[_Option]:
        times = _times([_use(weight, frozen, order) for frozen in tried], weight)
        return [_Option(type(f), f.nbytes, t) for f, t in zip(tried, times, strict=True)]

    if not isinstance(weight.sites[0].module, nn.Conv2d):
        return [measured(ORDERS[0])] * len(ORDERS)
    return [measured(order) for order in ORDERS]


def _has_kernels(device: torch.device) -> bool:
    return bool(instructions()) if device.type == "cpu" else not missing_on(device)


def _is_hopeless(form: type[FrozenWeight], weight: _Named) -> bool:
    """Whether a form is not worth its packing: lists of nearly everything are slow."""
    latent = weight.holder.to_factors().latent
    return form is ListedWeight and int(latent.count_nonzero()) > LISTED * latent.numel()


def _is_table(weight: _Named) -> bool:
    return all(isinstance(site.module, nn.Embedding) for site in weight.sites)


def _use(weight: _Named, frozen: FrozenWeight, order: torch.memory_format) -> Callable[[], Tensor]:
    """What a forward does with a weight: as far as the forms differ in it."""
    given = weight.input
    if _is_table(weight):
        index = given
        if index is None:
            index = torch.arange(BATCH, device=frozen.device) % frozen.shape[0]
        return (lambda: frozen.embed(index)) if frozen.by_rows else (lambda: frozen()[index])
    if all(isinstance(site.module, nn.Linear) for site in weight.sites):
        vectors = given
        if vectors is None:
            vectors = torch.randn(BATCH, frozen.shape[1]).to(frozen.device, frozen.dtype)
        return lambda: frozen.linear(vectors, None)
    modules = {site.module for site in weight.sites}
    if len(modules) == 1 and isinstance(module := modules.pop(), CONVOLUTIONS):
        image = given
        if image is None:
            size = (PIXELS,) * (len(frozen.shape) - 2)
            image = torch.randn(1, module.in_channels, *size).to(frozen.device, frozen.dtype)
        if not isinstance(module, nn.Conv2d) or image.dim() != 4:
            order = torch.contiguous_format
        x, norm = image.contiguous(memory_format=order), None if frozen.is_dense else weight.norm

        def convolve() -> Tensor:
            y = frozen.convolve(module, x).contiguous(memory_format=order)
            return y if norm is None else cast(Tensor, norm(y))

        return convolve
    return frozen


def _times(functions: Sequence[Callable[[], object]], weight: _Named) -> list[float]:
    """Least time of each, after a first call, in turns: what disturbs them only adds to it."""
    for function in functions:
        function()
    least = [_timed(function, weight) for function in functions]
    for _ in range(RUNS - 1):
        for i, function in enumerate(functions):
            if least[i] <= FAR * min(least):
                least[i] = min(least[i], _timed(function, weight))
    return least


def _timed(function: Callable[[], object], weight: _Named) -> float:
    device = weight.holder.device
    if weight.others is not None:
        weight.others.sum()
    _finish(device)
    clock = _clock(device)
    start = clock()
    function()
    _finish(device)
    return clock() - start


def _clock(device: torch.device) -> Callable[[], float]:
    """What one thread spends, where that is all and can be told; else what passes."""
    exact = time.get_clock_info("thread_time").resolution < 1e-6
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone and exact else time.perf_counter


def _finish(device: torch.device) -> None:
    """Wait for what a GPU has been asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
