# SPDX-License-Identifier: Apache-2.0
"""Merge batch normalisation into the convolution before it: into gains of its rows, and its bias.

The code of a model is unknown; only its calls can be observed. So the model is called twice: once
to see which tensor each normalisation layer gets, and once with the normalisation computed by the
convolution, to check that the outputs stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from tersor.nn.convolution import Convolution
from tersor.nn.observe import removing
from tersor.nn.owner import FORWARDS, FactoredOwner

Pairs = dict[nn.Module, _BatchNorm]
"""Convolutions, each with the layer that normalises its outputs."""

_FOLLOWS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def find_pairs(model: nn.Module, call: Callable[[], Any]) -> Pairs:
    """Return the convolutions whose outputs are normalised and used for nothing else.

    Parameters
    ----------
    model
        Model in evaluation mode.
    call
        Calls the model with typical inputs and returns its outputs.

    Returns
    -------
    dict
        The normalisation layer of each convolution. It is empty if a normalisation layer of the
        model is not called exactly once, because the model may then compute other things with other
        inputs. It is also empty if the outputs change when the convolutions compute the
        normalisation.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return {}
    pairs, calls, wanted = _watched(model, norms, call)
    if any(calls[norm] != 1 for norm in norms):
        return {}
    pairs = {conv: norm for conv, norm in pairs.items() if calls[conv] == 1}
    return pairs if pairs and _same(_moved(pairs, call), wanted) else {}


def gains(conv: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the factors for the rows of a convolution's weight, and its new bias.

    Both have the shape (output channels,).
    """
    assert norm.running_mean is not None and norm.running_var is not None
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    bias = cast(Convolution, conv).bias
    shift = (-norm.running_mean if bias is None else bias - norm.running_mean) * gain
    return gain.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def absorb(conv: nn.Module, norm: _BatchNorm) -> None:
    """Give a convolution, whose rows have their gains, its new bias, and disable the layer.

    The layer becomes an identity.
    """
    bias = nn.Parameter(gains(conv, norm)[1], requires_grad=False)
    conv.register_parameter("bias", bias)
    # In place, because several modules may hold the layer.
    norm.__class__ = nn.Identity  # type: ignore[assignment]
    norm._parameters.clear()
    norm._buffers.clear()


def absorb_dense(conv: nn.Module, norm: _BatchNorm) -> None:
    """Multiply the rows of a dense convolution by their gains, and absorb the layer."""
    weight = cast(Convolution, conv).weight.detach()
    rows = gains(conv, norm)[0].reshape(-1, *[1] * (weight.ndim - 1))
    conv.register_parameter("weight", nn.Parameter(weight * rows, requires_grad=False))
    absorb(conv, norm)


def _watched(
    model: nn.Module, norms: list[_BatchNorm], call: Callable[[], Any]
) -> tuple[Pairs, Counter[nn.Module], Any]:
    """Return the pairs, the number of calls of each layer, and the outputs of the model."""
    pairs: Pairs = {}
    calls: Counter[nn.Module] = Counter()

    def made(module: nn.Module, arguments: Any, output: Tensor) -> None:
        calls[module] += 1
        output._made_by = module  # type: ignore[attr-defined]

    def gets(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls[module] += 1
        maker = getattr(arguments[0], "_made_by", None) if len(arguments) == 1 else None
        if maker is not None and _is_plain(module) and arguments[0].dim() == _dims(maker):
            pairs[maker] = cast(_BatchNorm, module)

    makers = [m for m in model.modules() if _can_absorb(m)]
    hooks = [maker.register_forward_hook(made) for maker in makers]
    hooks += [norm.register_forward_pre_hook(gets) for norm in norms]
    return pairs, calls, _called(call, hooks)


def _moved(pairs: Pairs, call: Callable[[], Any]) -> Any:
    """Return the outputs of the model when hooks of the convolutions compute the normalisation."""
    hooks = []
    for conv, norm in pairs.items():
        forward = norm.forward
        hooks.append(conv.register_forward_hook(lambda _, __, y, do=forward: do(y)))
        hooks.append(norm.register_forward_hook(lambda _, arguments, __: arguments[0]))
    return _called(call, hooks)


def _called(call: Callable[[], Any], hooks: list[Any]) -> Any:
    with removing(hooks), torch.no_grad():
        return call()


def _same(a: Any, b: Any) -> bool:
    first, second = tree_leaves(a), tree_leaves(b)
    return len(first) == len(second) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(first, second, strict=True)
    )


def _can_absorb(module: nn.Module) -> bool:
    """Return whether a module is a convolution of torch's own kind without hooks on its output."""
    kind = module.dense_class if isinstance(module, FactoredOwner) else type(module)
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d))
        and getattr(kind, "forward", None) in FORWARDS
        and not _is_hooked(module)
    )


def _is_plain(module: nn.Module) -> bool:
    """Return whether a normalisation layer is one of torch's own that uses running statistics."""
    return (
        type(module) in _FOLLOWS
        and not module.training
        and cast(_BatchNorm, module).running_mean is not None
        and len(module._forward_hooks) == 0
        and len(module._forward_pre_hooks) == 1  # set by `_watched`
    )


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _dims(module: nn.Module) -> int:
    """Return the number of axes of a batch of outputs."""
    return 2 + len(cast(Convolution, module).kernel_size)
