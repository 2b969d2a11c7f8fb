# SPDX-License-Identifier: Apache-2.0
"""Observe the inputs of modules while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Look = Callable[..., object]
"""Function that is called with the arguments of a module."""


@contextmanager
def removing(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def observing(
    model: nn.Module, looks: Mapping[nn.Module, Look], *, after: bool = False
) -> Iterator[None]:
    """Run a model in evaluation mode and show arguments of its modules; restore modes at the end.

    Transformer layers of torch use no fast path, which would skip their modules.

    Parameters
    ----------
    model
        The model.
    looks
        For each observed module, the function that gets its arguments.
    after
        Call the functions after the module has run, so that the module first raises errors about
        inputs that it refuses. By default they are called before.
    """
    shortcut = torch.backends.mha.get_fastpath_enabled()
    modes = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(_hook(look), with_kwargs=True)
        if after
        else module.register_forward_pre_hook(_hook(look), with_kwargs=True)
        for module, look in looks.items()
    ]
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with removing(handles):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(shortcut)
        for module, training in modes.items():
            module.training = training


def at_input(look: Callable[[Tensor], object]) -> Look:
    """Look at the first input of a module, if that is a tensor."""

    def show(*args: Any, **kwargs: Any) -> None:
        if (x := first_input(args, kwargs)) is not None:
            look(x)

    return show


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first argument of a module, if that is a tensor."""
    x = args[0] if args else kwargs.get("input")
    return x if isinstance(x, Tensor) else None


def _hook(look: Look) -> Callable[..., None]:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> None:
        look(*args, **kwargs)

    return show
