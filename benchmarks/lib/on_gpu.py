# SPDX-License-Identifier: Apache-2.0
"""A network on a GPU whose weights a model on the CPU holds, or makes of its factors.

Convolutions are what a GPU is for; factors are small, and the search for their integers is work for
CPUs. So a step sends the weights one way and their gradients the other, once each, and all between
is one captured graph. Many runs share a GPU like that: each keeps it busy for a few milliseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.lib.views import Views


def move(model: nn.Module, views: Views) -> None:
    """Let a model's calls, with the inputs that ``views`` gives, run on the GPU."""
    template = views.network.dense().to(views.pixels.device)
    parameters = dict(template.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def network(images: Tensor, flat: Tensor) -> Tensor:
        pieces = zip(parameters.items(), flat.split(sizes), strict=True)
        return functional_call(template, {n: t.view(p.shape) for (n, p), t in pieces}, (images,))

    example = views.images(views.drawn(0)[: views.batch_size])
    start = torch.cat([p.detach().flatten() for p in parameters.values()]).requires_grad_()
    graph = torch.cuda.make_graphed_callables(network, (example, start))

    def forward(inputs: Tensor) -> Tensor:
        # The template is named here to stay alive: the graph reads its buffers.
        weights = [of(model, name).flatten() for name, _ in template.named_parameters()]
        return graph(views.images(inputs), torch.cat(weights).to(example.device)).cpu()

    model.forward = forward  # type: ignore[method-assign]


def of(model: nn.Module, name: str) -> Tensor:
    """A weight as the model computes with it, by its name in the dense one."""
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)
