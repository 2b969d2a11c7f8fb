# SPDX-License-Identifier: Apache-2.0
"""Weights of 8 bits are read as what they mean; packed ones are refused."""

import pytest
import torch
from safetensors.torch import save_file
from samples import generator, same

from tersor.compression.driver import compress_source, keep_all
from tersor.errors import InputError
from tersor.storage.checkpoint import open_checkpoint

FP8 = torch.float8_e4m3fn


def opened(folder, state, **options):
    save_file(state, folder / "model.safetensors")
    return open_checkpoint(folder / "model.safetensors", **options)


def drawn(*shape):
    return torch.randn(*shape, generator=generator()) * 0.05


def in_blocks(weight, rows, columns):
    """As DeepSeek's conversion does it: one scale for each block, the last ones cut off."""
    height, width = (-(-n // b) for n, b in zip(weight.shape, (rows, columns), strict=True))
    scales, values = torch.zeros(height, width), torch.zeros(weight.shape, dtype=FP8)
    for i in range(height):
        for j in range(width):
            part = slice(rows * i, rows * (i + 1)), slice(columns * j, columns * (j + 1))
            scales[i, j] = weight[part].abs().max() / 448
            values[part] = (weight[part] / scales[i, j]).to(FP8)
    return values, scales


def is_close(found, weight, step):
    """Whether a weight is what was quantized, within a step relative to its largest element."""
    assert found.dtype == torch.bfloat16 and found.shape == weight.shape
    return float((found.float() - weight).abs().max()) <= step * float(weight.abs().max())


@pytest.mark.parametrize("shape", [(256, 384), (300, 200), (128, 128), (7, 1000), (129, 127)])
def test_squares_with_a_scale_each(tmp_path, shape):
    weight = drawn(*shape)
    values, scales = in_blocks(weight, 128, 128)
    state = {"up.weight": values, "up.weight_scale_inv": scales, "norm.weight": torch.ones(9)}
    source = opened(tmp_path, state)
    assert source.names == ["norm.weight", "up.weight"]
    assert is_close(source.load("up.weight"), weight, 1 / 20)
    [note] = source.notes
    assert "'up.weight'" in note and "read as the bfloat16 weights that they mean" in note


@pytest.mark.parametrize("blocks", [(1, 32), (64, 96), (256, 32)])
def test_equal_blocks_of_other_sizes(tmp_path, blocks):
    weight = drawn(256, 192)
    values, scales = in_blocks(weight, *blocks)
    source = opened(tmp_path, {"a.weight": values, "a.weight_scale": scales})
    assert is_close(source.load("a.weight"), weight, 1 / 20)


@pytest.mark.parametrize("axes", [(), (1,), (64, 1), (64,), (1, 1)], ids=str)
@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv", "scale_weight"])
@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_one_scale_for_all_or_for_each_row(tmp_path, axes, suffix, dtype):
    weight = drawn(64, 32)
    largest = weight.abs().amax(dim=1) if 64 in axes else weight.abs().max()
    scale = (largest / 400).reshape(axes)
    values = (weight / scale.reshape(-1, 1)).to(dtype)
    state = {"a.weight": values, f"a.{suffix}": scale, "a.input_scale": torch.tensor(1.0)}
    source = opened(tmp_path, state)
    assert source.names == ["a.weight"]
    assert source.ignored == ("a.input_scale",)
    assert is_close(source.load("a.weight"), weight, 1 / 6)


def test_stacked_experts(tmp_path):
    weight = drawn(3, 256, 128)
    pairs = [in_blocks(w, 128, 128) for w in weight]
    values, scales = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    name = "mlp.experts.gate_up_proj"
    source = opened(tmp_path, {name: values, f"{name}_scale_inv": scales})
    assert source.names == [name] and is_close(source.load(name), weight, 1 / 20)


def test_bitsandbytes(tmp_path):
    """Int8 with the largest magnitude of each row, as its documentation says."""
    weight = drawn(64, 48)
    largest = weight.abs().amax(dim=1)
    values = (weight * 127 / largest[:, None]).round().to(torch.int8)
    state = {
        "a.weight": values,
        "a.SCB": largest,
        "a.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    source = opened(tmp_path, state)
    assert source.names == ["a.weight"] and is_close(source.load("a.weight"), weight, 1 / 120)


def test_integers_with_zero_points(tmp_path):
    weight = drawn(64, 48) + 0.02
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    values = (weight / scale + zero).round().clamp(-128, 127).to(torch.int8)
    state = {"weight": values, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
    source = opened(tmp_path, state)
    assert source.names == ["weight"] and is_close(source.load("weight"), weight, 1 / 100)


def test_lossless_keeps_what_is_stored(tmp_path):
    values, scales = in_blocks(drawn(128, 128), 128, 128)
    state = {"weight": values, "weight_scale_inv": scales}
    archive = keep_all(opened(tmp_path, state, exact=True))
    assert same({name: archive.tensor(name) for name in archive.entries}, state)


def test_the_ratio_is_of_the_stored_bytes(tmp_path):
    values, scales = in_blocks(drawn(256, 256), 128, 128)
    source = opened(tmp_path, {"weight": values, "weight_scale_inv": scales})
    assert source.nbytes == (tmp_path / "model.safetensors").stat().st_size
    archive = compress_source(source, ratio=4)
    assert archive.is_factored("weight") and archive.tensor("weight").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [FP8, torch.int8])
def test_without_scales_they_are_kept(tmp_path, dtype):
    state = {"a.weight": drawn(20, 20).mul(500).to(dtype), "b.weight": drawn(20, 20)}
    source = opened(tmp_path, state)
    assert same({name: source.load(name) for name in source.names}, state)
    [note] = source.notes
    assert "without scales (1, such as 'a.weight') are kept" in note and "convert" in note


def test_other_integers_need_no_words(tmp_path):
    state = {
        "mask": torch.ones(30, 30, dtype=torch.bool),
        "bytes": torch.zeros(30, 30, dtype=torch.uint8),
        "position_ids": torch.arange(1000)[None],
        "few": torch.ones(2, 2, dtype=torch.int8),
    }
    source = opened(tmp_path, state)
    assert source.names == sorted(state) and not source.notes


@pytest.mark.parametrize("axes", [(3,), (2, 3), (63, 1), (0,), (64, 1, 1)], ids=str)
def test_scales_that_do_not_fit_are_refused(tmp_path, axes):
    state = {"a.weight": drawn(64, 32).to(FP8), "a.weight_scale": torch.ones(axes)}
    with pytest.raises(InputError, match=r"'a.weight' has the shape \(64, 32\), 'a.weight_scale'"):
        opened(tmp_path, state)


@pytest.mark.parametrize(
    "names",
    [
        ["q.qweight", "q.qzeros", "q.scales"],
        ["q.weight_packed", "q.weight_scale", "q.weight_shape"],
        ["q.weight", "q.weight_scale", "q.weight_scale_2"],
        ["q.weight", "q.weight.absmax", "q.weight.quant_map"],
        ["experts.down_proj_blocks", "experts.down_proj_scales"],
        ["q.W_q", "q.meta"],
    ],
    ids=str,
)
def test_packed_numbers_are_refused_unless_kept(tmp_path, names):
    state = {name: torch.zeros(20, 20, dtype=torch.uint8) for name in names}
    with pytest.raises(InputError, match=r"packed numbers \(.*before quantization.*--lossless"):
        opened(tmp_path, state)
    assert opened(tmp_path, state, exact=True).names == sorted(names)


def test_ordinary_names_are_no_sign_of_packing(tmp_path):
    state = {"res_blocks": drawn(20, 20), "a.weight_scale": drawn(20, 20), "SCB": drawn(3, 3)}
    state["b.qweight"] = torch.ones(20, 3, dtype=torch.int8)
    source = opened(tmp_path, state)
    assert same({name: source.load(name) for name in source.names}, state)


def test_tied_weights_of_eight_bits(tmp_path):
    values, scales = in_blocks(drawn(128, 128), 128, 128)
    for own in (True, False):
        state = {"a.weight": values, "a.weight_scale_inv": scales, "b.weight": values}
        if own:
            state["b.weight_scale_inv"] = 2 * scales
        torch.save(state, tmp_path / "model.pt")
        source = open_checkpoint(tmp_path / "model.pt")
        a, b = (source.load(name) for name in ("a.weight", "b.weight"))
        assert torch.equal(b, a * 2 if own else a)
        assert source.aliases == ({} if own else {"b.weight": "a.weight"})
