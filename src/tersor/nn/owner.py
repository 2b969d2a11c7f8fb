# SPDX-License-Identifier: Apache-2.0
"""Replace parameters of modules by factors, in place.

The module stays the same object and becomes an instance of a subclass of its own class. In that
subclass ``weight`` (or any other parameter name) is a property that calls the `FactoredWeight` held
in the child ``weight_factors``. So the module's forward, hooks and flags and all references to it
keep working, and so does code that reads ``module.weight``: padding modes, attention, forwards
written by users. Each read recomposes the weight, unless the weight is held dense ("dense" mode).
Two things do not work: assigning or changing ``module.weight`` (an error, or no effect), and the
test ``type(module) is nn.Linear``.

`torch.nn.utils.parametrize` does the same, but its modules cannot be pickled, and modules that
cache their weights, such as LSTM, would need the same special care there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from tersor.nn.held import HeldWeight

SUFFIX = "_factors"
"""Ending of the child's name: ``weight_factors`` holds the factors of ``weight``."""

ORDER = "_dense_order"
"""Attribute of a factored module that holds the names of the dense module's own parameters, in
order."""


class FactoredOwner(nn.Module):
    """Mixin of the classes that `factored_class` makes.

    Attributes
    ----------
    dense_class
        Class of the dense module.
    factored_names
        Names of the parameters that are factored.
    """

    dense_class: ClassVar[type]
    factored_names: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Classes made at run time cannot be imported, so pickle and deepcopy make them again.
        state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))[2]
        return new_instance, (self.dense_class, self.factored_names), state


class FactoredRecurrent(FactoredOwner, nn.RNNBase):
    """Mixin for LSTM, GRU and RNN: their cached list of weights is made anew at each access."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor | None]) -> None:
        """Do nothing, because the list of weights is not cached."""

    def _init_flat_weights(self) -> None:
        """Do nothing, because the list of weights is not cached."""

    def _update_flat_weights(self) -> None:
        """Do nothing, because the list of weights is not cached."""

    def flatten_parameters(self) -> None:
        """Do nothing, because the weights are new tensors in each forward."""


@cache
def factored_class(dense: type, names: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass of ``dense`` that reads the given parameters from their factors.

    Parameters
    ----------
    dense
        Class of the dense module.
    names
        Names of the factored parameters, sorted.
    """
    mixin = FactoredRecurrent if issubclass(dense, nn.RNNBase) else FactoredOwner
    body: dict[str, Any] = {name: property(_reader(name)) for name in names}
    # torch.fx decides by the module's name which classes it does not trace into.
    if "weight" in names:
        own = FORWARDS.get(getattr(dense, "forward", None))
        body |= {"forward": own} if own else {}
    body |= {"__module__": dense.__module__, "dense_class": dense, "factored_names": names}
    return type(f"Factored{dense.__name__}", (mixin, dense), body)


def _linear(self: nn.Linear, input: Tensor) -> Tensor:
    return cast(HeldWeight, self.weight_factors).linear(input, self.bias)


def _embedding(self: nn.Embedding, input: Tensor) -> Tensor:
    holder = cast(HeldWeight, self.weight_factors)
    if holder.by_rows and self.max_norm is None:
        return holder.embed(input)
    return nn.Embedding.forward(self, input)


def _convolution(self: nn.Conv1d | nn.Conv2d, input: Tensor) -> Tensor:
    return cast(HeldWeight, self.weight_factors).convolve(self, input)


FORWARDS: dict[Any, Any] = {
    nn.Linear.forward: _linear,
    nn.Embedding.forward: _embedding,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
}
"""Forwards that let the held weight compute the product, by the forwards of torch that they
replace."""


def new_instance(dense: type, names: tuple[str, ...]) -> nn.Module:
    """Return an instance of a factored class without attributes, for pickle."""
    kind = factored_class(dense, names)
    return kind.__new__(kind)


def _reader(name: str) -> Callable[[nn.Module], Tensor]:
    child = name + SUFFIX

    def read(self: nn.Module) -> Tensor:
        return cast(Tensor, getattr(self, child)())

    return read


def attach(module: nn.Module, name: str, holder: HeldWeight) -> None:
    """Remove parameter ``name`` of the module, and let the module read it from ``holder``."""
    forget(module, name)
    holder.training = module.training
    module.add_module(name + SUFFIX, holder)


def forget(module: nn.Module, name: str) -> None:
    """Remove a dense parameter; `attach` must follow."""
    if name in module._parameters:
        derived = _derive(module, name)
        if not isinstance(module, FactoredOwner):
            module.__dict__[ORDER] = tuple(module._parameters)
        del module._parameters[name]
        module.__class__ = derived
    if isinstance(module, nn.RNNBase):
        _let_go_of_flat_weights(module)


def detach(module: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Replace the factors of parameter ``name`` by a dense weight; the reverse of `attach`."""
    assert isinstance(module, FactoredOwner)
    del module._modules[name + SUFFIX]
    order = module.__dict__[ORDER]
    dense = {**module._parameters, name: weight}
    left = tuple(other for other in module.factored_names if other != name)
    module.__class__ = factored_class(module.dense_class, left) if left else module.dense_class
    # The order is that of the dense module; a dictionary keeps the order of its first assignments.
    module._parameters.clear()
    module._parameters.update({n: dense[n] for n in order if n in dense})
    if not left:
        del module.__dict__[ORDER]
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def attaching_problem(module: nn.Module, name: str) -> str | None:
    """Return why a module cannot get a child with the factors of a parameter, or None if it can."""
    child = name + SUFFIX
    if hasattr(module, child) and not isinstance(getattr(module, child), HeldWeight):
        return f"that has an attribute {child!r}, as the factors would be called; rename that"
    if name not in module._parameters:
        return None
    try:
        _derive(module, name)
    except Exception as error:
        return (
            f"of which no subclass can be made ({type(error).__name__}: {error}); let its "
            "__init_subclass__ or metaclass accept one"
        )
    return None


def _derive(module: nn.Module, name: str) -> type[nn.Module]:
    dense: type = type(module)
    if isinstance(module, FactoredOwner):
        return factored_class(module.dense_class, tuple(sorted((*module.factored_names, name))))
    return factored_class(dense, (name,))


def _let_go_of_flat_weights(module: nn.RNNBase) -> None:
    module.__dict__.pop("_flat_weights", None)
    for parameter in module.parameters(recurse=False):
        # With cuDNN, all are views of one buffer, which would keep the dense weights in memory.
        parameter.data = parameter.data.clone()
