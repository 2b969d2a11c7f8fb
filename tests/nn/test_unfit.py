# SPDX-License-Identifier: Apache-2.0
"""Layers ready for inference, given what does not fit them: torch's result, or an error."""

import copy
import io
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn

from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import convolution, cpu, product
from tersor.kernels.integers import Integers
from tersor.kernels.lookup import Lookup
from tersor.kernels.packing import buffers as buffers_of
from tersor.kernels.panels import Panels
from tersor.nn import insert_factors
from tersor.nn.convolution import FORMS, ListedWeight, place_of
from tersor.nn.frozen import LookupWeight, PackedWeight, PanelWeight, RecomposedWeight
from tersor.nn.owner import attach, forget

MODULES = {
    "linear": (lambda: nn.Linear(24, 40), (PackedWeight, LookupWeight, PanelWeight)),
    "conv2d": (lambda: nn.Conv2d(8, 24, 3, padding=1), FORMS),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), FORMS),
    "conv1d": (lambda: nn.Conv1d(8, 24, 5, padding=2), FORMS),
}


def factors_of(weight):
    torch.manual_seed(0)
    shape, inputs = tuple(weight.shape), weight[0].numel()
    latent = torch.randint(0, 2, (8, shape[0] * -(-inputs // 8)), dtype=torch.int16) * 2 - 1
    codebook = torch.randint(-20, 21, (8, 8), dtype=torch.int16)
    return Factors(codebook, latent, 2.0**-6, shape)


CASES = [
    (name, form)
    for name, (make, forms) in MODULES.items()
    for form in forms
    if form.takes(make(), factors_of(make().weight))
]


def frozen(name, form):
    """A module with a weight of this form, and the same dense."""
    dense = MODULES[name][0]().eval().requires_grad_(False)
    factors = factors_of(dense.weight)
    dense.weight.copy_(factors.recompose())
    module = copy.deepcopy(dense)
    insert_factors(module, {"weight": factors})
    forget(module, "weight")
    attach(module, "weight", form(factors, torch.float32))
    return module, dense


def inputs_of(module, *batch):
    if isinstance(module, nn.Linear):
        return torch.randn(*batch, module.in_features)
    return torch.randn(*batch, module.in_channels, *[7] * len(module.kernel_size))


def outcome(module, x):
    """What it gives, or the error."""
    try:
        return module(x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return error


def check(module, dense, x):
    got, wanted = outcome(module, x), outcome(dense, x)
    if isinstance(wanted, Exception) or isinstance(got, Exception):
        assert isinstance(got, Exception) and isinstance(wanted, Exception), (got, wanted)
        return
    assert got.shape == wanted.shape and got.device == wanted.device
    if got.device.type == "cpu":
        torch.testing.assert_close(
            got, wanted, rtol=0, atol=0.02 * float(wanted.detach().abs().nan_to_num().max())
            if wanted.numel() else 0, equal_nan=True, check_stride=False,
        )  # fmt: skip


BIASES = {
    "one": lambda n: torch.full((1,), 7.0),
    "none at all": lambda n: torch.empty(0),
    "one too few": lambda n: torch.randn(n - 1),
    "one too many": lambda n: torch.randn(n + 1),
    "a number": lambda n: torch.tensor(3.0),
    "a row": lambda n: torch.randn(1, n),
    "a column": lambda n: torch.randn(n, 1),
    "integers": lambda n: torch.arange(n),
    "complex": lambda n: torch.randn(n, dtype=torch.complex64),
    "nowhere": lambda n: torch.randn(n, device="meta"),
    "every second": lambda n: torch.randn(2 * n)[::2],
    "expanded": lambda n: torch.randn(1).expand(n),
    "reversed imaginary": lambda n: torch.randn(n, dtype=torch.complex64).conj().imag,
    "NaN": lambda n: torch.full((n,), torch.nan),
    "trained": lambda n: torch.randn(n),
}


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("batch", [1, 12])
def test_biases(name, form, kind, batch):
    """After a call with a bias that fits, too, of whose input's shape plans are kept."""
    module, dense = frozen(name, form)
    x, bias = inputs_of(module, batch), BIASES[kind](len(dense.bias))
    check(module, dense, x)
    trained = kind == "trained"
    for each in (module, dense):
        each.bias = nn.Parameter(bias.clone() if trained else bias, requires_grad=trained)
    if kind == "nowhere":  # torch's convolutions give what memory held
        assert isinstance(outcome(module, x), (InputError, RuntimeError))
        return
    check(module, dense, x)
    if trained:
        for each in (module, dense):
            each(x).sum().backward()
        torch.testing.assert_close(module.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-4)


INPUTS = {
    "no batch": lambda x: x[:0],
    "alone": lambda x: x[0],
    "two more axes": lambda x: x.reshape(1, 1, *x.shape),
    "too few": lambda x: x.narrow(1, 0, x.shape[1] - 1),
    "none": lambda x: x.narrow(1, 0, 0),
    "a number": lambda x: x.flatten()[0],
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "nowhere": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "flipped": lambda x: x.to(torch.complex64).mul(1j).conj().imag,
    "NaN": lambda x: x.clone().fill_(torch.nan),
}


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(name, form, kind):
    module, dense = frozen(name, form)
    x = INPUTS[kind](inputs_of(module, 3))
    if kind == "nowhere":  # only what is on one device has a result
        got = outcome(module, x)
        assert isinstance(got, Exception) or got.device.type == "meta"
    elif kind == "sparse":
        got, wanted = outcome(module, x), outcome(dense, x)
        assert isinstance(got, Exception) or torch.allclose(got, wanted, atol=0.02)
    else:
        check(module, dense, x)


@pytest.mark.parametrize("name, form", CASES)
def test_weights_nowhere_are_not_computed_with(name, form):
    module, _ = frozen(name, form)
    x = inputs_of(module, 3)
    module.weight_factors.to("meta")
    for each in (x, x.clone().requires_grad_()):
        with pytest.raises((InputError, RuntimeError)):
            module(each)


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("assign", [False, True])
def test_states_of_other_shapes_are_refused(name, form, assign):
    module, dense = frozen(name, form)
    x = inputs_of(module, 3)
    for change in (lambda t: t[:0], lambda t: torch.cat([t, t]), lambda t: t.flatten()[:-1]):
        state = {
            n: change(t) if n.startswith("weight_factors") else t
            for n, t in copy.deepcopy(module.state_dict()).items()
        }
        with pytest.raises((InputError, RuntimeError)):
            module.load_state_dict(state, assign=assign)
            module(x)
        module, dense = frozen(name, form)
        check(module, dense, x)


@pytest.mark.parametrize("name, form", CASES)
def test_tensors_that_moved_are_found(name, form):
    """To share tensors with another process moves them; what was there before is freed."""
    module, dense = frozen(name, form)
    x = inputs_of(module, 3)
    expected = module(x)
    ForkingPickler(io.BytesIO()).dump(module.state_dict())
    assert torch.equal(module(x), expected)
    others = {n: torch.zeros_like(t) for n, t in module.weight_factors.named_buffers()}
    swapped = dict(module.named_buffers()) | {f"weight_factors.{n}": t for n, t in others.items()}
    got = outcome(lambda x: torch.func.functional_call(module, swapped, (x,)), x)
    assert isinstance(got, ValueError) or not torch.equal(got, expected)
    check(module, dense, x)


@pytest.mark.parametrize("name, form", [c for c in CASES if c[0] != "linear"])
def test_settings_of_convolutions_may_change(name, form):
    module, dense = frozen(name, form)
    x = inputs_of(module, 2)
    axes = len(module.kernel_size)
    for setting, value in (
        ("padding_mode", "circular"),
        ("padding_mode", "zeros"),
        ("padding", (0,) * axes),
        ("stride", (2,) * axes),
        ("dilation", (2,) * axes),
    ):
        check(module, dense, x)
        for each in (module, dense):
            setattr(each, setting, value)
            each._reversed_padding_repeated_twice = [p for p in each.padding for _ in "ab"]
        check(module, dense, x)


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(name, form, dtype):
    module, dense = frozen(name, form)
    module, dense = module.to(dtype), dense.to(dtype)
    x = inputs_of(module, 3).to(dtype)
    got, wanted = module(x), dense(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.03 * float(wanted.abs().max()))


@pytest.mark.parametrize("name, form", [*CASES, ("linear", RecomposedWeight)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_of_torch(name, form, dtype):
    module, dense = frozen(name, form)
    x = inputs_of(module, 3)
    with torch.autocast("cpu", dtype):
        got, wanted = module(x), dense(x)
    assert got.dtype == wanted.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.03 * float(wanted.abs().max()))
    assert module(x).dtype == torch.float32


def test_indices_of_embeddings_are_integers():
    module = nn.Embedding(40, 24).eval()
    insert_factors(module, {"weight": factors_of(module.weight)})
    factors = module.weight_factors.to_factors()
    forget(module, "weight")
    attach(module, "weight", PackedWeight(factors, torch.float32))
    for wrong in (torch.tensor([1.7]), torch.tensor([True]), torch.tensor([1 + 1j])):
        with pytest.raises(RuntimeError):
            module(wrong)
    assert module(torch.empty(2, 0, dtype=torch.int32)).shape == (2, 0, 24)
    with pytest.raises(InputError, match="int64, one axis"):
        product.rows(torch.tensor([1.7]), module.weight_factors.packed)


@pytest.mark.parametrize("name", ["_len_torch_dispatch_stack", "_functorch.peek_interpreter_stack"])
def test_private_functions_of_torch_may_be_gone(name, monkeypatch):
    module, dense = frozen("linear", PackedWeight)
    x = inputs_of(module, 3)
    expected = module(x)
    holder, _, last = name.rpartition(".")
    monkeypatch.delattr(getattr(torch._C, holder) if holder else torch._C, last)
    gone = cpu.private(name)
    assert gone()
    monkeypatch.undo()
    assert not cpu.private(name)()
    monkeypatch.setattr(cpu, "_modes", gone)
    monkeypatch.setattr(product, "native", None)  # which the operator would call
    monkeypatch.setattr(product, "_native", product.reference)
    assert not cpu.is_plain(x)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    check(module, dense, x)


@pytest.mark.parametrize("name, form", CASES)
def test_forward_derivatives_are_those_of_torch(name, form):
    module, dense = frozen(name, form)
    x = inputs_of(module, 3)
    got, wanted = (torch.func.jvp(each, (x,), (x + 1,)) for each in (module, dense))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


needs_kernels = pytest.mark.skipif(not cpu.instructions(), reason="no native kernels here")


@needs_kernels
@pytest.mark.parametrize("kind", [Integers, Lookup, Panels])
def test_native_products_check_every_size(kind):
    """Whatever number of bytes is told, of any buffer, or of the sizes: no kernel runs."""
    factors = factors_of(torch.empty(40, 24))
    matrix = kind.pack(factors.recompose() if kind is Panels else factors)
    layout, make = matrix.layout, getattr(cpu.module(), kind.kernel)
    buffers = buffers_of(*matrix.tensors)
    x, bias, y = torch.randn(3, 24), torch.randn(40), torch.zeros(3, 40)
    numbers = [*buffers_of(x, bias, y), 3, 1]
    matrix = make(kind.many, *layout, *buffers)
    matrix(*numbers)
    assert y.any()
    for at in range(1, len(buffers), 2):
        for wrong in (-1, buffers[at] + 1, buffers[at] // 2 if buffers[at] else 2, 2**62):
            if at == len(buffers) - 1 and kind is Integers and wrong % 2 == 0 and wrong >= 0:
                continue  # escapes may be of any number
            with pytest.raises(ValueError):
                make(kind.many, *layout, *buffers[:at], wrong, *buffers[at + 1 :])
    for at in range(len(layout)):
        for wrong in (-1, 2**31, 2**62):
            if kind is Lookup and at == 4:
                continue  # true or not
            with pytest.raises(ValueError):
                make(kind.many, *layout[:at], wrong, *layout[at + 1 :], *buffers)
    for at in (1, 3, 5, 6):
        for wrong in (-1, numbers[at] + 4, 0, 2**62):
            if at == 3 and not wrong:
                continue
            with pytest.raises(ValueError):
                matrix(*numbers[:at], wrong, *numbers[at + 1 :])
    with pytest.raises(ValueError):
        matrix(0, *numbers[1:])


@needs_kernels
@pytest.mark.parametrize("form", [*FORMS])
def test_native_convolutions_check_every_size(form):
    name = "depthwise" if "Depthwise" in form.__name__ else "conv2d"
    module, _ = frozen(name, form)
    x = inputs_of(module, 2)
    kept = module.weight_factors
    shape = tuple(module(x).shape)
    plan = convolution.plan(x.shape, kept.packed, place_of(module), shape)
    y = torch.zeros(shape)
    images = buffers_of(x, module.bias, y)
    window, sizes = plan.sizes[0], plan.sizes[1:]
    plan.kernel(*images, 1, window, *sizes)
    assert y.any()
    for at in (1, 3, 5):
        for wrong in (-1, images[at] + 4, 4, 2**62):
            with pytest.raises(ValueError):
                plan.kernel(*images[:at], wrong, *images[at + 1 :], 1, window, *sizes)
    for at in range(14):
        for wrong in (-1, 2**31, 2**62):
            with pytest.raises(ValueError):
                plan.kernel(*images, 1, (*window[:at], wrong, *window[at + 1 :]), *sizes)
    for at, value in enumerate(sizes):
        is_address = at >= len(sizes) - 2 * len(plan.tensors if form is ListedWeight else [0]) and (
            (len(sizes) - at) % 2 == 0
        )
        for wrong in () if is_address else (-2, value + 1000, 2**62):
            with pytest.raises(ValueError):
                plan.kernel(*images, 1, window, *sizes[:at], wrong, *sizes[at + 1 :])


@needs_kernels
def test_kernels_stay_inside_of_changed_tensors():
    """Changed in place, and unseen: nothing else is read or written (which ASan sees)."""
    torch.manual_seed(0)
    for name, form in (("linear", PackedWeight), ("conv2d", ListedWeight)):
        for _ in range(20):
            module, _ = frozen(name, form)
            x = inputs_of(module, 9)
            module(x)
            for part in module.weight_factors.buffers():
                if part.numel() and not part.is_floating_point():
                    flat = part.view(-1).view(torch.uint8)
                    flat[torch.randint(0, len(flat), (5,))] = torch.randint(
                        0, 256, (5,), dtype=torch.uint8
                    )
            for count in (1, 5, 9):
                outcome(module, x[:count])


def test_all_forms_are_tested():
    assert {form for _, form in CASES} == {PackedWeight, LookupWeight, PanelWeight, *FORMS}
