# SPDX-License-Identifier: Apache-2.0
"""How fast are whole models that come from compressed files? Against the dense ones.

ResNet-20 (32 x 32), MobileNetV1-0.75 (224 x 224) and MiniLM (32 tokens), one input at a time: from
the file, after `tersor.optimize`, against the dense model in fp32: torch eager, torch.compile,
onnxruntime in fp32 and with dynamic int8 weights. MiniLM once more with a limit of memory, 1/5 of
what is dense. Images are channels last for all, torch's faster
order. Runs are interleaved; ratios are medians of the runs' ratios. ``memory`` is what weights
take that come as factors, ``dense_memory`` what they would dense; ``quality`` is that of the
optimized model, ``dense_quality`` that of the same file with all weights multiplied out: top-1 in
percent, or Spearman's correlation times 100, on the first ``--samples``.

    python -m benchmarks.speed.whole_models [--networks resnet20 mobilenet minilm] [--threads 1 2]

onnxruntime and its quantizer are peers with packages of their own (`lib.environments`): each is
timed by a process of its own, in turns with ours. To export to it, ``onnx`` must be installed here.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tersor
from benchmarks.lib import cifar10, environments, minilm, networks, parts, record
from benchmarks.lib.places import CACHE, ROOT
from benchmarks.lib.turns import seconds

Run = Callable[[], object]

CALIBRATION = networks.IMAGENET_CALIBRATION

SERVER = """
import sys
import numpy, onnxruntime
sys.path.append(sys.argv[4])
from benchmarks.lib.turns import seconds
threads = int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = dict(numpy.load(sys.argv[3]))
session.run(None, inputs)
for _ in sys.stdin:
    print(seconds(lambda: session.run(None, inputs), threads), flush=True)
"""

QUANTIZE = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[2], weight_type=QuantType.QUInt8)
"""


@dataclass
class Network:
    """What is measured: a model, what it is called with, and what it is for."""

    make: Callable[[], nn.Module]
    ratio: float
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    quality: Callable[[nn.Module, int], float]
    matched: Callable[[], torch.Tensor] | None = None
    """Images that normalisation is matched on."""
    memory: float | None = None
    """Limit of memory, as a share of what the weights take dense."""


