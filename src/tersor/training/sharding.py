# SPDX-License-Identifier: Apache-2.0
"""Train a model in several processes, of which each holds the whole or a part (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.nn import FactoredWeight
from tersor.nn.sharded import ShardedWeight, is_sharded, part_of, whole
from tersor.training.groups import factored_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

Groups = list[dict[str, Any]]
"""Groups of parameters, as optimizers take them."""

States = dict[str, Any]
"""Result of `Optimizer.state_dict`."""


class Whole:
    """Model of which each process trains all parameters.

    Parameters
    ----------
    model
        Model with factors, on the device of the accelerator.

    Attributes
    ----------
    trained
        Module that is trained: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = self.trained = model

    def prepare(
        self, groups: Groups, accelerator: Accelerator
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the module to call in training, and an optimizer of these groups of parameters."""
        model, optimizer = accelerator.prepare(self.model, torch.optim.AdamW(groups, fused=True))
        return model, optimizer

    def gather(self) -> nn.Module:
        """Return the model with the values that training has reached."""
        return self.model

    def spread(self) -> None:
        """Copy the values of the model to the trained module."""

    def states(self, optimizer: torch.optim.Optimizer, keep: bool) -> States:
        """Return the state of the optimizer, complete in processes with ``keep``."""
        return optimizer.state_dict()

    def load_states(self, optimizer: torch.optim.Optimizer, states: States) -> None:
        """Load states that `states` returned into the optimizer."""
        optimizer.load_state_dict(states)


class Sharded(Whole):
    """Model of which a sharded copy is trained.

    Parameters
    ----------
    model
        Model with factors, the same one in each process. It stays whole, and where it is.
    accelerator
        Accelerator whose plugin says which modules are gathered together.

    Attributes
    ----------
    trained
        The copy. Its parameters and their states in an optimizer are sharded; its buffers are
        whole.

    Raises
    ------
    InputError
        If the plugin offloads parameters to the CPU, the trained parameters have several types, or
        modules that FSDP wraps apart share a weight.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        _check(model, accelerator.state.fsdp_plugin)
        self.model, self.trained = model, copy.deepcopy(model)
        for weight in factored_weights(self.trained).values():
            ShardedWeight.of(weight)
        _shard(self.trained, accelerator)

    def prepare(
        self, groups: Groups, accelerator: Accelerator
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the copy, and an optimizer of its parameters in the place of the model's."""
        parts = dict(self._parameters())
        own = [group | {"params": [parts[p] for p in group["params"]]} for group in groups]
        optimizer = torch.optim.AdamW(own, fused=True)
        return self.trained, cast(Any, accelerator.prepare_optimizer(optimizer))

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """Copy the values of the copy to the model, one parameter at a time; return the model.

        Running statistics are those of the first process, as with DDP.
        """
        for values, part in self._parameters():
            values.copy_(whole(part).view(values.shape))
        for weight, sharded in self._weights():
            weight.project_to(sharded.coded)
        for buffer, kept in self._buffers():
            if kept.is_floating_point():
                torch.distributed.broadcast(kept, 0)
            buffer.copy_(kept)
        return self.model

    @torch.no_grad()
    def spread(self) -> None:
        """Copy the values of the model to the sharded copy."""
        for values, part in self._parameters():
            part.copy_(part_of(values.to(part.dtype), part))
        for weight, sharded in self._weights():
            sharded.project_to(weight.coded)
        for buffer, kept in self._buffers():
            kept.copy_(buffer)

    def states(self, optimizer: torch.optim.Optimizer, keep: bool) -> States:
        """Return the states of an optimizer without shards, complete in processes with ``keep``."""
        states = optimizer.state_dict()
        gathered: dict[int, States] = {}
        shapes = {part: values.shape for values, part in self._parameters()}
        for index, parameter in enumerate(_trained(optimizer)):
            for name, value in states["state"].get(index, {}).items():
                full = whole(value).view(shapes[parameter] if value.ndim else ())
                if keep:
                    gathered.setdefault(index, {})[name] = full.cpu()
        return states | {"state": gathered}

    def load_states(self, optimizer: torch.optim.Optimizer, states: States) -> None:
        """Load states without shards into an optimizer."""
        parts = _trained(optimizer)
        spread = {
            index: {
                name: part_of(value, parts[index]) if value.ndim else value
                for name, value in state.items()
            }
            for index, state in states["state"].items()
        }
        optimizer.load_state_dict(states | {"state": spread})

    def _parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.model.parameters(), self.trained.parameters(), strict=True)

    def _buffers(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.model.buffers(), self.trained.buffers(), strict=True)

    def _weights(self) -> Iterator[tuple[FactoredWeight, FactoredWeight]]:
        weights = (factored_weights(model).values() for model in (self.model, self.trained))
        return zip(*weights, strict=True)


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check(model: nn.Module, plugin: Any) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy

    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError("sharded factors stay on their device; turn FSDP's cpu_offload off")
    kinds = sorted({str(p.dtype) for p in model.parameters() if p.requires_grad})
    if len(kinds) > 1:
        raise InputError(
            f"FSDP shards parameters of one type, those of the model are of {' and '.join(kinds)}; "
            "call model.float(), and give mixed_precision to compute in 16 bits"
        )


def _check_apart(module: nn.Module) -> None:
    """Refuse a module that shares a parameter with another module that is sharded already."""
    from torch.distributed.fsdp import FSDPModule

    inside = [part for part in module.modules() if isinstance(part, FSDPModule)]
    own = {p for part in inside for p in cast(nn.Module, part).parameters()}
    if any(is_sharded(p) and p not in own for p in module.parameters()):
        raise InputError(
            f"a {type(module).__name__} shares a weight with another module that FSDP wraps; give "
            "an auto_wrap_policy that wraps what holds both of them, or none"
        )


def _shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model in place as the plugin says.

    The plugin's precision is not used, so that integers stay exact.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        from accelerate.utils.fsdp_utils import fsdp2_apply_ac

        fsdp2_apply_ac(accelerator, model)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in reversed(list(model.modules())[1:]):
        if _is_unit(module, plugin.auto_wrap_policy):
            _check_apart(module)
            fully_shard(module, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    output = None if accelerator.mixed_precision == "no" else torch.float32
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(output_dtype=output))


def _is_unit(module: nn.Module, policy: Callable[..., bool] | None) -> bool:
    """Return whether the parameters of a module are gathered together."""
    numel = sum(p.numel() for p in module.parameters())
    return policy is not None and policy(module=module, recurse=False, nonwrapped_numel=numel)
