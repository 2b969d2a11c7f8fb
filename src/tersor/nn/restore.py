# SPDX-License-Identifier: Apache-2.0
"""Put dense weights back in the place of factors: the reverse of `insert_factors`."""

from __future__ import annotations

import torch
from torch import nn

from tersor.nn.held import HeldWeight
from tersor.nn.owner import ORDER, SUFFIX, FactoredOwner


@torch.no_grad()
def restore_dense(model: nn.Module) -> None:
    """Replace each held weight of a model by its dense weight, in place.

    Modules become instances of their dense classes again, with their parameters in the dense order.
    Tied weights stay tied.

    Parameters
    ----------
    model
        Model with factors, which are freed.
    """
    dense: dict[HeldWeight, nn.Parameter] = {}
    for module in list(model.modules()):
        if isinstance(module, FactoredOwner):
            _restore(module, dense)


def _restore(module: FactoredOwner, dense: dict[HeldWeight, nn.Parameter]) -> None:
    for name in module.factored_names:
        held = module._modules.pop(name + SUFFIX)
        assert isinstance(held, HeldWeight)
        if held not in dense:
            dense[held] = nn.Parameter(held().detach(), requires_grad=False)
        module._parameters[name] = dense[held]
    order = module.__dict__.pop(ORDER)
    module._parameters = {name: module._parameters[name] for name in order}
    module.__class__ = module.dense_class
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
