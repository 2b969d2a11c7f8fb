"""Models exported to ONNX compute in ONNX Runtime what they compute in torch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from benchmarks.lib.cifar10 import ResNet20
from tersor.errors import FileFormatError, InputError, MissingExtraError

onnx = pytest.importorskip("onnx", reason="pip install 'tersor[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="pip install 'tersor[onnx-runtime]'")

ARTIFACTS = Path(__file__).parents[2] / "benchmarks" / "artifacts"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def compressed(model, ratio=4):
    """A model that holds factors, with statistics of batch normalisation that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    tersor.compress(model, ratio=ratio)
    return model


def mlp():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def cnn():
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(32, 64, batch_first=True), nn.Linear(64, 32)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Tied(nn.Module):
    """Token numbers and vectors in, two outputs by name, one weight at two places."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, *, offset):
        hidden = self.embedding(tokens) + offset
        return {"logits": self.head(hidden), "hidden": hidden}


class Wrapped(nn.Module):
    """A linear layer, and a function after it."""

    def __init__(self, after):
        super().__init__()
        self.linear, self.after = nn.Linear(64, 64), after

    def forward(self, x):
        return self.after(self.linear(x))


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config)


def run(folder, feeds):
    session = tersor.export.onnx_session(folder)
    found = session.run(None, {name: x.numpy() for name, x in feeds.items()})
    return dict(zip([o.name for o in session.get_outputs()], found, strict=True))


def reference(model, *args, **kwargs):
    with torch.no_grad():
        return model.eval()(*args, **kwargs)


def close(found, wanted, tolerance=1e-4):
    scale = wanted.abs().max().item()
    return np.abs(found - wanted.numpy()).max() <= tolerance * scale


@pytest.mark.parametrize("batch", [1, 4], ids=["one", "several"])
def test_a_cnn_takes_any_batch(tmp_path, batch):
    model = compressed(cnn())
    done = tersor.export.onnx(model, torch.randn(batch, 8, 12, 12), tmp_path / "out")
    assert done.error < 1e-5 and done.notes == ()
    x = torch.randn(7, 8, 12, 12)
    assert close(run(tmp_path / "out", {"input": x})["output"], reference(model, x))


def test_the_graph_holds_no_weights(tmp_path):
    model = compressed(cnn())
    done = tersor.export.onnx(model, torch.randn(2, 8, 12, 12), tmp_path / "out")
    graph = onnx.load(tmp_path / "out" / "skeleton.onnx", load_external_data=False).graph
    outside = {
        tensor.name for tensor in graph.initializer if tensor.data_location == tensor.EXTERNAL
    }
    assert outside == {name for name in cnn().state_dict() if "num_batches" not in name}
    assert {*json.loads((tmp_path / "out" / "map.json").read_text())["initializers"]} == outside
    assert not graph.value_info and not any(node.metadata_props for node in graph.node)
    # Nothing keeps ONNX Runtime from fusing convolutions with what normalises their outputs.
    kinds = [node.op_type for node in graph.node]
    assert kinds[:3] == ["Conv", "BatchNormalization", "Relu"]
    assert done.nbytes["skeleton.onnx"] < 4000
    assert done.nbytes == {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(tmp_path, kind):
    model = compressed(Recurrent(kind))
    assert tersor.export.onnx(model, torch.randn(2, 5, 32), tmp_path / "out").error < 1e-5
    x = torch.randn(3, 5, 32)
    assert close(run(tmp_path / "out", {"x": x})["output"], reference(model, x))


def test_an_encoder_with_two_dynamic_axes(tmp_path):
    model = compressed(nn.TransformerEncoderLayer(64, 4, 64, batch_first=True))
    axes = {"src": {0: "batch", 1: "length"}}
    tersor.export.onnx(model, (torch.randn(2, 5, 64),), tmp_path / "out", dynamic=axes)
    session = tersor.export.onnx_session(tmp_path / "out")
    assert (
        session.get_inputs()[0].shape == session.get_outputs()[0].shape == ["batch", "length", 64]
    )
    x = torch.randn(3, 9, 64)
    assert close(run(tmp_path / "out", {"src": x})["output"], reference(model, x))


def test_a_model_of_transformers_keeps_its_names(tmp_path):
    model = compressed(bert())
    axes = {0: "batch", 1: "length"}
    example = {
        "input_ids": torch.randint(100, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
    }
    tersor.export.onnx(model, example, tmp_path / "out", dynamic=dict.fromkeys(example, axes))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    feeds = {"input_ids": torch.randint(100, (3, 9)), "attention_mask": mask}
    found, wanted = run(tmp_path / "out", feeds), reference(model, **feeds)
    assert [*found] == ["last_hidden_state", "pooler_output"]
    assert all(close(value, wanted[name]) for name, value in found.items())


def test_several_inputs_and_outputs_and_a_tied_weight(tmp_path):
    model = compressed(Tied())
    example = {"offset": torch.randn(2, 5, 64), "tokens": torch.randint(100, (2, 5))}
    tersor.export.onnx(model, example, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "map.json").read_text())["initializers"]) == 1
    feeds = {"tokens": torch.randint(100, (3, 5)), "offset": torch.randn(3, 5, 64)}
    found, wanted = run(tmp_path / "out", feeds), reference(model, **feeds)
    assert {*found} == {"logits", "hidden"}
    assert all(close(found[name], wanted[name]) for name in found)


def test_names_can_be_given(tmp_path):
    names = {"input_names": ["pixels"], "output_names": ["a", "b"]}
    model = compressed(Wrapped(lambda x: (x, x.relu())))
    tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out", **names)
    assert [*run(tmp_path / "out", {"pixels": torch.randn(2, 64)})] == ["a", "b"]
    with pytest.raises(InputError, match="output_names has 1 names for 2 outputs"):
        tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "b", output_names=["a"])
    assert not (tmp_path / "b").exists()


def test_an_input_that_is_an_output_keeps_its_name(tmp_path):
    class Both(Wrapped):
        def forward(self, x, unused):
            return super().forward(x), x

    model = compressed(Both(nn.ReLU()))
    tersor.export.onnx(model, (torch.randn(2, 64), torch.randn(2, 3)), tmp_path / "out")
    feeds = {"x": torch.randn(3, 64), "unused": torch.randn(3, 3)}
    found = run(tmp_path / "out", feeds)
    assert close(found["output_0"], reference(model, **feeds)[0])
    assert np.array_equal(found["output_1"], feeds["x"].numpy())


def test_nested_inputs_and_integer_outputs(tmp_path):
    class Nested(Wrapped):
        def forward(self, parts, flag=True):
            y = super().forward(parts["a"]) + parts["b"][0]
            return y.argmax(-1) if flag else y

    model = compressed(Nested(nn.ReLU()))
    example = {"parts": {"a": torch.randn(2, 64), "b": [torch.randn(2, 64)]}, "flag": True}
    assert tersor.export.onnx(model, example, tmp_path / "out").error == 0
    a, b = torch.randn(3, 64), torch.randn(3, 64)
    found = run(tmp_path / "out", {"parts_a": a, "parts_b_0": b})["output"]
    assert np.array_equal(found, reference(model, {"a": a, "b": [b]}).numpy())


def test_infinite_outputs_are_compared(tmp_path):
    model = compressed(Wrapped(lambda x: x.masked_fill(x > 0, float("-inf"))))
    assert tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out").error < 1e-5


def test_half_precision(tmp_path):
    model = compressed(mlp().half())
    assert tersor.export.onnx(model, torch.randn(2, 64).half(), tmp_path / "out").error < 5e-3
    assert run(tmp_path / "out", {"input": torch.randn(2, 64).half()})["output"].dtype == np.float16


def test_what_the_processor_cannot_compute_in_bfloat16_is_said(tmp_path):
    model, x = compressed(mlp().bfloat16()), torch.randn(2, 64)
    with pytest.raises(InputError, match=r"implementation for Gemm.*export model.float\(\)"):
        tersor.export.onnx(model, x.bfloat16(), tmp_path / "out")
    assert tersor.export.onnx(model.float(), x, tmp_path / "out").error < 1e-5


def test_a_fixed_batch_is_noted(tmp_path):
    model = compressed(Wrapped(lambda x: x.reshape(2, 8, 8)))
    done = tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")
    assert "a batch of 2" in done.notes[0] and "specialized it" in done.notes[0]
    assert tersor.export.onnx_session(tmp_path / "out").get_inputs()[0].shape == [2, 64]
    assert "note: the graph takes" in str(done)
    done = tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out", dynamic=False)
    assert done.notes == ()
    with pytest.raises(InputError, match="give fewer axes in dynamic"):
        tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out", dynamic={"x": {0: "n"}})


def test_tensors_of_no_file_are_inside(tmp_path):
    class Shifted(Wrapped):
        def __init__(self):
            super().__init__(nn.Identity())
            self.register_buffer("shift", torch.randn(64), persistent=False)

        def forward(self, x):
            return super().forward(x) + self.shift

    model = compressed(Shifted())
    tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")
    names = json.loads((tmp_path / "out" / "map.json").read_text())["initializers"]
    assert sorted(names) == ["linear.bias", "linear.weight"]
    x = torch.randn(3, 64)
    assert close(run(tmp_path / "out", {"x": x})["output"], reference(model, x))


def test_the_model_is_unchanged(tmp_path):
    model = compressed(cnn()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 8, 12, 12)
    tersor.export.onnx(model, x, tmp_path / "out")
    after = model.state_dict()
    assert model.training and [*after] == [*before]
    assert all(after[name].equal(value) for name, value in before.items())
    assert not hasattr(x, "_dynamo_dynamic_indices")


def test_a_file_is_copied_as_it_is(tmp_path):
    model = compressed(cnn())
    tersor.save(model, tmp_path / "a.tersor", metadata={"name": "mine"})
    x = torch.randn(2, 8, 12, 12)
    tersor.export.onnx(cnn(), x, tmp_path / "out", file=tmp_path / "a.tersor")
    stored = tmp_path / "out" / "model.tersor"
    assert stored.read_bytes() == (tmp_path / "a.tersor").read_bytes()
    assert close(run(tmp_path / "out", {"input": x})["output"], reference(model, x))


def test_a_fresh_process_needs_no_model_code(tmp_path):
    model = compressed(mlp())
    tersor.export.onnx(model, torch.randn(2, 64), tmp_path / "out")
    x = torch.randn(3, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy, tersor; from pathlib import Path; root = Path(sys.argv[1])\n"
        "session = tersor.export.onnx_session(root / 'out')\n"
        "y = session.run(None, {'input': numpy.load(root / 'x.npy')})[0]\n"
        "assert not {'onnx', 'onnxscript', 'onnx_ir'} & {*sys.modules}\n"
        "numpy.save(sys.stdout.buffer, y)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True
    )
    assert close(np.load(io.BytesIO(done.stdout)), reference(model, x))


def test_import_needs_no_packages():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['onnx', 'onnxscript', 'onnxruntime']))\n"
        "import tersor, tersor.export; print(tersor.export.onnx, tersor.export.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


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


def test_resnet20(tmp_path):
    source, images = ARTIFACTS / "resnet20_20x.tersor", torch.randn(8, 3, 32, 32)
    done = tersor.export.onnx(ResNet20(), images, tmp_path / "out", file=source)
    assert done.nbytes["skeleton.onnx"] <= 30_000 and done.error <= 2e-5
    found = run(tmp_path / "out", {"x": images})["output"]
    assert close(found, reference(tersor.load(source, ResNet20()), images), 2e-5)
