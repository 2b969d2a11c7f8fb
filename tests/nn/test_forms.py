# SPDX-License-Identifier: Apache-2.0
"""`tersor.optimize` in every mode leaves the output of every kind of module as it was."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CASES, TOKENS, factors_of, output

import tersor
from tersor.errors import InputError
from tersor.nn import insert_factors
from tersor.nn.frozen import DenseWeight, FrozenWeight, KernelWeight

slow = pytest.mark.slow

MODES = ["dense", "recompose", "factored", "auto"]


class Double(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return F.linear(2 * x, self.weight + 1, self.bias)


class Reads(nn.Module):
    """Reads the weight of a linear layer, and calls the layer too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


class Odd(nn.Linear):
    """What it gets is no vector of its weight."""

    def forward(self, x):
        return x.float().sum() + super().forward(torch.ones(2, self.in_features).to(self.weight))


def lazy(module, *inputs):
    module(*inputs)
    return module


X, SEQUENCE = torch.randn(2, 5, 12), torch.randn(6, 2, 5)
MORE = {
    "bilinear": (lambda: nn.Bilinear(5, 6, 7), (torch.randn(3, 5), torch.randn(3, 6))),
    "lstm, projected both ways": (
        lambda: nn.LSTM(5, 8, 2, proj_size=3, bidirectional=True),
        (SEQUENCE,),
    ),
    "gru, both ways": (lambda: nn.GRU(5, 8, 2, bidirectional=True), (SEQUENCE,)),
    "rnn, relu": (lambda: nn.RNN(5, 8, nonlinearity="relu", bias=False), (SEQUENCE,)),
    "lstm cell": (lambda: nn.LSTMCell(5, 8), (torch.randn(3, 5),)),
    "gru cell": (lambda: nn.GRUCell(5, 8), (torch.randn(3, 5),)),
    "rnn cell": (lambda: nn.RNNCell(5, 8), (torch.randn(3, 5),)),
    "embedding, padding from the end": (lambda: nn.Embedding(11, 8, padding_idx=-1), (TOKENS,)),
    **{
        f"embedding bag, {mode}": (
            lambda mode=mode: nn.EmbeddingBag(11, 8, mode=mode, padding_idx=3),
            (TOKENS.flatten(), torch.tensor([0, 5, 5])),
        )
        for mode in ("sum", "mean", "max")
    },
    "embedding bag, weighted": (
        lambda: nn.EmbeddingBag(11, 8, mode="sum"),
        (TOKENS.flatten(), torch.tensor([0, 5]), torch.randn(TOKENS.numel())),
    ),
    "embedding bag, max_norm": (lambda: nn.EmbeddingBag(11, 8, max_norm=0.05), (TOKENS,)),
    "attention with weights": (lambda: nn.MultiheadAttention(12, 2, batch_first=True), (X, X, X)),
    "attention, bias_kv": (
        lambda: nn.MultiheadAttention(12, 2, batch_first=True, add_bias_kv=True),
        (X, X, X),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=False), 2
        ),
        (X,),
    ),
    "encoder, gelu, norm first": (
        lambda: nn.TransformerEncoderLayer(
            12, 2, 16, batch_first=True, activation="gelu", norm_first=True
        ),
        (X,),
    ),
    "decoder": (lambda: nn.TransformerDecoderLayer(12, 2, 16, batch_first=True), (X, X)),
    "both": (lambda: nn.Transformer(12, 2, 1, 1, 16, batch_first=True), (X, X)),
    "lazy linear": (lambda: lazy(nn.LazyLinear(8), X), (X,)),
    "lazy conv1d": (lambda: lazy(nn.LazyConv1d(8, 3), X), (X,)),
    "lazy transposed": (lambda: lazy(nn.LazyConvTranspose1d(8, 3), X), (X,)),
    "own forward": (lambda: Double(12, 8), (X,)),
    "read": (Reads, (X,)),
    "odd inputs": (lambda: Odd(12, 8), (TOKENS,)),
    "flattened": (lambda: nn.Sequential(nn.Unflatten(2, (3, 4)), nn.Flatten(1), nn.Linear(60, 9)),
                  (X,)),
}  # fmt: skip
ALL = CASES | MORE


def compressed(make):
    torch.manual_seed(0)
    model = make().eval()
    insert_factors(model, factors_of(model))
    return model


def close(got, wanted, limit):
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    error = float((got - wanted).double().norm())
    assert error <= limit * float(wanted.double().norm()) + 1e-6


def limit_of(mode, dtype=torch.float32):
    rounding = {torch.bfloat16: 0.03, torch.float16: 0.005}.get(dtype, 1e-5)
    return rounding + (0 if mode in ("dense", "recompose") else 0.02)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", MODES)
def test_output_stays(name, mode):
    make, inputs = ALL[name]
    model = compressed(make)
    expected = output(copy.deepcopy(model), inputs).detach()
    tersor.optimize(model, mode, inputs=inputs if mode == "auto" else None)
    for grad in (True, False):  # torch takes other ways without
        with torch.set_grad_enabled(grad):
            close(output(model, inputs).detach(), expected, limit_of(mode))
    with torch.inference_mode():
        close(output(model, inputs), expected, limit_of(mode))


@slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.no_grad()
def test_models_of_other_types(name, mode, dtype):
    make, inputs = ALL[name]
    model = compressed(make).to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    try:
        expected = output(copy.deepcopy(model), inputs)
    except RuntimeError:
        pytest.skip("torch does not compute this in such a type")
    tersor.optimize(model, mode)
    close(output(model, inputs), expected, limit_of(mode, dtype))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", MODES)
def test_autocast(name, mode):
    make, inputs = ALL[name]
    model = compressed(make)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            expected = output(copy.deepcopy(model), inputs)
        except RuntimeError:
            pytest.skip("torch does not compute this under autocast")
        tersor.optimize(model, mode)
        got = output(model, inputs)
    assert got.dtype == expected.dtype
    close(got.float(), expected.float(), limit_of(mode, torch.bfloat16))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_copies(name, mode):
    make, inputs = ALL[name]
    model = compressed(make)
    tersor.optimize(model, mode)
    expected = output(copy.deepcopy(model), inputs)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    other = compressed(make)
    tersor.optimize(other, mode)
    if mode != "auto":  # which may choose otherwise
        other.load_state_dict(model.state_dict())
        assert torch.equal(output(other, inputs), expected)
    for each in (copy.deepcopy(model), torch.load(buffer, weights_only=False), model):
        assert torch.equal(output(each, inputs), expected)


@slow
@pytest.mark.parametrize("name", ["conv1d", "conv2d, strided", "conv2d, depthwise", "transformer",
                                  "attention", "tied", "embedding", "bilinear", "custom",
                                  "transposed 1d", "own forward"])  # fmt: skip
@pytest.mark.parametrize("mode", ["dense", "recompose", "factored"])
@torch.no_grad()
def test_export_and_compile(name, mode):
    make, inputs = ALL[name]
    model = compressed(make).requires_grad_(False)
    tersor.optimize(model, mode)
    expected = output(model, inputs)
    program = torch.export.export(model, inputs)
    torch.testing.assert_close(output(program.module(), inputs), expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(output(compiled, inputs), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, got = output(model, inputs), output(compiled, inputs)
    close(got.float(), wanted.float(), 0.02)


CONVOLUTIONS = [
    (kind, {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": padding,
            "padding_mode": around, "groups": groups})
    for kind, kernels in (
        (nn.Conv1d, (1, 5, 256)), (nn.Conv2d, (1, 3, (2, 33))), (nn.Conv3d, (2, (1, 3, 17))),
    )
    for kernel, (stride, dilation, padding, around), groups in itertools.product(
        kernels,
        (
            (1, 1, 0, "zeros"), (7, 1, 0, "zeros"), (1, 5, 0, "zeros"), (1, 2, "same", "zeros"),
            (3, 1, 20, "zeros"), (1, 1, 20, "reflect"), (2, 3, "valid", "zeros"),
            (1, 1, "same", "circular"), (1, 1, 20, "circular"), (1, 2, "same", "replicate"),
        ),
        (1, 2, 4),
    )
]  # fmt: skip


@slow
@pytest.mark.parametrize(
    "kind, options", CONVOLUTIONS, ids=lambda v: v.__name__ if isinstance(v, type) else None
)
@torch.no_grad()
def test_convolutions_of_any_geometry(kind, options, monkeypatch):
    """Without any input: what they are tried with fits."""
    monkeypatch.setattr("tersor.inference.timing.RUNS", 1)
    model = compressed(lambda: kind(4, 8, **options))
    axes = zip(model.kernel_size, model.dilation, strict=True)
    x = torch.randn(1, 4, *(max(22, 4 + dilation * kernel) for kernel, dilation in axes))
    expected = model(x)
    report = tersor.optimize(model)
    assert report.choices[0].seconds > 0
    close(model(x), expected, limit_of("auto"))


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@torch.no_grad()
def test_transposed_convolutions(kind):
    model = compressed(lambda: kind(4, 8, 5, stride=3, output_padding=1, groups=2, dilation=2))
    x = torch.randn(2, 4, *[6] * len(model.kernel_size))
    expected = model(x)
    tersor.optimize(model)
    close(model(x), expected, 1e-5)


@torch.no_grad()
def test_forms_that_fail_are_left_out(monkeypatch):
    def fail(*_):
        raise RuntimeError("not here")

    model = compressed(lambda: nn.Linear(64, 48))
    x = torch.randn(3, 64)
    expected = model(x)
    for kind in (DenseWeight, KernelWeight):
        monkeypatch.setattr(kind, "linear", fail, raising=False)
    report = tersor.optimize(model)
    assert [choice.mode for choice in report.choices] == ["recompose"]
    close(model(x), expected, 1e-5)


def test_inputs_that_the_model_refuses_are_explained():
    for mode in ("auto", "dense"):
        model = compressed(lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
        with pytest.raises(InputError, match="called with the inputs, raised RuntimeError"):
            tersor.optimize(model, mode, inputs=torch.randn(1, 3, 9, 9))
        assert not any(isinstance(module, FrozenWeight) for module in model.modules())
