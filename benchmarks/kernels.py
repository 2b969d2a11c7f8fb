"""How fast is a layer computed from its factors? Against torch in fp32, and low-bit kernels.

Square layers with random factors: latents spread so that nearly all fit in 4 bits, or in 2 bits
with few escapes ("integers"), and binary ones, 16 for each tile of 8 or 16 inputs, 2 or 1 bits
per weight ("look-up"). Each run times torch fp32, ours and the peers
in turn, every time with another of so many copies of the weights that none is in the cache; ratios
are medians of the runs' ratios.
Every product is checked against the dense one first;
``error`` is the Frobenius norm of the difference over that of the output.

Peers, where their packages are there: torch bf16 and dynamic int8, onnxruntime MatMulNBits (4 bits,
blocks of 32), torchao (int8 weights), GGML (4 and 2 bits, ternary, 1 bit; `ggml_peer.py`) and AQLM
(two codebooks of 8 bits for 8 inputs; one of 16 bits has no kernel for CPUs). None is needed; what
is not there is left out, with the reason. In the environment of the benchmarks,

    pip install onnx onnxruntime torchao "aqlm[cpu]" threadpoolctl ggml-python

installs them all. GGML is compiled for the processor on the way (C++ compiler, some minutes); AQLM
compiles its kernel by numba for every shape on first use, which is not timed.

    python benchmarks/kernels.py [--sizes 4096 384] [--batches 1 4 16 128] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import convolutions
import record
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import seconds

from tersor.factorization.weights import BINARY
from tersor.factors import Factors
from tersor.nn.frozen import LookupWeight, PackedWeight

CACHE = 64_000_000
"""Bytes of weights to rotate among: more than the caches of common processors."""

ERRORS = 8
"""Inputs whose errors count, as a norm over all; single ones of a small layer differ by a third."""

SPREADS = {4: 2.0, 2: 0.37}
"""Standard deviation of the latent before rounding, by bits of a code."""

LAYERS: list[tuple[type[PackedWeight], int]] = [
    *((PackedWeight, bits) for bits in SPREADS),
    *((LookupWeight, bits) for bits in (2, 1)),
]
"""Forms of layers, and bits per weight."""

GGML = ["Q4_0", "Q2_K", "TQ2_0", "TQ1_0", "Q1_0"]
"""Types of GGML: 4.5, 2.6, 2.1, 1.7 and 1.1 bits per weight."""

Product = Callable[[Tensor], Tensor]


def factors_of(form: type[PackedWeight], size: int, bits: int) -> Factors:
    return binary_of(size, bits) if form is LookupWeight else integers_of(size, bits)


def binary_of(size: int, bits: int) -> Factors:
    tile = BINARY // bits
    latent = (torch.randint(0, 2, (BINARY, size * -(-size // tile))) * 2 - 1).to(torch.int16)
    codebook = torch.randint(-100, 101, (tile, BINARY)).to(torch.int16)
    return Factors(codebook, latent, 1e-3, (size, size))


def integers_of(size: int, bits: int) -> Factors:
    tile = 32
    latent = torch.randn(tile, size * -(-size // tile)) * SPREADS[bits]
    codebook = torch.randint(-40, 41, (tile, tile)).to(torch.int16)
    return Factors(codebook, latent.round().to(torch.int16), 1e-3, (size, size))


def copies(nbytes: float) -> int:
    return max(2, min(200, round(CACHE / nbytes)))


def ours(form: type[PackedWeight], factors: Factors) -> list[Product]:
    first = form(factors, torch.float32)
    products = [first, *(copy.deepcopy(first) for _ in range(copies(first.nbytes) - 1))]
    return [lambda x, held=held: held.linear(x, None) for held in products]


def torch_fp32(factors: Factors, weight: Tensor) -> list[Product]:
    weights = [weight.clone() for _ in range(copies(weight.nbytes))]
    return [lambda x, w=w: F.linear(x, w) for w in weights]


def torch_bf16(factors: Factors, weight: Tensor) -> list[Product]:
    weights = [weight.bfloat16() for _ in range(copies(weight.nbytes / 2))]
    return [lambda x, w=w: F.linear(x.bfloat16(), w).float() for w in weights]


def _layers(weight: Tensor, number: int) -> list[nn.Linear]:
    layers = [nn.Linear(*weight.shape, bias=False) for _ in range(number)]
    for layer in layers:
        layer.weight.data = weight
    return layers


def torch_int8(factors: Factors, weight: Tensor) -> list[Product]:
    from torch.ao.quantization import quantize_dynamic

    return [quantize_dynamic(nn.Sequential(m)) for m in _layers(weight, copies(weight.nbytes / 4))]


def torchao_int8(factors: Factors, weight: Tensor) -> list[Product]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    models = [nn.Sequential(m) for m in _layers(weight, copies(weight.nbytes / 4))]
    for model in models:
        quantize_(model, Int8WeightOnlyConfig())
    return models


def onnx_int4(factors: Factors, weight: Tensor) -> list[Product]:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    rows, inputs, block = *weight.shape, 32
    blocks = weight.reshape(rows, inputs // block, block)
    scales = blocks.abs().amax(2) / 7
    q = ((blocks / scales[..., None]).round() + 8).clamp(0, 15).to(torch.uint8)
    packed = (q[..., 0::2] | q[..., 1::2] << 4).numpy()
    parts = [
        helper.make_tensor("w", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True),
        helper.make_tensor(
            "s", TensorProto.FLOAT, [scales.numel()], scales.numpy().tobytes(), raw=True
        ),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=inputs, N=rows, bits=4, block_size=block, accuracy_level=4,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", inputs]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], parts)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    assert np is not None and onnx is not None
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(copies(weight.nbytes / 7))
    ]
    return [lambda x, s=s: torch.from_numpy(s.run(None, {"x": x.numpy()})[0]) for s in sessions]


def checked(products: list[Product], own: Tensor) -> list[Product]:
    """These products, after a look at one: is it that with a peer's own, quantized weight?"""
    x = torch.randn(4, own.shape[1])
    expected = F.linear(x, own)
    error = float((products[0](x) - expected).norm() / expected.norm())
    assert error < 0.02, f"the product is {error:.2f} off"  # some make the input 8 bits
    return products


