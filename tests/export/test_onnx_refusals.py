# SPDX-License-Identifier: Apache-2.0
"""What exports to ONNX and their sessions refuse, and what they say then."""

import json
import sys

import pytest
import torch
from onnx_models import Tied, Wrapped, close, compressed, mlp, reference, run
from torch import nn

import tersor
from tersor.errors import FileFormatError, InputError, MissingExtraError

for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="pip install 'tersor[onnx,onnx-runtime]'")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("package", "extra"),
    [("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx-runtime")],
)
def test_a_missing_package_names_its_extra(tmp_path, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'tersor\[{extra}\]'"):
        tersor.export.onnx(compressed(mlp()), torch.randn(2, 64), tmp_path / "out")
    if package == "onnxruntime":
        with pytest.raises(MissingExtraError, match=rf"pip install 'tersor\[{extra}\]'"):
            tersor.export.onnx_session(tmp_path)
        done = tersor.export.onnx(
            compressed(mlp()), torch.randn(2, 64), tmp_path / "out", check=False
        )
        assert done.error is None


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported") / "out"
    tersor.export.onnx(compressed(mlp()), torch.randn(2, 64), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(exported, tmp_path):
    for name, data in exported.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("hashed", [True, False])
def test_a_skeleton_of_another_file_is_refused(folder, hashed):
    torch.manual_seed(1)
    tersor.save(compressed(mlp()), folder / "model.tersor", content_hash=hashed)
    with pytest.raises(InputError, match=r"is not the file that .* was exported with"):
        tersor.export.onnx_session(folder)
    found = json.loads((folder / "map.json").read_text())
    with tersor.open(folder / "model.tersor") as file:
        found["content_hash"] = file.content_hash
    if hashed:  # the map of that file, but not its skeleton
        (folder / "map.json").write_text(json.dumps(found))
        with pytest.raises(InputError, match="exported with another file than the one beside it"):
            tersor.export.onnx_session(folder)


def test_a_damaged_file_is_refused(folder):
    data = bytearray((folder / "model.tersor").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.tersor").write_bytes(data)
    with pytest.raises(FileFormatError, match=r"model\.tersor"):
        tersor.export.onnx_session(folder)


@pytest.mark.parametrize("name", ["skeleton.onnx", "model.tersor", "map.json"])
def test_a_missing_file_is_said(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is not there"):
        tersor.export.onnx_session(folder)


def test_a_damaged_skeleton_is_refused(folder):
    path = folder / "skeleton.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"ONNX Runtime .* refuses the graph"):
        tersor.export.onnx_session(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"version": 1, "content_hash": "", "initializers": [1]}', "is damaged"),
        ('{"version": 2, "content_hash": "", "initializers": []}', "is of version 2"),
    ],
)
def test_a_map_that_cannot_be_read_is_refused(folder, text, message):
    (folder / "map.json").write_text(text)
    with pytest.raises(InputError, match=message):
        tersor.export.onnx_session(folder)


def test_a_map_of_unknown_tensors_is_refused(folder):
    found = json.loads((folder / "map.json").read_text())
    found["initializers"].append("other")
    (folder / "map.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="names other, which the file lacks"):
        tersor.export.onnx_session(folder)


def test_a_branch_on_values_is_refused_with_its_module(tmp_path):
    model = compressed(Wrapped(Branch()))
    with pytest.raises(
        InputError, match=r"torch.export cannot trace .* in after \(Branch\): Guard"
    ):
        tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    model = compressed(Wrapped(lambda x: torch.linalg.svd(x)[1]))
    with pytest.raises(InputError, match="linalg_svd"):
        tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")


def test_outputs_that_are_no_tensors_are_refused(tmp_path):
    model = compressed(Wrapped(lambda x: (x, 3)))
    with pytest.raises(InputError, match="returns int among its outputs"):
        tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")


def test_outputs_that_differ_leave_the_earlier_folder(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = compressed(Wrapped(lambda x: x + torch.randn(64)))
    with pytest.raises(InputError, match="differ from those of torch"):
        tersor.export.onnx(model, torch.randn(2, 64), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_existing_folder_is_replaced(folder):
    model, x = compressed(mlp(), ratio=8), torch.randn(2, 64)
    tersor.export.onnx(model, x, folder)
    assert {p.name for p in folder.iterdir()} == {"skeleton.onnx", "model.tersor", "map.json"}
    assert close(run(folder, {"input": x})["output"], reference(model, x))


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (mlp, torch.zeros(2, 64), {}, "holds no factors .* call tersor.compress first"),
        (Tied, {"tokens": torch.zeros(1, 2)}, {}, "do not fit Tied.forward.*'offset'"),
        (mlp, {"input": 3}, {}, "hold no tensor"),
        (
            mlp,
            torch.zeros(2, 64),
            {"dynamic": {"y": {0: "n"}}},
            "names y, but the inputs are input",
        ),
        (mlp, torch.zeros(1, 64), {"dynamic": {"input": {0: "n"}}}, "a length of 2 or more"),
        (mlp, torch.zeros(2, 64), {"dynamic": {"input": {2: "n"}}}, "axis 2 of 'input'"),
        (mlp, torch.zeros(2, 3), {}, "cannot trace|raised"),
    ],
)
def test_what_users_get_wrong(tmp_path, model, inputs, options, message):
    made = model() if "no factors" in message else compressed(model())
    with pytest.raises(InputError, match=message):
        tersor.export.onnx(made, inputs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be(tmp_path):
    model, x = compressed(mlp()), torch.randn(2, 64)
    with pytest.raises(InputError, match="does not exist; create it first"):
        tersor.export.onnx(model, x, tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        tersor.export.onnx(model, x, tmp_path / "file")
