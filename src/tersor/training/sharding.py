"""A model that several processes train, each holding a part of its parameters (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tersor.errors import InputError
from tersor.nn import FactoredWeight
from tersor.training.groups import factored_weights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.tensor import DTensor

Groups = list[dict[str, Any]]
"""Of parameters, as optimizers take them."""

States = dict[str, Any]
"""What `Optimizer.state_dict` gives."""


PART = "_part"
"""A parameter of this name's end holds what a process has of a factor."""


class ShardedWeight(FactoredWeight):
    """A weight of which each process holds a part of the factors, and all of the integers.

    The latent is a parameter of one axis: FSDP cuts the first one, and a latent has few rows, often
    one. Outside of a forward the factors are gathered, with gradients, when they are asked for.
    """

    CODED = torch.int16

    @staticmethod
    def of(weight: FactoredWeight) -> None:
        """Let a weight become one that can be sharded; its parameters are called by other names."""
        factors = dict(weight._parameters)
        weight.__class__ = ShardedWeight
        weight._parameters.clear()
        for name, factor in factors.items():
            assert factor is not None
            values = factor.detach().reshape(-1) if name == "latent" else factor.detach()
            trains = factor.requires_grad and factor.numel() > 0  # FSDP sends no empty gradients
            weight.register_parameter(name + PART, nn.Parameter(values, trains))
        weight.project_to(weight.coded)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        """The whole codebook."""
        return whole(self._part("codebook"))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The whole scale."""
        return whole(self._part("scale"))

    @property
    def latent(self) -> Tensor:  # type: ignore[override]
        """The whole latent."""
        return whole(self.own_latent).view(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the whole latent."""
        return self._part("codebook").shape[1], self.tiling.count

    @property
    def own_latent(self) -> nn.Parameter:
        """The part of this process."""
        return self._part("latent")

    def _part(self, name: str) -> nn.Parameter:
        return cast(nn.Parameter, self._parameters[name + PART])

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        if is_sharded(self.own_latent):
            raise InputError(
                f"a weight of shape {self.shape} is used outside of the forward of the module that "
                "FSDP wraps it in; wrap the layer around that module instead (auto_wrap_policy)"
            )
        return super().forward()

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Let the latent go a share of the way to the integers that are computed with."""
        if self.coded is not None:
            latent = self.own_latent
            latent.lerp_(part_of(self.coded.to(latent.dtype), latent), share)


def is_sharded(values: Tensor) -> bool:
    """Whether other processes hold other parts of the values."""
    return hasattr(values, "full_tensor")


def whole(values: Tensor) -> Tensor:
    """All of the values; to be asked for by all processes."""
    return cast("DTensor", values).full_tensor() if is_sharded(values) else values


def total(tensors: Sequence[Tensor]) -> float:
    """Sum of all values; to be asked for by all processes if they are sharded."""
    parts = [cast("DTensor", t).to_local() if is_sharded(t) else t for t in tensors]
    number = torch.stack([part.sum() for part in parts]).sum()
    if is_sharded(tensors[0]):
        torch.distributed.all_reduce(number)
    return float(number)


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Of whole values, which each process has, the part that this one holds of another tensor."""
    values = values.reshape(like.shape)
    if not is_sharded(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    sharded = cast(DTensor, like)
    everywhere = values.to(sharded.to_local().device)
    return DTensor.from_local(
        everywhere, sharded.device_mesh, [Replicate()], run_check=False
    ).redistribute(placements=sharded.placements)


class Whole:
    """A model that each process trains all of.

    Parameters
    ----------
    model
        Model with factors, on the device of the accelerator.

    Attributes
    ----------
    trained
        What is trained: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = self.trained = model

    def prepare(
        self, groups: Groups, accelerator: Accelerator
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What is called in training, and an optimizer of these groups of parameters."""
        model, optimizer = accelerator.prepare(self.model, torch.optim.AdamW(groups))
        return model, optimizer

    def gather(self) -> nn.Module:
        """The model, as far as it is trained."""
        return self.model

    def spread(self) -> None:
        """Let what is trained be what the model is."""

    def states(self, optimizer: torch.optim.Optimizer, keep: bool) -> States:
        """States of the optimizer, in processes that keep them."""
        return optimizer.state_dict()

    def load_states(self, optimizer: torch.optim.Optimizer, states: States) -> None:
        """Let the optimizer go on from these states."""
        optimizer.load_state_dict(states)


class Sharded(Whole):
    """A model of which a copy is trained that is sharded.

    Parameters
    ----------
    model
        Model with factors, the same in each process. It stays whole, and where it is.
    accelerator
        Its plugin says which modules are gathered together.

    Attributes
    ----------
    trained
        The copy. Parameters are sharded, and what an optimizer keeps of them; buffers are whole.
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
        """The copy, and an optimizer of its parameters in the place of the model's."""
        parts = dict(self._parameters())
        own = [group | {"params": [parts[p] for p in group["params"]]} for group in groups]
        return self.trained, cast(Any, accelerator.prepare_optimizer(torch.optim.AdamW(own)))

    @torch.no_grad()
    def gather(self) -> nn.Module:
        """The model, which becomes what the copy is, one parameter at a time.

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
        """Let the copy be what the model is."""
        for values, part in self._parameters():
            part.copy_(part_of(values.to(part.dtype), part))
        for weight, sharded in self._weights():
            sharded.project_to(weight.coded)
        for buffer, kept in self._buffers():
            kept.copy_(buffer)

    def states(self, optimizer: torch.optim.Optimizer, keep: bool) -> States:
        """States of an optimizer as they would be without shards, in processes that keep them."""
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
        """Let an optimizer go on from states without shards."""
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
    """Refuse a module that shares a parameter with another one that is sharded already."""
    from torch.distributed.fsdp import FSDPModule

    inside = [part for part in module.modules() if isinstance(part, FSDPModule)]
    own = {p for part in inside for p in cast(nn.Module, part).parameters()}
    if any(is_sharded(p) and p not in own for p in module.parameters()):
        raise InputError(
            f"a {type(module).__name__} shares a weight with another module that FSDP wraps; give "
            "an auto_wrap_policy that wraps what holds both of them, or none"
        )


def _shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model in place, as the plugin says, but for its precision: integers stay exact."""
    from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_auto_wrap_policy
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        fsdp2_apply_ac(accelerator, model)
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in reversed(list(model.modules())):
        if wraps is not None and module is not model and wraps(module):
            _check_apart(module)
            fully_shard(module, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    output = None if accelerator.mixed_precision == "no" else torch.float32
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(output_dtype=output))
