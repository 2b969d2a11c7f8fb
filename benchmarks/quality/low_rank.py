# SPDX-License-Identifier: Apache-2.0
"""What does a network lose whose operations are halved by layers of low rank, without training?

ResNet-20 on CIFAR-10 with 1,024 images for calibration, an eighth of them held out. All methods use
the same images, and match normalisation at the end:

- ``tersor``: `tersor.lowrank.decompose`, all forms;
- ``svd``: plain singular value decomposition of each layer, of whose energy the same share is
  kept in all layers, so much that the operations fit;
- ``tucker``: Tucker-2 with ranks by variational Bayes (Kim et al., 2016, arXiv 1511.06530), which
  has no budget; ``tersor`` is measured at its operations too.

    python -m benchmarks.quality.low_rank [--flops 0.7 0.5]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tersor
from benchmarks.lib import cifar10, parts, record
from benchmarks.quality.post_training import CASES, batches
from tersor.lowrank.candidates import sizes_of, splittable
from tersor.lowrank.forms import FORMS
from tersor.lowrank.layers import as_kernel, replace, replacement, shapes_of

NAME = "low_rank"


def operations(model: nn.Module, data: list[Any], plan: dict[str, tuple[str, Any]]) -> float:
    """Return the share of the operations that a plan leaves."""
    layers, _ = splittable(model)
    sizes = sizes_of(model, data[0])
    whole = {m: s.operations([m.weight.shape], "dense") for m, s in sizes.items()}  # type: ignore[union-attr]
    left = sum(whole.values())
    for name, (form, ranks) in plan.items():
        layer = layers[name]
        left += sizes[layer].operations(shapes_of(layer, form, ranks), form) - whole[layer]
    return left / sum(whole.values())


def planned(model: nn.Module, data: list[Any], plan: dict[str, tuple[str, Any]]) -> nn.Module:
    """Return the model with layers split by a plan, without knowledge of their inputs."""
    made, (layers, _) = copy.deepcopy(model), splittable(model)
    for name, (form, ranks) in plan.items():
        kernels = FORMS[form].split(as_kernel(layers[name].weight), None)(ranks)
        replace(made, name, replacement(layers[name], form, kernels, ranks))
    tersor.match_normalization(made, model, data)
    return made


def by_energy(model: nn.Module, share: float) -> dict[str, tuple[str, Any]]:
    """Return the smallest ranks that keep this share of the energy of each layer."""
    plan = {}
    for name, layer in splittable(model)[0].items():
        energies = torch.linalg.svdvals(as_kernel(layer.weight).flatten(1)).square().cumsum(0)
        rank = int((energies < share * energies[-1]).sum()) + 1
        shapes = shapes_of(layer, "outputs", (rank,))
        if sum(torch.Size(s).numel() for s in shapes) < layer.weight.numel():
            plan[name] = ("outputs", (rank,))
    return plan


def svd(model: nn.Module, data: list[Any], flops: float) -> nn.Module:
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        fits = operations(model, data, by_energy(model, middle)) <= flops
        low, high = (middle, high) if fits else (low, middle)
    return planned(model, data, by_energy(model, low))


def by_bayes(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Return Tucker-2 ranks of all convolutions with more than one position."""
    plan = {}
    for name, layer in splittable(model)[0].items():
        weight = as_kernel(layer.weight)
        if weight.dim() < 4 or weight[0, 0].numel() == 1:
            continue
        unfolded = weight.movedim(1, 0).flatten(1), weight.flatten(1)
        plan[name] = ("tucker", tuple(max(1, tersor.lowrank.vbmf(m).rank) for m in unfolded))
    return plan


def ours(model: nn.Module, data: list[Any], flops: float) -> nn.Module:
    made = copy.deepcopy(model)
    tersor.lowrank.decompose(made, flops=flops, data=data)
    return made


def measured(
    method: str, flops: float, make: Callable[[], nn.Module], model: nn.Module, held: list[Any]
) -> dict[str, Any]:
    start = time.process_time()
    made = make()
    spent = time.process_time() - start
    pixels, labels = cifar10.images("test")
    return {
        "method": method,
        "asked": flops,
        "accuracy": cifar10.accuracy(made, pixels, labels),
        "output_error": tersor.output_error(made, model, held),
        "parameters": sum(p.numel() for p in made.parameters()),
        "processor_seconds": spent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flops", nargs="+", type=float, default=[0.7, 0.5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = CASES["resnet20"]()
    model = case.load()
    data, held = tersor.held_out(batches(case))
    bayes = by_bayes(model)
    at = operations(model, data, bayes)
    asked = [*options.flops, at] if at < 1 else options.flops
    rows = [measured("dense", 1.0, lambda: model, model, held)]
    for flops in asked:
        rows.append(measured("tersor", flops, lambda f=flops: ours(model, data, f), model, held))
        rows.append(measured("svd", flops, lambda f=flops: svd(model, data, f), model, held))
    rows.append(measured("tucker", at, lambda: planned(model, data, bayes), model, held))
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    record.write(NAME, rows, measures=(*parts.CALIBRATED, "src/tersor/lowrank"), seed=0)


if __name__ == "__main__":
    main()
