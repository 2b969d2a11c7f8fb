# SPDX-License-Identifier: Apache-2.0
import json
import pickle
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from samples import same, small_state
from torch import nn

from tersor.errors import InputError
from tersor.storage.checkpoint import open_checkpoint


def loaded(source):
    return {name: source.load(name) for name in source.names}


def saved(folder, content, name="model.pt", **options):
    torch.save(content, folder / name, **options)
    return folder / name


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "PT"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path, suffix, zipped):
    path = saved(tmp_path, small_state(), f"model.{suffix}", _use_new_zipfile_serialization=zipped)
    source = open_checkpoint(path)
    assert same(loaded(source), small_state())
    assert source.names == list(small_state())
    assert source.nbytes == path.stat().st_size


def test_safetensors_files(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(small_state(), path)
    source = open_checkpoint(path)
    assert same(loaded(source), small_state())
    assert source.nbytes == path.stat().st_size


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_nested_torch_files(tmp_path, key):
    inner = {f"module.{name}": tensor for name, tensor in small_state().items()}
    path = saved(tmp_path, {"epoch": 3, key: inner, "optimizer": {"lr": 0.1}})
    source = open_checkpoint(path)
    assert same(loaded(source), small_state())
    assert source.ignored == ("epoch", "optimizer")


def test_a_prefix_of_some_names_stays(tmp_path):
    path = saved(tmp_path, {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert open_checkpoint(path).names == ["module.a", "b"]


def test_what_is_no_tensor_is_listed(tmp_path):
    path = saved(tmp_path, {"w": torch.ones(2), "classes": ["cat", "dog"], "step": 3})
    source = open_checkpoint(path)
    assert source.names == ["w"] and source.ignored == ("classes", "step")


def test_tied_tensors_are_aliases(tmp_path):
    weight = nn.Parameter(torch.randn(4, 3))
    path = saved(tmp_path, {"a": weight, "b": weight, "row": weight[0], "copy": weight.clone()})
    source = open_checkpoint(path)
    assert source.aliases == {"b": "a"}
    assert not any(tensor.requires_grad for tensor in loaded(source).values())


def index(folder, weight_map, name="model.safetensors.index.json"):
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def shards(tmp_path):
    state = small_state()
    names = list(state)
    save_file({n: state[n] for n in names[:3]}, tmp_path / "one.safetensors")
    save_file({n: state[n] for n in names[3:]}, tmp_path / "two.safetensors")
    return dict.fromkeys(names[:3], "one.safetensors") | dict.fromkeys(names[3:], "two.safetensors")


def test_sharded_files(tmp_path, shards):
    source = open_checkpoint(index(tmp_path, shards))
    assert same(loaded(source), small_state())
    assert source.nbytes == sum(
        (tmp_path / n).stat().st_size for n in ("one.safetensors", "two.safetensors")
    )


def test_tensors_that_the_index_leaves_out_are_listed(tmp_path, shards):
    del shards["conv.bias"]
    source = open_checkpoint(index(tmp_path, shards))
    assert "conv.bias" not in source.names
    assert source.ignored == ("conv.bias in one.safetensors",)


def test_tied_tensors_within_torch_shards(tmp_path):
    weight = torch.randn(4, 3)
    saved(tmp_path, {"b": weight, "a": weight}, "one.bin")
    source = open_checkpoint(index(tmp_path, {"a": "one.bin", "b": "one.bin"}))
    assert source.names == ["b", "a"] and source.aliases == {"a": "b"}


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"w": "none.safetensors"}, r"no such file: .*none\.safetensors"),
        ({"w": "one.safetensors"}, "one.safetensors lacks the tensor 'w'"),
        ({"w": "../one.safetensors"}, "names '../one.safetensors'; the shards must be"),
        ({"w": "/etc/passwd"}, "names '/etc/passwd'"),
        ({"w": "sub/one.safetensors"}, "names 'sub/one.safetensors'"),
        ({"w": ".."}, "no such file"),
        ({"w": "."}, "names '.'"),
        ({"w": ""}, "no such file"),
        ({"w": "folder"}, "no such file"),
        ({"w": "model.safetensors.index.json"}, "names 'model.safetensors.index.json'"),
        ({"w": "a\0b"}, "no such file"),
        ({"w": 3}, "is not the index of a checkpoint"),
        ({}, "holds no tensors"),
        ([], "is not the index of a checkpoint"),
        ("no json", "is not the index of a checkpoint"),
        ("[" * 100_000, "is not the index of a checkpoint"),
        ("{}", "is not the index of a checkpoint"),
        ('"text"', "is not the index of a checkpoint"),
    ],
    ids=str,
)
def test_invalid_indexes_are_refused(tmp_path, shards, weight_map, message):
    (tmp_path / "folder").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(InputError, match=message):
        open_checkpoint(index(tmp_path, weight_map))


def test_missing_files_directories_and_other_kinds(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"ends in \.safetensors.* this file in \.h5"):
        open_checkpoint(tmp_path / "model.h5")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"just some text\n" * 50, b"\x80\x02}", b"PK\x03\x04"])
def test_other_content_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is not a valid safetensors file|it is damaged"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_truncated_checkpoints_are_refused(tmp_path, name, options):
    path = tmp_path / name
    if name == "model.pt":
        torch.save(small_state(), path, **options)
    else:
        save_file(small_state(), path)
    data = path.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            open_checkpoint(path)


class Harmful:
    def __reduce__(self):
        return (open, ("harm.txt", "w"))


@pytest.mark.parametrize("nested", [False, True])
def test_no_code_is_run(tmp_path, monkeypatch, nested):
    monkeypatch.chdir(tmp_path)
    content = {"w": torch.ones(2), "harmful": Harmful()} if nested else Harmful()
    saved(tmp_path, content)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(content, protocol=2))
    refused = pytest.raises(InputError, match=r"could run code.* save the weights")
    with refused:
        open_checkpoint(tmp_path / "raw.pt")
    with nullcontext() if nested else refused:
        source = open_checkpoint(tmp_path / "model.pt")
        assert source.names == ["w"] and source.ignored == ("harmful",)
    assert not (tmp_path / "harm.txt").exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        open_checkpoint(saved(tmp_path, nn.Linear(3, 3)))


@pytest.mark.parametrize(
    "content, message",
    [
        ([torch.ones(2)], "holds a list; a dictionary of tensors"),
        (torch.ones(2), "holds a Tensor"),
        (None, "holds a NoneType"),
        ({}, "holds no tensors"),
        ({"lr": 0.1}, "holds no tensors"),
        ({1: torch.ones(2), "1": torch.ones(2)}, "the same name"),
    ],
    ids=["list", "tensor", "nothing", "empty", "no tensors", "same names"],
)
def test_checkpoints_without_named_tensors_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        open_checkpoint(saved(tmp_path, content))


def test_unreadable_files_are_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, small_state())
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(InputError, match="you lack the permission"):
        open_checkpoint(path)


def test_types_that_torch_cannot_read_name_the_tensor(tmp_path):
    """The safetensors format goes ahead of PyTorch."""
    header = b'{"w":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(3)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors: tensor 'w' cannot be read"):
        open_checkpoint(tmp_path / "model.safetensors").load("w")
