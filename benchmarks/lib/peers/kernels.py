# SPDX-License-Identifier: Apache-2.0
"""Low-bit kernels of others, for `speed.kernels`. Those that are not there are left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lib.layers import Product, copies
from tersor.factors import Factors

GGML = ["Q4_0", "Q2_K", "TQ2_0", "TQ1_0", "Q1_0"]
"""Types of GGML: 4.5, 2.6, 2.1, 1.7 and 1.1 bits per weight."""


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

    from benchmarks.lib.peers import ggml_peer

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


def kernels_of(factors: Factors, weight: Tensor) -> Iterator[tuple[str, list[Product]]]:
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
