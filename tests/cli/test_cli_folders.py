# SPDX-License-Identifier: Apache-2.0
"""Folders of Hugging Face as input and output of the command line, without transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.storage import model_folder

CONFIG = {"model_type": "bert", "quantization_config": {"quant_method": "older"}, "name": "ä"}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def dense(tmp_path):
    """A folder as on the hub: links to files, files of other libraries, folders."""
    folder = tmp_path / "dense"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "onnx").mkdir()
    (folder / ".cache").mkdir()
    torch.manual_seed(0)
    weights = {"layer.weight": torch.randn(64, 64), "layer.bias": torch.randn(64)}
    save_file(weights, tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "1_Pooling/config.json", "onnx/model.onnx", "tf_model.h5"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def small(dense, tmp_path):
    done = run("compress", dense, "-o", tmp_path / "small", "--ratio", 4)
    assert done.exit_code == 0, done.output
    return tmp_path / "small"


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_other_files_are_copied_and_weights_are_not(small):
    assert names(small) == [
        "1_Pooling/config.json",
        "config.json",
        "model.tersor.safetensors",
        "tokenizer.json",
    ]
    assert (small / "tokenizer.json").read_text() == "tokenizer.json"
    config = json.loads((small / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "tersor"} and config["name"] == "ä"
    assert config["dtype"] == "float32"
    assert not (small / config["transformers_weights"]).exists()


def test_nothing_else_is_left_behind(small):
    assert sorted(p.name for p in small.parent.iterdir()) == ["blob", "dense", "small"]


def test_the_weights_are_one_tensor_of_a_safetensors_file(small, dense, tmp_path):
    run("compress", dense, "-o", tmp_path / "m.tersor", "--ratio", 4)
    stored = load_file(small / model_folder.WEIGHTS)
    assert stored["tersor"].numpy().tobytes() == (tmp_path / "m.tersor").read_bytes()
    save_file(stored, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "theirs").read_bytes() == (small / model_folder.WEIGHTS).read_bytes()


@pytest.mark.parametrize("part", [".", model_folder.WEIGHTS])
def test_a_folder_is_read_like_a_file(part, small):
    assert run("verify", small / part).exit_code == 0
    assert run("inspect", small / part).exit_code == 0
    assert tersor.load_state_dict(small / part).keys() == {"layer.weight", "layer.bias"}


def test_decompress_gives_a_dense_folder(small, tmp_path):
    done = run("decompress", small, "-o", tmp_path / "back")
    assert done.exit_code == 0, done.output
    expected = tersor.load_state_dict(small)
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == {"model_type": "bert", "name": "ä", "dtype": "float32"}
    assert "tokenizer.json" in names(tmp_path / "back")


def test_decompress_gives_a_file_if_that_is_asked_for(small, tmp_path):
    assert run("decompress", small, "-o", tmp_path / "back.safetensors").exit_code == 0
    assert load_file(tmp_path / "back.safetensors").keys() == {"layer.weight", "layer.bias"}


def refused(tmp_path, *arguments, output="out"):
    done = run(*arguments, "-o", tmp_path / output)
    assert done.exit_code == 2 and not (tmp_path / output / "config.json").exists()
    return done.output


class TestWhatIsRefused:
    def test_a_folder_with_files(self, dense, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        assert "is there already" in refused(tmp_path, "compress", dense, "--ratio", 4)
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine"

    def test_a_folder_in_its_source(self, dense):
        assert "inside of" in refused(dense, "compress", dense, "--ratio", 4)

    def test_a_folder_in_a_folder_that_is_not_there(self, dense, tmp_path):
        told = refused(tmp_path, "compress", dense, "--ratio", 4, output="a/b")
        assert "does not exist" in told

    def test_a_folder_without_configuration(self, dense, tmp_path):
        (dense / "config.json").unlink()
        assert "ends in .tersor" in refused(tmp_path, "compress", dense, "--ratio", 4)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_a_damaged_configuration(self, text, dense, tmp_path):
        (dense / "config.json").write_text(text)
        assert "config.json is not" in refused(tmp_path, "compress", dense, "--ratio", 4)

    def test_what_is_compressed_already(self, small, tmp_path):
        told = refused(tmp_path, "compress", small, "--ratio", 4)
        assert "compressed by tersor already" in told

    def test_ordinary_weights_as_compressed_ones(self, dense):
        with pytest.raises(tersor.FileFormatError, match="without a tersor file"):
            tersor.open(dense / "model.safetensors")

    def test_weights_that_end_early(self, small):
        path = small / model_folder.WEIGHTS
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(tersor.FileFormatError, match="another length"):
            tersor.open(small)

    def test_an_impossible_size_leaves_no_folder(self, dense, tmp_path):
        assert "too few" in refused(tmp_path, "compress", dense, "--target-size", 20)
        assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_filled(dense, tmp_path):
    (tmp_path / "out").mkdir()
    assert run("compress", dense, "-o", tmp_path / "out", "--ratio", 4).exit_code == 0
    assert (tmp_path / "out" / model_folder.WEIGHTS).exists()


def test_a_folder_becomes_a_file_if_that_is_asked_for(dense, tmp_path):
    assert run("compress", dense, "-o", tmp_path / "m.tersor", "--ratio", 4).exit_code == 0
    assert (tmp_path / "m.tersor").is_file()