class Encoder(nn.Module):
    """MiniLM from tokens to hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.model = minilm.encoder()

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self.model(input_ids=tokens, attention_mask=mask)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def image_quality(images: Callable[[], Sequence[torch.Tensor]], batch: int) -> Any:
    def quality(model: nn.Module, samples: int) -> float:
        pixels, labels = images()
        return cifar10.accuracy(model, pixels[:samples], labels[:samples], batch)

    return quality


def encoder_quality(model: nn.Module, samples: int) -> float:
    return minilm.spearman(model.model)


def tokens() -> tuple[torch.Tensor, ...]:
    return torch.randint(1000, 20000, (1, 32)), torch.ones(1, 32, dtype=torch.int64)


NETWORKS = {
    "resnet20": Network(
        cifar10.pretrained_resnet20,
        16,
        lambda: (cifar10.images("test")[0][:1],),
        image_quality(lambda: cifar10.images("test"), 100),
        lambda: cifar10.images("train")[0][:1024],
    ),
    "mobilenet": Network(
        lambda: networks.pretrained(networks.MobileNetV1),
        8,
        lambda: (networks.imagenet()[0][:1],),
        image_quality(lambda: [part[CALIBRATION:] for part in networks.imagenet()], 50),
        lambda: networks.imagenet()[0][:CALIBRATION],
    ),
    "minilm": Network(Encoder, 8, tokens, encoder_quality),
    "minilm in 1/5": Network(Encoder, 8, tokens, encoder_quality, memory=1 / 5),
}


class Session:
    """A model in onnxruntime, in a process that waits for a line and answers with seconds."""

    def __init__(self, model: Path, inputs: Path, threads: int) -> None:
        command = [
            environments.python_with("onnxruntime", "onnx"),
            "-c",
            SERVER,
            model,
            threads,
            inputs,
            ROOT,
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([str(part) for part in command], text=True, **pipes)

    def seconds(self) -> float:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def sessions(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path
) -> dict[str, Session]:
    """The dense model in onnxruntime, in fp32 and int8; none where that cannot be made."""
    import numpy as np

    names = [f"x{i}" for i in range(len(inputs))]
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8")}
    try:
        program = torch.onnx.export(model, inputs, dynamo=False, input_names=names, f=files["fp32"])
        del program
        quantize = [
            environments.python_with("onnxruntime", "onnx"),
            "-c",
            QUANTIZE,
            *files.values(),
        ]
        subprocess.run([str(part) for part in quantize], check=True, stderr=subprocess.DEVNULL)
        np.savez(
            folder / "inputs.npz", **{n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        )
        return {
            f"onnxruntime {name}": Session(file, folder / "inputs.npz", torch.get_num_threads())
            for name, file in files.items()
        }
    except Exception as error:
        print(f"  onnxruntime is left out: {type(error).__name__}: {str(error)[:80]}")
        return {}


def torch_runs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, Run]:
    runs: dict[str, Run] = {"torch eager": lambda: model(*inputs)}
    try:
        compiled = torch.compile(model)
        compiled(*inputs)
        runs["torch.compile"] = lambda: compiled(*inputs)
    except Exception as error:
        print(f"  torch.compile is left out: {type(error).__name__}: {str(error)[:80]}")
    return runs


def file_of(name: str, network: Network) -> Path:
    """The compressed model, made once."""
    path = CACHE / "whole_models" / f"{name.split()[0]}-{network.ratio:g}.tersor"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = network.make()
        tersor.compress(model, ratio=network.ratio)
        if network.matched:
            tersor.match_normalization(model, network.make(), network.matched().split(64))
        tersor.save(model, path)
    return path


def from_file(path: Path, network: Network) -> nn.Module:
    model = network.make()
    tersor.load(path, model, strict=False)
    return model.eval()


@torch.inference_mode()
def measure(name: str, network: Network, options: argparse.Namespace) -> dict[str, Any]:
    path, inputs = file_of(name, network), network.inputs()
    order = torch.channels_last if inputs[0].dim() == 4 else torch.contiguous_format
    inputs = tuple(x.contiguous(memory_format=order) for x in inputs)
    model, same, dense = from_file(path, network), from_file(path, network), network.make()
    everything = tersor.optimize(same, "dense").nbytes
    limit = None if network.memory is None else int(network.memory * everything)
    chosen = tersor.optimize(model, memory=limit, inputs=inputs)
    got, wanted = model(*inputs), same(*inputs)
    runs = torch_runs(dense, inputs)
    runs["tersor"] = lambda: model(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        peers = {} if options.no_peers else sessions(dense, inputs, Path(folder))
        times: dict[str, list[float]] = {other: [] for other in (*runs, *peers)}
        for turn in range(-2, options.runs):
            spent = {other: seconds(run, torch.get_num_threads()) for other, run in runs.items()}
            spent |= {other: session.seconds() for other, session in peers.items()}
            for other, took in spent.items():
                times[other] += [took] if turn >= 0 else []
        for session in peers.values():
            session.close()
    ratios = {
        other: statistics.median(a / b for a, b in zip(t, times["tersor"], strict=True))
        for other, t in times.items()
        if other != "tersor"
    }
    row = {
        "network": name,
        "asked": network.ratio,
        "memory_limit": network.memory,
        "bytes": path.stat().st_size,
        "threads": torch.get_num_threads(),
        "seconds": {other: statistics.median(t) for other, t in times.items()},
        "ratios": ratios,
        "memory": chosen.nbytes,
        "dense_memory": sum(choice.dense_bytes for choice in chosen.choices),
        "error": float((got - wanted).norm() / wanted.norm()),
        "modes": [f"{c.name}: {c.mode}" for c in chosen.choices],
        "quality": network.quality(model, options.samples),
        "dense_quality": network.quality(same, options.samples),
    }
    print(
        f"{name}, {row['threads']} threads: {row['seconds']['tersor'] * 1e3:.2f} ms; "
        + ", ".join(f"{ratio:.2f} x {other}" for other, ratio in ratios.items())
        + f"; memory {row['memory'] / row['dense_memory']:.2f} of dense, error {row['error']:.5f}, "
        f"quality {row['quality']:.2f} of {row['dense_quality']:.2f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-file", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.networks:
            row = measure(name, NETWORKS[name], options)
            if not options.no_file:
                record.merge("kernels_models", [row], case, measures=parts.INFERENCE, seed=0)


def case(row: dict[str, Any]) -> tuple[int, int]:
    """What tells a row from others."""
    return row["threads"], list(NETWORKS).index(row["network"])


if __name__ == "__main__":
    sys.exit(main())
