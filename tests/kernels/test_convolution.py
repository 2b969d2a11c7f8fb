# SPDX-License-Identifier: Apache-2.0
"""Convolutions with packed weights: native kernels against torch, operator, modules, bad input."""

import copy
import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tersor import kernels
from tersor.errors import InputError
from tersor.factors import Factors
from tersor.kernels import convolution, direct
from tersor.kernels.convolution import Place
from tersor.kernels.direct import Direct
from tersor.kernels.listed import Listed
from tersor.nn import insert_factors
from tersor.nn.convolution import (
    DepthwiseLastWeight,
    DepthwiseWeight,
    LargeTiledWeight,
    LastWeight,
    ListedWeight,
    TiledWeight,
    place_of,
)
from tersor.nn.owner import attach, forget

PLAIN = Place(1, 1, 1, 1, 1, 1, 1, 1)
EXACT = 2e-5
"""Relative error of sums in float32; tiles of 4 x 4 pixels lose three bits more than others."""


@pytest.fixture(autouse=True)
def seed():
    """Inputs do not depend on which tests ran before."""
    torch.manual_seed(0)


def random_factors(shape, tile=1, rank=1, spread=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tiles = -(-torch.Size(shape[1:]).numel() // tile)
    latent = torch.randn(rank, shape[0] * tiles, generator=draw) * spread
    codebook = torch.randint(-20, 21, (tile, rank), generator=draw, dtype=torch.int16)
    codebook[0] |= 1
    return Factors(codebook, latent.round().to(torch.int16), 0.01, shape)


def dense(weight, size=0):
    return Direct.pack(weight, size)


def expected(x, weight, place, bias=None, groups=1):
    padded = F.pad(x.double(), place[4:6] + place[2:4])
    bias = None if bias is None else bias.double()
    return F.conv2d(padded, weight.double(), bias, place[:2], 0, place[6:], groups)


def relative_error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def limits(factors, x, place):
    """Most that each output of lists can be off: all that rounding can do."""
    weight = Listed.pack(factors)
    packed, layout = weight.tensors, weight.layout
    padded = F.pad(x.double(), place[4:6] + place[2:4])
    kernel = (layout.kernel_h, layout.kernel_w)
    windows = F.unfold(padded, kernel, place[6:], 0, place[:2])
    windows = F.pad(windows, (0, 0, 0, factors.tiling.padding)).unflatten(1, (-1, layout.tile))
    u = torch.einsum("ntdp,dk->ntkp", windows, factors.codebook.double() * factors.scale)
    u = u.flatten(1, 2)
    z = factors.latent.double().abs().reshape(factors.rank, layout.rows, -1)
    z = z.permute(1, 2, 0).flatten(1)
    limit = 0
    for needs, block, end in zip(packed.needs, packed.block[:-1], packed.block[1:], strict=True):
        bounds = [*block[:4].tolist(), int(end[0])]
        norms = [u[:, a:b].norm(dim=1) for a, b in pairwise(bounds)]
        step = torch.stack([need * norm for need, norm in zip(needs, norms, strict=True)]).amax(0)
        # half a step of each multiple, and two of the means of parts
        rounded = 0.51 * z[:, bounds[0] : bounds[-1]].sum(1) + 2
        limit = limit + rounded[:, None] * step[:, None]
    sums = torch.einsum("rc,ncp->nrp", z, u.abs())
    return (limit + 1e-5 * sums).unflatten(2, place.output(x.shape[2:], kernel))


places = st.builds(
    Place, *[st.integers(1, 3)] * 2, *[st.integers(0, 3)] * 4, *[st.integers(1, 2)] * 2
)
kernel_sizes = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.integers(1, 12), kernel_sizes, st.floats(0.1, 12), st.integers(0, 99))
def test_packing_is_exact(rows, channels, kernel, spread, seed):
    shape = (rows, channels, *kernel)
    tile = 1 + seed % torch.Size(shape[1:]).numel()
    factors = random_factors(shape, tile, max(1, tile - seed % 3), spread, seed)
    weight = Listed.pack(factors)
    weight.check()
    assert torch.equal(weight.latent(), factors.latent)
    torch.testing.assert_close(weight.recompose(), factors.recompose(), rtol=1e-4, atol=1e-3)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    kernel_sizes,
    places,
    st.tuples(st.integers(0, 3), st.integers(3, 20), st.integers(3, 20)),
    st.floats(0.1, 8),
    st.booleans(),
)
def test_output_is_that_of_the_dense_weight(rows, channels, kernel, place, size, spread, biased):
    factors = random_factors((rows, channels, *kernel), min(4, channels), 3, spread, rows)
    batch, *image = size
    if min(place.output(image, kernel)) < 1:
        return
    x, bias = torch.randn(batch, channels, *image), torch.randn(rows) if biased else None
    got = convolution.conv2d(x, Listed.pack(factors), bias, place)
    wanted = expected(x, factors.recompose(), place, bias)
    assert got.shape == wanted.shape
    if not kernels.instructions():
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
    elif batch:
        assert ((got - wanted).abs() <= limits(factors, x, place) + 1e-5).all()


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("tile, rank", [(1, 1), (9, 9), (9, 16)])
def test_error_is_as_documented(tile, rank, spread):
    factors = random_factors((64, 32, 3, 3), tile, rank, spread)
    x = torch.randn(2, 32, 12, 12)
    got = convolution.conv2d(x, Listed.pack(factors), None, PLAIN)
    assert relative_error(got, expected(x, factors.recompose(), PLAIN)) < 1e-3


