# SPDX-License-Identifier: Apache-2.0
"""Triton's kernels against the reference: on a GPU, or else by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_lookup import packed as packed_lookup
from test_product import random_factors, relative_error
from torch import Tensor

from tersor.kernels import cpu, product
from tersor.kernels.integers import Integers
from tersor.kernels.panels import Panels
from tersor.kernels.product import reference

gpu = pytest.importorskip("tersor.kernels.gpu", reason="needs triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

ERRORS = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-3}
"""Of inputs that are rounded to so many bits, and outputs."""

slow = pytest.mark.slow  # the interpreter is
BATCHES = [0, 1, 3, pytest.param(17, marks=slow), pytest.param(64, marks=slow)]


@pytest.fixture(autouse=True)
def seed():
    """Inputs do not depend on which tests ran before."""
    torch.manual_seed(0)


def packed_integers(*args, divided=()):
    """Of random factors, with the last positions divided."""
    factors = random_factors(*args)
    by = torch.tensor(divided, dtype=torch.int16)[:, None]
    factors.latent[factors.rank - len(divided) :] //= by
    return Integers.pack(factors)


INTEGERS = {
    "one by one": packed_integers(33, 50, 1, 1, 1.0),
    "both widths and escapes": packed_integers(70, 300, 13, 12, 3.0),
    "2 bits": packed_integers(65, 131, 40, 40, 0.4),
    "4 bits": packed_integers(16, 96, 8, 1, 3.0),
    "6 bits": packed_integers(37, 100, 8, 8, 10.0),
    "all widths and escapes": packed_integers(70, 300, 13, 13, 35.0, divided=(4, 20, 20)),
    "more columns than inputs of a tile": packed_integers(40, 64, 4, 7, 2.0),
}
LOOKUPS = {
    "binary": packed_lookup((75, 131), 7, 3, binary=True),
    "many binary columns": packed_lookup((33, 100), 8, 3, binary=True, rank=40),
    "binary, large tiles": packed_lookup((20, 250), 70, 3, binary=True),
    "integers": packed_lookup((75, 131), 16, 3, binary=False, nonzeros=3),
    "integers of small tiles": packed_lookup((40, 61), 3, 3, binary=False),
}
MATRICES = INTEGERS | LOOKUPS


def moved(matrix):
    return matrix.of([t.to(DEVICE) for t in matrix.tensors], matrix.layout)


def check(x, matrix, bias=None):
    matrix = moved(matrix)
    x, bias = x.to(DEVICE), None if bias is None else bias.to(DEVICE)
    got = gpu.linear(x, matrix, bias)
    expected = reference(x, matrix, bias)
    assert got.shape == expected.shape and got.dtype == x.dtype and got.device == x.device
    exact = reference(x.float(), matrix, bias)
    assert relative_error(got.float(), exact) <= ERRORS[x.dtype]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MATRICES)
def test_the_product_is_right(name: str, batch: int) -> None:
    matrix = MATRICES[name]
    layout = matrix.layout
    check(torch.randn(batch, layout.inputs), matrix, torch.randn(layout.rows))


@slow
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ["all widths and escapes", "binary", "integers"])
def test_data_types(name: str, batch: int, dtype: torch.dtype) -> None:
    matrix = MATRICES[name]
    layout = matrix.layout
    check(torch.randn(batch, layout.inputs).to(dtype), matrix, torch.randn(layout.rows).to(dtype))


def test_widths_and_escapes_occur() -> None:
    matrix = MATRICES["both widths and escapes"]
    given, layout = matrix.tensors, matrix.layout
    assert layout.wide and layout.narrow and len(given.escapes) > 20
    assert MATRICES["2 bits"].layout.wide == MATRICES["4 bits"].layout.narrow == 0
    assert MATRICES["6 bits"].layout.middle and not MATRICES["6 bits"].layout.top
    matrix = MATRICES["all widths and escapes"]
    given, layout = matrix.tensors, matrix.layout
    assert 0 < layout.top < layout.middle < layout.wide and layout.narrow
    assert len(given.escapes) > 100


@slow
@pytest.mark.parametrize("batch", [2, 5])
def test_many_escapes(batch: int) -> None:
    """More of a row than are added at once, of some rows only, and large ones."""
    factors = random_factors(6, 120)
    factors.latent[0, 3::7] = 4000
    factors.latent[0, 120:240:2] = -4000
    matrix = Integers.pack(factors)
    assert len(matrix.tensors.escapes) > 150
    check(torch.randn(batch, 120), matrix)


@slow
@pytest.mark.parametrize("name", ["all widths and escapes", "binary"])
@pytest.mark.parametrize("batch", [2, 40])
def test_shared_blocks_and_single_ones_agree(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = moved(MATRICES[name])
    layout = matrix.layout
    x, bias = torch.randn(batch, layout.inputs, device=DEVICE), torch.ones(layout.rows).to(DEVICE)
    parts = []
    room = gpu._parts

    def shared(x: Tensor, rows: int, vectors: int, most: int) -> Tensor:
        parts.append(room(x, rows, vectors, 3))
        return parts[-1]

    monkeypatch.setattr(gpu, "_parts", shared)
    several = gpu.linear(x, matrix, bias)
    monkeypatch.setattr(gpu, "_PROGRAMS", 1)
    one = gpu.linear(x, matrix, bias)
    assert [len(p) for p in parts] == [3, 1]
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["4 bits", "binary"])
def test_leading_axes_and_strides(name: str) -> None:
    matrix = moved(MATRICES[name])
    layout = matrix.layout
    x = torch.randn(layout.inputs, 2, 3, device=DEVICE).permute(1, 2, 0)
    y = gpu.linear(x, matrix, None)
    assert y.shape == (2, 3, layout.rows)
    flat = gpu.linear(x.reshape(6, -1), matrix, None)
    assert torch.equal(y.reshape(6, -1), flat)
    assert gpu.linear(x[0, 0], matrix, None).shape == (layout.rows,)
    assert gpu.linear(x[:0], matrix, None).shape == (0, 3, layout.rows)


@slow
@pytest.mark.parametrize("name", ["4 bits", "binary", "integers"])
@pytest.mark.parametrize("batch", [2, 6])
def test_what_is_not_finite_stays_in_its_item(name: str, batch: int) -> None:
    matrix = moved(MATRICES[name])
    layout = matrix.layout
    x = torch.randn(batch, layout.inputs, device=DEVICE)
    x[1, 20] = torch.nan
    y = gpu.linear(x, matrix, None)
    assert y[1].isnan().any() and y[torch.arange(batch) != 1].isfinite().all()


@slow
@pytest.mark.parametrize("name", ["4 bits", "binary"])
def test_the_operator_is_well_formed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_kernel_of", lambda device, kind: gpu.linear)
    matrix = moved(MATRICES[name])
    layout = matrix.layout
    for batch, grad in ((1, True), (5, False)):
        x = torch.randn(batch, layout.inputs, device=DEVICE, requires_grad=grad)
        bias = torch.randn(layout.rows, device=DEVICE, requires_grad=grad)
        torch.library.opcheck(
            torch.ops.tersor.linear.default,
            (x, list(matrix.tensors), bias, matrix.name, list(layout)),
        )


def test_which_kernels_run_where(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device("cuda", 0)
    monkeypatch.setattr(product, "missing_on", lambda device: "")
    assert product._kernel_of(here, Integers) is gpu.linear
    assert product._kernel_of(here, Panels) is reference  # those of a model moved afterwards
    monkeypatch.setattr(product, "missing_on", lambda device: "no triton")
    assert product._kernel_of(here, Integers) is reference
    monkeypatch.setattr(cpu, "_kernels", None)
    assert product._kernel_of(torch.device("cpu"), Integers) is reference


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tersor.kernels import programs

FLOATS = {"x", "u", "bias"}
TYPES = {"words": "*i32", "codes": "*u8", "starts": "*i32", "escapes": "*i16", "y": "*fp32",
         "codebook": "*fp32", "scale": "*fp32"}

def check(kernel, tables="*fp32", codebook="*fp32", **constants):
    if hasattr(kernel, "configs"):
        fits = kernel.early_config_prune
        config = (fits(kernel.configs, {}, **constants) if fits else kernel.configs)[0]
        kernel, constants = kernel.fn, constants | config.kwargs
    types = {name: "*bf16" if name in FLOATS else TYPES.get(name, "i32")
             for name in kernel.arg_names} | {name: "constexpr" for name in constants}
    types |= {n: t for n, t in (("tables", tables), ("codebook", codebook)) if n in types}
    source = ASTSource(kernel, types, constants)
    compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})

check(programs.transform, codebook="*i16", DEPTH=16, BLOCK_T=32, BLOCK_P=32)
for higher in (True, False):
    for vectors in (1, 16, 64):
        check(programs.multiply_integers, HIGHER=higher, ESCAPES=True, VECTORS=vectors)
for binary in (True, False):
    check(programs.make_tables, BINARY=binary, VECTORS=1, DEPTH=16, BLOCK_T=32, BLOCK_P=32)
    check(programs.look_up, BYTES=2, BINARY=binary, VECTORS=4)
    check(programs.multiply_recomposed, "*bf16", TILE=7, BYTES=2, BINARY=binary, DEPTH=8, BLOCK_T=8,
          VECTORS=16)
"""


@slow
def test_they_compile_for_a_gpu(tmp_path: Path) -> None:
    """Also without one: what the interpreter takes need not be what the compiler takes."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
