"""Batch normalisation that the convolution before it computes: by gains of its rows, and its bias.

Nothing is known of a model but what it does when it is called. So it is called twice: to see what
each normalisation gets, and once more with the normalisation done where the convolution is.
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
from tersor.nn.owner import FORWARDS, FactoredOwner

Pairs = dict[nn.Module, _BatchNorm]
"""Convolutions, with what normalises their outputs."""

_FOLLOWS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def find_pairs(model: nn.Module, call: Callable[[], Any]) -> Pairs:
    """Convolutions whose outputs are normalised, and used for nothing else.

    None, if a normalisation layer of the model is not called, or several times: there may be other
    ways through it.

    Parameters
    ----------
    call
        Calls the model with typical inputs and returns what it gives.
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
    """What the rows of a convolution's weight are to be multiplied by, and its bias then."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    bias = cast(Convolution, conv).bias
    shift = (-norm.running_mean if bias is None else bias - norm.running_mean) * gain
    return gain.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def absorb(conv: nn.Module, norm: _BatchNorm) -> None:
    """Let a convolution, whose rows have their gains, do the rest of what a layer after it did."""
    bias = nn.Parameter(gains(conv, norm)[1], requires_grad=False)
    conv.register_parameter("bias", bias)
    # In place, wherever it is held.
    norm.__class__ = nn.Identity  # type: ignore[assignment]
    norm._parameters.clear()
    norm._buffers.clear()


def absorb_dense(conv: nn.Module, norm: _BatchNorm) -> None:
    """The same of a convolution with a weight of its own, whose rows get their gains."""
    weight = cast(Convolution, conv).weight.detach()
    rows = gains(conv, norm)[0].reshape(-1, *[1] * (weight.ndim - 1))
    conv.register_parameter("weight", nn.Parameter(weight * rows, requires_grad=False))
    absorb(conv, norm)


def _watched(
    model: nn.Module, norms: list[_BatchNorm], call: Callable[[], Any]
) -> tuple[Pairs, Counter[nn.Module], Any]:
    """Who gets what whose output is, how often each is called, and what the model gives."""
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
    """What the model gives with the normalisation done by hooks of the convolutions."""
    hooks = []
    for conv, norm in pairs.items():
        forward = norm.forward
        hooks.append(conv.register_forward_hook(lambda _, __, y, do=forward: do(y)))
        hooks.append(norm.register_forward_hook(lambda _, arguments, __: arguments[0]))
    return _called(call, hooks)


def _called(call: Callable[[], Any], hooks: list[Any]) -> Any:
    try:
        with torch.no_grad():
            return call()
    finally:
        for hook in hooks:
            hook.remove()


def _same(a: Any, b: Any) -> bool:
    first, second = tree_leaves(a), tree_leaves(b)
    return len(first) == len(second) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(first, second, strict=True)
    )


def _can_absorb(module: nn.Module) -> bool:
    """Whether a module is a convolution as torch's own, whose output nobody looks at."""
    kind = module.dense_class if isinstance(module, FactoredOwner) else type(module)
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d))
        and getattr(kind, "forward", None) in FORWARDS
        and not _is_hooked(module)
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a normalisation layer is one of torch's own that uses running statistics."""
    return (
        type(module) in _FOLLOWS
        and not module.training
        and cast(_BatchNorm, module).running_mean is not None
        and len(module._forward_hooks) == 0
        and len(module._forward_pre_hooks) == 1  # ours
    )


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _dims(module: nn.Module) -> int:
    """Axes of a batch of outputs."""
    return 2 + len(cast(Convolution, module).kernel_size)
