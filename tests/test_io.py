# SPDX-License-Identifier: Apache-2.0
"""Files: save, load, load_state_dict, inspect, export."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from samples import (
    Net,
    bits,
    make_net,
    plain,
    random_factors,
    same,
    small_archive,
    small_state,
    to_file_bytes,
)
from torch import nn

import tersor
from tersor.coding import records
from tersor.errors import FileFormatError, InputError
from tersor.io import dense_tensors, export_safetensors
from tersor.storage import container, dtypes
from tersor.storage.archive import Archive, Entry, Reason
from tersor.storage.opened import OpenFile


@pytest.fixture
def path(tmp_path):
    container.write(tmp_path / "model.tersor", small_archive())
    return tmp_path / "model.tersor"


def test_dense_models_are_saved_without_loss(tmp_path):
    model = make_net()
    report = tersor.save(model, tmp_path / "model.tersor")
    assert not report.factored
    back = tersor.load_state_dict(tmp_path / "model.tersor")
    for name in ("conv.weight", "embed.weight", "positions", "norm.num_batches_tracked"):
        assert bits(back[name]) == bits(model.state_dict()[name])
    assert back["head.weight"] is back["embed.weight"]


def test_lossless_changes_no_bit(tmp_path):
    """Not even of what is rounded to 16 bits otherwise, or of what cannot be factored."""
    model = make_net()
    model.norm.bias.data = torch.randn(16)
    model.conv.weight.data[0, 0, 0, :2] = torch.tensor([torch.nan, -0.0])
    report = tersor.save(model, tmp_path / "model.tersor", lossless=True)
    assert report.lossless and tersor.inspect(tmp_path / "model.tersor") == report
    assert same(tersor.load_state_dict(tmp_path / "model.tersor"), dict(model.state_dict()))
    back = tersor.load(tmp_path / "model.tersor", make_net(1))
    assert same(dict(back.state_dict()), dict(model.state_dict()))


def test_lossless_keeps_factors(tmp_path):
    model = make_net()
    tersor.compress(model, ratio=3)
    model.norm.bias.data = torch.randn(16)
    report = tersor.save(model, tmp_path / "model.tersor", lossless=True)
    assert report.factored and not report.lossless
    back = tersor.load(tmp_path / "model.tersor", make_net(1))
    assert torch.equal(back.norm.bias, model.norm.bias)
    assert torch.equal(back.conv.weight, model.conv.weight)


def test_dense_models_are_loaded(tmp_path):
    tersor.save(make_net(), tmp_path / "model.tersor")
    model = make_net(1)
    assert tersor.load(tmp_path / "model.tersor", model) is model
    assert torch.equal(model.conv.weight, make_net().conv.weight)


def test_a_state_dict_has_what_went_in(path):
    tensors = tersor.load_state_dict(path)
    assert list(tensors) == ["layer.weight", "layer.bias", "layer.steps", "tied.weight"]
    assert tensors["tied.weight"] is tensors["layer.weight"]
    assert torch.equal(tensors["layer.bias"], torch.arange(4.0))
    assert tensors["layer.steps"].tolist() == [3, -1]


def test_inspect_tells_the_real_size(path):
    assert tersor.inspect(path).nbytes == path.stat().st_size


def test_files_say_of_themselves_what_they_are_given(tmp_path):
    path, metadata = tmp_path / "net.tersor", {"name": "net", "licence": "MIT"}
    plain = tersor.save(make_net(), path)
    assert plain.metadata == {} and plain.content_hash is None
    report = tersor.save(make_net(), path, metadata=metadata, content_hash=True)
    assert report.nbytes == path.stat().st_size and report == tersor.inspect(path)
    with tersor.open(path) as file:
        assert file.metadata == report.metadata == metadata
        assert file.content_hash == report.content_hash
    with pytest.raises(InputError, match="must be text"):
        tersor.save(make_net(), path, metadata={"year": 2022})
    assert tersor.inspect(path) == report


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5)
        self.extra = nn.Linear(3, 3)


@pytest.mark.parametrize(
    "model, message",
    [
        (Other(), r"lacks norm\.weight, .* and 4 more; .* beside .*: ?extra|extra\.weight"),
        (Other(), r"conv\.weight \(16, 3, 3, 3\) in the file, \(16, 3, 5, 5\) in the model"),
        (
            nn.Sequential(Net()),
            r"does not fit a Sequential: the model lacks positions, conv\.weight",
        ),
    ],
)
def test_another_model_is_refused_with_the_names(tmp_path, model, message):
    tersor.save(make_net(), tmp_path / "model.tersor")
    before = {n: bits(t) for n, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        tersor.load(tmp_path / "model.tersor", model)
    assert {n: bits(t) for n, t in model.state_dict().items()} == before


@pytest.fixture
def deceiving(tmp_path):
    """A file whose sections are whole, but one does not hold what it should."""
    good = records.encode(random_factors((20, 20), 4, 4))
    bad = replace(good, streams=(good.streams[0] + b"\1" * 9,))
    entries = {
        n: Entry((20, 20), torch.float32, e) for n, e in (("0.weight", good), ("1.weight", bad))
    }
    container.write(tmp_path / "model.tersor", Archive(entries, 1))
    return tmp_path / "model.tersor"


def two_layers():
    return nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))


def test_damaged_sections_leave_the_model_unchanged(deceiving):
    data = bytearray(deceiving.read_bytes())
    data[-1] ^= 1
    deceiving.write_bytes(data)
    model = two_layers()
    before = {n: bits(t) for n, t in model.state_dict().items()}
    with pytest.raises(FileFormatError, match=r"model\.tersor: section 1 is damaged"):
        tersor.load(deceiving, model)
    assert {n: bits(t) for n, t in model.state_dict().items()} == before


@pytest.mark.parametrize("use", [tersor.load_state_dict, lambda p: tersor.load(p, two_layers())])
def test_what_no_checksum_tells_is_found_by_decoding(deceiving, use):
    with pytest.raises(FileFormatError, match=r"model\.tersor: .*data left over"):
        use(deceiving)


@pytest.mark.parametrize("use", [tersor.load_state_dict, tersor.inspect])
def test_damaged_files_are_refused(path, use):
    data = path.read_bytes()
    for damaged in (data[:50], data[:-1], data + b"\0", data[:60] + b"\xff" + data[61:], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"model\.tersor: "):
            use(path)
    with pytest.raises(InputError, match="is not there"):
        use(path.with_name("none.tersor"))
    with pytest.raises(InputError, match="is a directory"):
        use(path.parent)


@pytest.mark.parametrize("dtype", dtypes.NAMES)
def test_exported_tensors_have_their_types(tmp_path, dtype):
    raw = torch.arange(64, dtype=torch.uint8)
    tensor = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    container.write(tmp_path / "m.tersor", Archive({"t": plain(tensor, Reason.VECTOR)}, 1))
    size = export_safetensors(tmp_path / "m.tersor", tmp_path / "m.safetensors")
    assert size == (tmp_path / "m.safetensors").stat().st_size
    assert bits(load_file(tmp_path / "m.safetensors")["t"]) == bits(tensor)


def test_exported_weights_are_the_dense_ones(path):
    output = path.with_name("dense.safetensors")
    export_safetensors(path, output)
    tensors = load_file(output)
    assert same(dict(sorted(tensors.items())), dict(sorted(tersor.load_state_dict(path).items())))


@pytest.mark.parametrize("shape, tile", [((5, 7), 4), ((3, 2, 3, 3), 5), ((4,), 1), ((6, 9), 1)])
def test_padded_weights_can_be_exported(tmp_path, shape, tile):
    factors = random_factors(shape, tile, 2)
    entries = {"w": Entry(shape, torch.float32, records.encode(factors))}
    container.write(tmp_path / "m.tersor", Archive(entries, 1))
    export_safetensors(tmp_path / "m.tersor", tmp_path / "m.safetensors")
    assert bits(load_file(tmp_path / "m.safetensors")["w"]) == bits(factors.recompose())


def test_outputs_that_are_no_safetensors_are_refused(path):
    with pytest.raises(InputError, match=r"give a name in \.safetensors"):
        export_safetensors(path, path.with_name("dense.pt"))
    with pytest.raises(InputError, match="is the input itself"):
        export_safetensors(path, path)


def test_a_full_disk_leaves_the_earlier_file(path, monkeypatch):
    output = path.with_name("dense.safetensors")
    output.write_text("earlier")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        export_safetensors(path, output)
    assert caught.value.filename == str(output)
    assert output.read_text() == "earlier"
    assert sorted(p.name for p in path.parent.iterdir()) == ["dense.safetensors", "model.tersor"]


def test_saving_to_a_full_disk_leaves_the_earlier_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        tersor.save(make_net(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_stored_leaves_the_earlier_file(path):
    before = path.read_bytes()
    model = make_net()
    model.register_buffer("scales", torch.ones(3, dtype=torch.complex128))
    with pytest.raises(InputError, match=r"'scales' has the data type torch\.complex128"):
        tersor.save(model, path)
    model = make_net()
    model.conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"'conv\.weight' has 1 elements that are NaN"):
        tersor.save(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"the folder .*none does not exist"):
        tersor.save(make_net(), tmp_path / "none" / "model.tersor")


def test_every_kind_of_tensor_comes_back_dense():
    archive = small_archive()
    assert same(dense_tensors(OpenFile(to_file_bytes(archive))), dense_tensors(archive))
    assert set(small_state()) >= {"empty", "head.scale"}


@pytest.mark.parametrize(
    "use",
    [
        tersor.load_state_dict,
        lambda path, **options: tersor.load(path, make_net(), **options),
        lambda path, **options: export_safetensors(
            path, path.with_suffix(".safetensors"), **options
        ),
    ],
)
def test_a_limit_of_memory(tmp_path, use):
    """Exactly what the dense tensors and the factors take is enough."""
    path = tmp_path / "model.tersor"
    tersor.save(make_net(), path)
    total = sum(t.nbytes for t in make_net().state_dict().values())
    use(path, max_bytes=total)
    use(path, max_bytes="1 MB")
    with pytest.raises(FileFormatError, match=f"takes {total} bytes; at most {total - 1} are"):
        use(path, max_bytes=total - 1)
    with pytest.raises(InputError, match="not a size: '0'"):
        use(path, max_bytes=0)


def test_load_looks_at_the_model_twice(tmp_path, monkeypatch):
    """Once before it changes anything, and once to see what the model holds at the end."""
    model = make_net()
    tersor.save(model, tmp_path / "m.tersor")
    looks, state_dict = [], nn.Module.state_dict

    def counted(module, *args, **kwargs):
        looks.append(module)
        return state_dict(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "state_dict", counted)
    tersor.load(tmp_path / "m.tersor", model)
    assert looks.count(model) == 2