def ggml_kind(name: str, factors: Factors, weight: Tensor) -> list[Product]:
    import ggml
    import ggml_peer

    kind = getattr(ggml, f"GGML_TYPE_{name}")
    data = ggml_peer.quantize(weight, kind)
    number = copies(len(data))
    held = ggml_peer.Weights(data, kind, weight.shape, number)
    products = [lambda x, n=n: held.linear(n, x) for n in range(number)]
    return checked(products, ggml_peer.dequantize(data, kind, weight.shape))


def aqlm_2x8(factors: Factors, weight: Tensor) -> list[Product]:
    if torch.get_num_threads() > 1:
        raise RuntimeError("on several threads its products are 3 to 13 % off")
    import numba
    import threadpoolctl
    from aqlm.inference import QuantizedLinear
    from aqlm.utils import _dequantize_weight, unpack_int_data

    numba.set_num_threads(1)
    # its small dense product is scipy's, whose idle threads would spin on while others are timed
    threadpoolctl.threadpool_limits(1, "blas")
    rows, inputs = weight.shape
    layers = [
        QuantizedLinear(inputs, rows, 8, 1, num_codebooks=2, nbits_per_codebook=8, bias=False)
        for _ in range(copies(weight.nbytes / 16))
    ]
    for layer in layers:
        layer.codes.data = torch.randint(-128, 128, layer.codes.shape, dtype=torch.int8)
        layer.codebooks.data = torch.randn(layer.codebooks.shape)
        layer.scales.data = torch.ones(layer.scales.shape)
    codes = unpack_int_data(layers[0].codes.data, 8)
    return checked(layers, _dequantize_weight(codes, layers[0].codebooks, layers[0].scales))


PEERS: dict[str, Callable[[Factors, Tensor], list[Product]]] = {
    "torch bf16": torch_bf16,
    "torch dynamic int8": torch_int8,
    "torchao int8": torchao_int8,
    "onnxruntime int4": onnx_int4,
    **{f"ggml {name}": partial(ggml_kind, name) for name in GGML},
    "aqlm 2x8": aqlm_2x8,
}


