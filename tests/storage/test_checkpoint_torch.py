# SPDX-License-Identifier: Apache-2.0
"""What people have in .pt files: archived anew, nested, with objects of their own, wrapped."""

import argparse
import collections
import datetime
import enum
import pathlib
import shutil
import subprocess
import sys
import types
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from samples import same, small_state
from torch import nn

from tersor.errors import InputError
from tersor.storage.checkpoint import open_checkpoint


def loaded(source):
    return {name: source.load(name) for name in source.names}


def saved(folder, content, name="model.pt"):
    torch.save(content, folder / name)
    return folder / name


def archived_anew(path, target, compression, shift=0):
    """The same entries in an archive that Python's library wrote."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for number, name in enumerate(old.namelist()):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = compression if number or not shift else zipfile.ZIP_STORED
            entry.extra = bytes(shift)
            new.writestr(entry, old.read(name))
    return target


ZIPPED = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]


@pytest.mark.parametrize("compression", ZIPPED, ids=["stored", "deflated"])
@pytest.mark.parametrize("shift", range(0, 20, 4))
def test_archives_that_others_wrote(tmp_path, compression, shift):
    path = saved(tmp_path, small_state())
    again = archived_anew(path, tmp_path / "again.pt", compression, shift)
    source = open_checkpoint(again)
    assert same(loaded(source), small_state())
    assert source.nbytes <= again.stat().st_size


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the command zip")
def test_what_zip_wrote(tmp_path):
    path = saved(tmp_path, small_state())
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    subprocess.run(["zip", "-qr", "../again.pt", "."], cwd=tmp_path / "out", check=True)
    assert same(loaded(open_checkpoint(tmp_path / "again.pt")), small_state())


def test_other_compressions_are_read_or_refused(tmp_path):
    path = saved(tmp_path, small_state())
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(InputError):
            open_checkpoint(archived_anew(path, tmp_path / "again.pt", kind))


@pytest.mark.parametrize("compression", [None, *ZIPPED], ids=["torch", "stored", "deflated"])
def test_no_damage_of_an_archive_goes_unnoticed(tmp_path, compression):
    path = saved(tmp_path, small_state())
    if compression is not None:
        path = archived_anew(path, tmp_path / "again.pt", compression)
    data = path.read_bytes()
    for place in range(0, len(data), 41):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with suppress(InputError):
            assert same(loaded(open_checkpoint(path)), small_state())  # what nobody reads


def test_files_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, small_state())
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(loaded(open_checkpoint(path)), small_state())


def test_a_folder_with_content_is_refused(tmp_path):
    """PyTorch 2.6 returns a tensor that nobody has filled."""
    path = archived_anew(saved(tmp_path, small_state()), tmp_path / "again.pt", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith("/data/0"))
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    data[data.index(entry.filename.encode(), start) - 8] |= 0x10  # external attributes
    path.write_bytes(data)
    with pytest.raises(InputError, match="a folder of the archive has content"):
        open_checkpoint(path)


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = saved(tmp_path, small_state())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(InputError, match="two entries of the archive have one name"):
        open_checkpoint(path)


class Colour(enum.Enum):
    RED = 1


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("data")),
    "numpy": [np.float64(0.5), np.int64(3), np.arange(3), np.array(["a"])],
    "enum": Colour.RED,
    "date": datetime.datetime(2020, 1, 1),
    "simple": types.SimpleNamespace(a={"b": [1]}),
    "slots": Slots(),
    "set": frozenset({1}),
    "loss": nn.CrossEntropyLoss(),
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_weights_beside_objects_of_strangers(tmp_path, value):
    content = {"state_dict": small_state(), "hyper_parameters": {"value": value}, "own": value}
    source = open_checkpoint(saved(tmp_path, content))
    assert same(loaded(source), small_state())
    assert source.ignored == ("hyper_parameters", "own")


def test_weights_beside_omegaconf(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": {"b": [1, 2, {"c": 3}]}})
    source = open_checkpoint(saved(tmp_path, {"state_dict": small_state(), "config": config}))
    assert same(loaded(source), small_state())


def test_no_module_of_a_stranger_is_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(
        "import pathlib\nclass Config:\n    pass\npathlib.Path('imported').touch()\n"
    )
    script = (
        "import torch, stranger; torch.save({'w': torch.ones(2), 'c': stranger.Config()}, 'm.pt')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "imported").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = open_checkpoint("m.pt")
    assert source.names == ["w"] and source.ignored == ("c",)
    assert not (tmp_path / "imported").exists() and "stranger" not in sys.modules


@pytest.mark.parametrize(
    "content, message",
    [
        (collections.defaultdict(int, a=1), r"defaultdict"),
        (sys.getsizeof, r"sys\.getsizeof.*blocked"),
        ({"model": nn.Linear(3, 3), "epoch": 3}, r"model \(pickled torch.*Linear\), epoch \(int\)"),
        (nn.Linear(3, 3), r"holds a pickled torch\.nn\.modules\.linear\.Linear"),
    ],
    ids=["dictionary", "blocked", "model", "bare model"],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"{message}.*save\(model\.state_dict\(\), path\)"):
        open_checkpoint(saved(tmp_path, content))


class Kind(torch.Tensor):
    pass


class Holder:
    def __init__(self):
        self.values = {"data": [torch.ones(20, 20)]}


@pytest.mark.parametrize("weight", [torch.ones(20, 20).as_subclass(Kind), Holder()], ids=type)
def test_weights_in_objects_are_not_left_out(tmp_path, weight):
    with pytest.raises(InputError, match=r"Kind|Tensor subclass|weight is a pickled .*Holder"):
        open_checkpoint(saved(tmp_path, {"weight": weight, "bias": torch.ones(20)}))


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "model.pt"))
    with pytest.raises(
        InputError, match=r"TorchScript.*torch\.jit\.load\('model\.pt'\)\.state_dict"
    ):
        open_checkpoint(tmp_path / "model.pt")


def optimizer(state):
    model = nn.Linear(20, 20)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(20)).sum().backward()
    adam.step()
    return {**state, "optimizer": adam.state_dict(), "rng": torch.get_rng_state()}


@pytest.mark.parametrize("key", ["model_state", "generator", "net_g", "weights"])
def test_the_only_state_dict_is_found(tmp_path, key):
    path = saved(tmp_path, optimizer({"epoch": 3, key: small_state()}))
    source = open_checkpoint(path)
    assert same(loaded(source), small_state())
    assert source.ignored == ("epoch", "optimizer", "rng")


def test_a_nested_state_dict_is_found_and_named(tmp_path):
    content = {"trainer": optimizer({"model": small_state()}), "epoch": 1}
    path = saved(tmp_path, content)
    for key in (None, "trainer.model"):
        assert same(loaded(open_checkpoint(path, key=key)), small_state())


def test_several_state_dicts_need_a_key(tmp_path):
    ema = {name: tensor + 1 for name, tensor in small_state().items()}
    path = saved(tmp_path, optimizer({"model": small_state(), "ema": ema}))
    message = r"several.*'model' \(6 tensors, 4970 bytes\), 'ema' \(6 tensors.*--key 'model'"
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)
    assert same(loaded(open_checkpoint(path, key="ema")), ema)
    with pytest.raises(
        InputError, match=r"no dictionaries of tensors under the key 'none'; .*'ema'"
    ):
        open_checkpoint(path, key="none")


def test_the_outermost_of_several_has_an_empty_key(tmp_path):
    path = saved(tmp_path, {**small_state(), "ema": small_state(1)})
    with pytest.raises(InputError, match=r"'' \(6 tensors"):
        open_checkpoint(path)
    assert same(loaded(open_checkpoint(path, key="")), small_state())


def test_a_key_of_what_has_none(tmp_path):
    save_file(small_state(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"the key 'model' has no meaning for .*\.safetensors"):
        open_checkpoint(tmp_path / "model.safetensors", key="model")


def test_checkpoints_that_contain_themselves(tmp_path):
    content = dict(small_state())
    content["model"] = content["again"] = content
    source = open_checkpoint(saved(tmp_path, content))
    assert same(loaded(source), small_state()) and source.ignored == ("model", "again")
    a, b = {}, {}
    a["model"], b["model"] = b, a
    with pytest.raises(InputError, match="holds no tensors"):
        open_checkpoint(saved(tmp_path, a))


def test_one_state_dict_under_two_keys(tmp_path):
    state = small_state()
    assert same(loaded(open_checkpoint(saved(tmp_path, {"model": state, "best": state}))), state)


def deep(levels):
    content = {"w": torch.ones(2, 2)}
    for _ in range(levels):
        content = {"a": content}
    return content


def test_deep_nesting_is_given_up(tmp_path):
    assert open_checkpoint(saved(tmp_path, deep(5))).names == ["w"]
    with pytest.raises(InputError, match="holds no tensors"):
        open_checkpoint(saved(tmp_path, deep(100)))


WRAPPED = [
    "module._orig_mod.{}.{}",
    "_orig_mod.module.{}.{}",
    "module.module.{}._orig_mod.{}",
    "{}._orig_mod.{}",
    "_fsdp_wrapped_module.{}._checkpoint_wrapped_module.{}",
]


@pytest.mark.parametrize("pattern", WRAPPED)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_what_wrappers_add_is_dropped(tmp_path, pattern, name):
    state = {pattern.format("conv", kind): torch.ones(2) for kind in ("weight", "bias")}
    if name == "model.pt":
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    assert set(open_checkpoint(tmp_path / name).names) == {"conv.weight", "conv.bias"}


def test_compiled_submodules(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Sequential(nn.Linear(3, 3))))
    names = open_checkpoint(saved(tmp_path, torch.compile(model).state_dict())).names
    assert names == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]


def test_names_that_would_become_equal_stay(tmp_path):
    state = {"a._orig_mod.w": torch.ones(2), "a.w": torch.zeros(2)}
    assert open_checkpoint(saved(tmp_path, state)).names == list(state)


def test_a_prefix_is_dropped_if_asked(tmp_path):
    weight = torch.ones(2)
    state = {"model.a": weight, "model.b": weight, "loss.a": weight, "module.c": torch.ones(1)}
    path = saved(tmp_path, state)
    source = open_checkpoint(path, prefix="model.")
    assert source.names == ["a", "b"] and source.aliases == {"b": "a"}
    assert source.ignored == ("loss.a", "module.c")
    assert open_checkpoint(path).names == list(state)
    with pytest.raises(InputError, match=r"starts with 'net\.'; names start with model\., loss\."):
        open_checkpoint(path, prefix="net.")
    path = saved(tmp_path, {"module.c": torch.ones(1)})
    assert open_checkpoint(path, prefix="").names == ["module.c"]


def test_sizes_are_of_the_weights(tmp_path):
    path = saved(tmp_path, optimizer({"model": small_state(), "more": {"log": torch.ones(99_999)}}))
    source = open_checkpoint(path)
    assert source.nbytes == sum(t.nbytes for t in small_state().values())
    assert f"of {path}; sizes and ratios refer to the weights" in source.notes[0]


def test_sizes_are_of_what_views_show(tmp_path):
    source = open_checkpoint(saved(tmp_path, {"w": torch.ones(1000, 1000)[:2]}))
    assert source.nbytes == 8000


def test_a_few_elements_again_and_again(tmp_path):
    path = saved(tmp_path, {"w": torch.zeros(1).expand(1 << 20, 1 << 20)})
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="views of the same elements"):
        open_checkpoint(path)


def test_shapes_beyond_the_stored_elements(tmp_path):
    """As a hostile pickle has them."""
    path = saved(tmp_path, {"w": torch.arange(12345.0)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(
                (12345).to_bytes(2, "little"), (62345).to_bytes(2, "little")
            )
            new.writestr(name, data)
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "new.pt")
