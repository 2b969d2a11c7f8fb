# SPDX-License-Identifier: Apache-2.0
"""Palettization of weights by coremltools, in an environment of its own.

Needs numpy, scikit-learn and coremltools only. Reads convolution weights, and a list of plans; a
plan gives for some of the weights, by name, the bits of an index, how many weights share an index
(one for each of so many output channels), and how many output channels share a table of centers (0:
all). For each plan, saves a Core ML package of a program with one convolution for each weight, at
16 bits, opens it again and writes as FOLDER/NUMBER.npz what coremltools decompresses it to. Prints,
as JSON, the bytes of each package's weights on disk (weight.bin; the program beside it, which has
the tables of less than ten centers, is not counted).

    python benchmarks/lib/peers/coremltools_peer.py WEIGHTS.npz PLANS.json FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.optimize import coreml as optimize

Arrays = dict[str, np.ndarray]


def program_of(weights: Arrays) -> ct.models.MLModel:
    """One convolution for each weight, as large as its window, named by its number."""

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 1, 1, 1), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x):  # type: ignore[no-untyped-def]
        return tuple(
            mb.conv(
                x=mb.tile(x=x, reps=(1, *weight.shape[1:])),
                weight=weight.astype(np.float16),
                name=f"conv{number}",
            )
            for number, weight in enumerate(weights.values())
        )

    target = ct.target.iOS18
    return ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True
    )


def palettize(
    model: ct.models.MLModel, names: dict[str, str], plan: dict[str, list[int]], package: Path
) -> int:
    """Save the program with the weights of a plan palettized; bytes of its weights."""
    config = optimize.OptimizationConfig()
    for name, (bits, length, channels) in plan.items():
        operation = optimize.OpPalettizerConfig(
            mode="kmeans",
            nbits=bits,
            cluster_dim=length,
            granularity="per_grouped_channel" if channels else "per_tensor",
            group_size=channels,
            weight_threshold=0,
        )
        config.set_op_name(names[name], operation)
    optimize.palettize_weights(model, config).save(str(package))
    return next(package.rglob("weight.bin")).stat().st_size


def decompressed(package: Path) -> Arrays:
    """The weights of a package, by the name of their convolution."""
    model = ct.models.MLModel(str(package), skip_model_load=True)
    found = optimize.get_weights_metadata(optimize.decompress_weights(model), weight_threshold=0)
    return {
        operation.name: weight.val.astype(np.float32)
        for weight in found.values()
        for operation in weight.child_ops
        if weight.val.ndim == 4  # strides and the like are constants too
    }


def check(weight: np.ndarray, setting: list[int]) -> None:
    """That a weight was palettized: coremltools only warns where it cannot."""
    bits, length, channels = setting
    tables = len(weight) // channels if channels else 1
    assert len(np.unique(weight)) <= 2**bits * length * tables, "a weight was not palettized"


def main() -> None:
    path, plans, folder = sys.argv[1:]
    sizes = []
    with contextlib.redirect_stdout(sys.stderr):
        weights = dict(np.load(path))
        model = program_of(weights)
        names = {name: f"conv{number}" for number, name in enumerate(weights)}
        for number, plan in enumerate(json.loads(Path(plans).read_text())):
            with tempfile.TemporaryDirectory() as temporary:
                package = Path(temporary) / "weights.mlpackage"
                sizes.append(palettize(model, names, plan, package))
                back = decompressed(package)
            for name, setting in plan.items():
                check(back[names[name]], setting)
            np.savez(Path(folder) / f"{number}.npz", **{n: back[names[n]] for n in plan})
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
