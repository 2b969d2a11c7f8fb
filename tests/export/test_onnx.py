# SPDX-License-Identifier: Apache-2.0
"""Models exported to ONNX compute in ONNX Runtime what they compute in torch."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_models import Tied, Wrapped, close, compressed, mlp, reference, run
from torch import nn

import tersor
from benchmarks.lib.cifar10 import ResNet20
from tersor.errors import InputError

onnx = pytest.importorskip("onnx", reason="pip install 'tersor[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'tersor[onnx]'")
pytest.importorskip("onnxruntime", reason="pip install 'tersor[onnx-runtime]'")

ARTIFACTS = Path(__file__).parents[2] / "benchmarks" / "artifacts"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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


def test_resnet20(tmp_path):
    source, images = ARTIFACTS / "resnet20_20x.tersor", torch.randn(8, 3, 32, 32)
    done = tersor.export.onnx(ResNet20(), images, tmp_path / "out", file=source)
    assert done.nbytes["skeleton.onnx"] <= 30_000 and done.error <= 2e-5
    found = run(tmp_path / "out", {"x": images})["output"]
    assert close(found, reference(tersor.load(source, ResNet20()), images), 2e-5)
