"""Observe the inputs of modules while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Look = Callable[[Tensor], object]
"""Function that is called with the first input of a module."""


@contextmanager
def observing(
    model: nn.Module, looks: Mapping[nn.Module, Look], *, after: bool = False
) -> Iterator[None]:
    """Run a model in evaluation mode and show inputs of its modules; restore all modes at the end.

    Parameters
    ----------
    model
        The model.
    looks
        For each observed module, the function that gets its first input.
    after
        Call the functions after the module has run, so that the module first raises errors about
        inputs that it refuses. By default they are called before.
    """
    modes = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(_hook(look), with_kwargs=True)
        if after
        else module.register_forward_pre_hook(_hook(look), with_kwargs=True)
        for module, look in looks.items()
    ]
    try:
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _hook(look: Look) -> Callable[..., None]:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if isinstance(x, Tensor):
            look(x)

    return show