def test_two_and_four_parts_occur():
    found = {
        Listed.pack(random_factors((64, 64, 3, 3), 9, 9, spread)).layout.parts
        for spread in (0.3, 1.0, 4.0, 8.0)
    }
    assert found == {2, 4}


@pytest.mark.parametrize("value", [1, -1, 7, 64])
@pytest.mark.parametrize("scale", [1, -1e30, 1e-20])
def test_extreme_inputs_of_the_lists(value, scale):
    """All rows and inputs at the ends of their range: sums of 16 bits must not overflow."""
    factors = random_factors((16, 300, 1, 1))
    factors.latent[:] = value
    x = scale * torch.ones(1, 300, 5, 5)
    got = convolution.conv2d(x, Listed.pack(factors), None, Place(1, 1, 0, 0, 0, 0, 1, 1))
    wanted = expected(x, factors.recompose(), Place(1, 1, 0, 0, 0, 0, 1, 1))
    assert relative_error(got, wanted) < 1e-3


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.integers(1, 9),
    st.tuples(st.integers(0, 3), st.integers(1, 21), st.integers(1, 21)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(direct.SIZES),
)
def test_tiles(rows, channels, size, padding, tile):
    place = Place(1, 1, *padding, 1, 1)
    batch, *image = size
    if min(place.output(image, (3, 3))) < 1:
        return
    x, weight, bias = (
        torch.randn(batch, channels, *image),
        torch.randn(rows, channels, 3, 3),
        torch.randn(rows),
    )
    got = convolution.conv2d(x, dense(weight, tile), bias, place)
    wanted = expected(x, weight, place, bias)
    # sums of positive numbers: what rounding is relative to
    size = expected(x.abs(), weight.abs(), place)
    around = F.max_pool2d(F.pad(size, (3, 3, 3, 3)), 7, 1) if batch else size
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() <= 2e-5 * around + 1e-6).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), kernel_sizes, places, st.tuples(*[st.integers(1, 24)] * 2))
def test_depthwise(channels, kernel, place, image):
    if min(place.output(image, kernel)) < 1:
        return
    x, weight = torch.randn(2, channels, *image), torch.randn(channels, 1, *kernel)
    got = convolution.conv2d(x, dense(weight), torch.ones(channels), place)
    wanted = expected(x, weight, place, torch.ones(channels), channels)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    kernel_sizes,
    places,
    st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20)),
    st.booleans(),
)
def test_images_channels_last(rows, channels, kernel, place, size, depthwise):
    batch, *image = size
    if min(place.output(image, kernel)) < 1:
        return
    x, groups = torch.randn(batch, channels, *image), channels if depthwise else 1
    rows = channels if depthwise else rows
    weight, bias = torch.randn(rows, channels // groups, *kernel), torch.randn(rows)
    packed = dense(weight, direct.DEPTHWISE_LAST if depthwise else direct.LAST)
    assert torch.equal(packed.recompose(), weight)
    got = convolution.conv2d(x, packed, bias, place)
    assert got.is_contiguous(memory_format=torch.channels_last)
    wanted = expected(x, weight, place, bias, groups)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", [LastWeight, DepthwiseLastWeight])
def test_weights_in_the_order_of_the_kernels_take_no_more_memory(form):
    name = "plain" if form is LastWeight else "depthwise"
    module, weight = with_form(name, form)
    rows = -(-len(weight) // 16) * 16 if form is LastWeight else len(weight)
    assert module.weight_factors.nbytes == weight[0].nbytes * rows
    with pytest.raises(InputError, match="factors of this weight are gone"):
        module.weight_factors.to_factors()
    state = {n: part.flatten() for n, part in module.state_dict().items()}
    with pytest.raises((InputError, RuntimeError)):
        module.load_state_dict(state, assign=True)
    state = {n: part.double() for n, part in module.state_dict().items()}
    with pytest.raises(InputError, match="packed tensor"):
        module.load_state_dict(state, assign=True)


MODULES = {
    "pointwise": nn.Conv2d(6, 9, 1),
    "plain": nn.Conv2d(6, 9, 3, padding=1),
    "same": nn.Conv2d(6, 9, (4, 3), padding="same", bias=False),
    "valid": nn.Conv2d(6, 9, 3, padding="valid"),
    "strided": nn.Conv2d(6, 9, 3, (2, 1), padding=(0, 2)),
    "dilated": nn.Conv2d(6, 9, 3, dilation=2),
    "row": nn.Conv1d(6, 9, 5, 2, padding=2),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "depthwise row": nn.Conv1d(6, 6, 3, padding="same", groups=6, dilation=2),
    "grouped": nn.Conv2d(6, 9, 3, groups=3),
    "circular": nn.Conv2d(6, 9, 3, padding=1, padding_mode="circular"),
}
FORMS = (
    ListedWeight,
    DepthwiseWeight,
    TiledWeight,
    LargeTiledWeight,
    LastWeight,
    DepthwiseLastWeight,
)


def taken():
    """Which forms are for which modules."""
    return [
        (name, form)
        for name, module in MODULES.items()
        for form in FORMS
        if form.takes(module, random_factors(tuple(module.weight.shape)))
    ]


def with_form(name, form):
    module = copy.deepcopy(MODULES[name])
    factors = random_factors(tuple(module.weight.shape), 3, 3, 2.0)
    insert_factors(module, {"weight": factors})
    forget(module, "weight")
    attach(module, "weight", form(factors, torch.float32))
    return module, factors.recompose()


def image_of(module, batch=3, size=11):
    spatial = 1 if isinstance(module, nn.Conv1d) else 2
    return torch.randn(batch, module.in_channels, *(size,) * spatial)


def by_torch(name, weight, x):
    module = copy.deepcopy(MODULES[name]).double()
    module.weight.data = weight.double()
    return module(x.double())


def same(got, wanted):
    """Whether the results are the same: to the bit, where native kernels are."""
    close = torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    return torch.equal(got, wanted) if kernels.instructions() else close


def tolerance(form):
    return 1e-3 if form is ListedWeight else EXACT


def test_which_forms_are_for_which_modules():
    found = {name: {form for other, form in taken() if other == name} for name in MODULES}
    tiled = {TiledWeight, LargeTiledWeight}
    assert found == {
        "pointwise": {ListedWeight, LastWeight},
        "plain": {ListedWeight, LastWeight, *tiled},
        "same": {ListedWeight, LastWeight},
        "valid": {ListedWeight, LastWeight, *tiled},
        "strided": {ListedWeight, LastWeight},
        "dilated": {ListedWeight, LastWeight},
        "row": {ListedWeight},
        "depthwise": {DepthwiseWeight, DepthwiseLastWeight},
        "depthwise row": {DepthwiseWeight},
        "grouped": set(),
        "circular": set(),
    }


@pytest.mark.parametrize("name, form", taken())
@torch.no_grad()
def test_modules(name, form):
    module, weight = with_form(name, form)
    assert torch.equal(module.weight, weight)
    for x in (image_of(module), image_of(module, 0), image_of(module, 1, 9), image_of(module)[0]):
        wanted = by_torch(name, weight, x)
        for _ in range(2):  # planned, then known
            got = module(x)
            assert got.shape == wanted.shape and got.dtype == x.dtype
            assert relative_error(got, wanted) < tolerance(form)


@pytest.mark.parametrize("name, form", taken())
@torch.no_grad()
def test_strides_types_and_states(name, form):
    module, weight = with_form(name, form)
    x = image_of(module)
    expected = module(x)
    views = [x.transpose(1, -1).contiguous().transpose(1, -1)]
    if x.dim() == 4:
        views.append(x.contiguous(memory_format=torch.channels_last))
    for view in views:
        assert same(module(view), expected)
    other = copy.deepcopy(module)
    for part in other.weight_factors.buffers():
        part.zero_()
    assert same(module(x), expected)
    other.load_state_dict(module.state_dict())
    assert same(other(x), expected)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        got = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert got.dtype == dtype
        assert relative_error(got, by_torch(name, weight, x)) < 0.02


@pytest.mark.parametrize(
    "part, damage",
    [
        ("block", lambda part: part + 1),
        ("block", lambda part: part.flip(0)),
        ("entries", lambda part: part + 1000),
        ("entries", lambda part: part[:-1]),
        ("runs", lambda part: part + 1),
        ("order", lambda part: torch.full_like(part, 2**16 - 1)),
        ("codes", lambda part: torch.full_like(part, 255)),
    ],
)
@torch.no_grad()
def test_a_damaged_state_is_refused(part, damage):
    """Kernels read and write where lists say; nothing of it is taken."""
    module, _ = with_form("plain", ListedWeight)
    x, state = image_of(module), copy.deepcopy(module.state_dict())
    expected = module(x)
    state["weight_factors." + part] = damage(state["weight_factors." + part])
    with pytest.raises(InputError, match="packed tensor"):
        module.load_state_dict(state)
    assert same(module(x), expected)


@pytest.mark.parametrize("name, form", taken())
def test_operator_is_well_formed(name, form):
    module, _ = with_form(name, form)
    weight = module.weight_factors.packed
    tensors, layout = list(weight.tensors), list(weight.layout)
    place = place_of(module)
    for grad in (True, False):
        x = image_of(module)
        x = (x if x.dim() == 4 else x[:, :, None]).requires_grad_(grad)
        bias = torch.randn(module.out_channels, requires_grad=grad)
        torch.library.opcheck(
            torch.ops.tersor.conv2d.default, (x, tensors, bias, weight.name, layout, list(place))
        )
    torch.library.opcheck(torch.ops.tersor.conv2d_weight.default, (tensors, weight.name, layout))


@pytest.mark.parametrize("name, form", taken())
def test_gradients_are_those_of_the_dense_weight(name, form):
    module, weight = with_form(name, form)
    x = image_of(module).requires_grad_()
    wanted = by_torch(name, weight, x)
    grad = torch.randn(wanted.shape)
    got = torch.autograd.grad(module(x), x, grad)[0]
    torch.testing.assert_close(
        got.double(),
        torch.autograd.grad(wanted, x, grad.double())[0].double(),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("form", [ListedWeight, LargeTiledWeight, LastWeight])
def test_compile_and_export(form):
    model = nn.Sequential(with_form("plain", form)[0], nn.ReLU()).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = image_of(model[0])
    wanted = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), wanted)
    assert any("tersor.conv2d" in str(n.target) for n in program.graph.nodes)


@pytest.mark.parametrize("name, form", taken())
@torch.no_grad()
def test_same_result_for_any_number_of_threads(name, form):
    module, _ = with_form(name, form)
    x = image_of(module, 8, 60)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(module(x))
    torch.set_num_threads(before)
    assert same(results[1], results[0]) and same(results[2], results[0])


@pytest.mark.parametrize("form", [ListedWeight, TiledWeight, LastWeight])
def test_several_threads_at_once(form):
    module, _ = with_form("plain", form)
    inputs = [image_of(module, 1 + i, 9 + i) for i in range(6)]
    wrong = []
    with torch.no_grad():
        results = [module(x) for x in inputs]

    @torch.no_grad()
    def work(i):
        for _ in range(20):
            if not same(module(inputs[i]), results[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name, form", taken())
@torch.no_grad()
def test_what_is_not_finite_is_not_hidden(name, form, value):
    module, weight = with_form(name, form)
    x = image_of(module)
    x[0, 2, ..., 5] = value
    got, wanted = module(x), by_torch(name, weight, x)
    assert not got[0][~wanted[0].isfinite()].isfinite().any()
    assert got[1:].isfinite().all()


def test_reference_runs_without_native_kernels(monkeypatch):
    monkeypatch.setattr("tersor.kernels.cpu._kernels", None)
    for name, form in taken():
        module, weight = with_form(name, form)
        x = image_of(module)
        assert relative_error(module(x), by_torch(name, weight, x)) < EXACT


def test_what_cannot_be_packed():
    assert Listed.packable(random_factors((4, 2, 3, 3)))
    real = random_factors((4, 2, 3, 3))
    assert not Listed.packable(Factors(real.codebook.float(), real.latent.float(), 1.0, real.shape))
    real.latent[0, 0] = 65
    assert not Listed.packable(real)
    assert not Listed.packable(random_factors((4, 8)))
    assert not Listed.packable(random_factors((4, 2, 3, 3, 3)))


def test_bad_input():
    weight = Listed.pack(random_factors((4, 2, 3, 3)))
    for x in (
        torch.randn(2, 5, 5),
        torch.randn(1, 3, 5, 5),
        torch.ones(1, 2, 5, 5, dtype=torch.int64),
    ):
        with pytest.raises(InputError, match="real numbers of shape"):
            convolution.conv2d(x, weight, None, PLAIN)
    with pytest.raises(InputError, match="does not fit into images"):
        convolution.conv2d(torch.randn(1, 2, 2, 2), weight, None, Place(1, 1, 0, 0, 0, 0, 1, 1))
    with pytest.raises(InputError, match="bias has shape"):
        convolution.conv2d(torch.randn(1, 2, 5, 5), weight, torch.ones(3), PLAIN)
    with pytest.raises(InputError, match="'needs' is"):
        short = Listed(weight.tensors._replace(needs=torch.zeros(1)), weight.layout)
        convolution.conv2d(torch.randn(1, 2, 5, 5), short, None, PLAIN)
    tiles = dense(torch.randn(4, 2, 3, 3), 2)
    with pytest.raises(InputError, match="stride 1"):
        convolution.conv2d(torch.randn(1, 2, 5, 5), tiles, None, PLAIN._replace(stride_h=2))
    with pytest.raises(InputError, match="are of no packed weight"):
        short = Direct(tiles.tensors[:1], tiles.layout)
        convolution.conv2d(torch.randn(1, 2, 5, 5), short, None, PLAIN)
    module, _ = with_form("plain", ListedWeight)
    with pytest.raises(RuntimeError):  # torch's own
        module(torch.randn(1, 5, 9, 9))