def peers(factors: Factors, weight: Tensor) -> Iterator[tuple[str, list[Product]]]:
    threads = torch.get_num_threads()
    for name, make in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                products = make(factors, weight)
                products[0](torch.zeros(1, weight.shape[1]))
            yield name, products
        except Exception as error:
            print(f"  {name} is left out: {type(error).__name__}: {str(error)[:80]}")
        finally:  # numba's start sets OpenMP's threads, and so torch's
            torch.set_num_threads(threads)


def runs_for(size: int, batch: int) -> int:
    most = 100 if torch.get_num_threads() == 1 else 30  # which are of several products each
    return max(9, min(most, round(2e9 / (size * size * (batch + 4)))))


def compare(kinds: dict[str, list[Product]], x: Tensor, runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for products in kinds.values():  # what a first call prepares is not timed
        products[0](x)
        for product in products:
            product(x[:1])
    each = {name: in_turn(products, x) for name, products in kinds.items()}
    for _ in range(runs):
        for name, run in each.items():
            times[name].append(seconds(run, torch.get_num_threads()))
    return times


def in_turn(products: list[Product], x: Tensor) -> Callable[[], Tensor]:
    """Another of the products in each call."""
    left = itertools.cycle(products)
    return lambda: next(left)(x)


def ratio(times: dict[str, list[float]], name: str) -> float:
    pairs = zip(times[name], times["tersor"], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)


def row(
    kinds: dict[str, list[Product]], weight: Tensor, batch: int, form: type[PackedWeight], bits: int
) -> dict[str, object]:
    size = weight.shape[0]
    inputs = torch.randn(ERRORS, batch, size)
    x, expected = inputs[0], F.linear(inputs, weight)
    got = torch.stack([kinds["tersor"][0](each) for each in inputs])
    error = float((got - expected).norm() / expected.norm())
    assert error < (0.01 if batch < form.way.MANY else 0.001), error
    times = compare(kinds, x, runs_for(size, batch))
    others = [name for name in kinds if name not in ("tersor", "torch fp32")]
    best = min(others, key=lambda name: ratio(times, name), default=None)
    found = {
        "op": "linear",
        "kernel": "look-up" if form is LookupWeight else "integers",
        "shape": [size, size],
        "batch": batch,
        "bits": bits,
        "threads": torch.get_num_threads(),
        "seconds": statistics.median(times["tersor"]),
        "ratio_fp32": ratio(times, "torch fp32"),
        "best_peer": best,
        "ratio_best_peer": ratio(times, best) if best else None,
        "ratios_peers": {name: ratio(times, name) for name in others},
        "error": error,
    }
    print(
        f"{size} batch {batch}, {found['kernel']} of {bits} bits, {found['threads']} threads: "
        f"{found['seconds'] * 1e3:.3f} ms, {found['ratio_fp32']:.2f} x fp32, "
        + (f"{found['ratio_best_peer']:.2f} x {best}, " if best else "")
        + f"error {error:.5f}",
        flush=True,
    )
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 384])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=30, help="of convolutions")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-file", action="store_true")
    parser.add_argument("--name", default="kernels", help="of the file of results")
    options = parser.parse_args()
    torch.manual_seed(0)
    for rows in measured(options):
        if not options.no_file:
            record.merge(options.name, rows, case, seed=0)


def measured(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Rows, as they come."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for size in options.sizes:
            for form, bits in LAYERS:
                factors = factors_of(form, size, bits)
                weight = factors.recompose()
                kinds = {"torch fp32": torch_fp32(factors, weight), "tersor": ours(form, factors)}
                kinds |= {} if options.no_peers else dict(peers(factors, weight))
                yield [row(kinds, weight, b, form, bits) for b in options.batches]
        if options.runs:
            yield convolutions.rows(options.runs)


def case(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others."""
    kind = f"{row.get('factors', '')} {row['bits']:.1f} bits"  # random factors differ in bits
    return row["threads"], row["op"], row["kernel"], str(row["shape"]), kind, row["batch"]


if __name__ == "__main__":
    main()
