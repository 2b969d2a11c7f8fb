# SPDX-License-Identifier: Apache-2.0
"""Folders, sharded files of every kind, .gguf and .onnx."""

import builtins
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from samples import generator, same, small_state

from tersor.compression.driver import compress_source
from tersor.errors import InputError, MissingExtraError
from tersor.storage.checkpoint import open_checkpoint


def loaded(source):
    return {name: source.load(name) for name in source.names}


def sharded(folder, kind, stem):
    """As transformers splits a checkpoint."""
    state = small_state()
    names = [f"{stem}-{i:05d}-of-00002.{kind}" for i in (1, 2)]
    weight_map = {name: names[i % 2] for i, name in enumerate(state)}
    for shard in names:
        part = {name: state[name] for name, file in weight_map.items() if file == shard}
        write = save_file if kind == "safetensors" else torch.save
        write(part, folder / shard)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"no tensors")
    return index


KINDS = [("bin", "pytorch_model"), ("safetensors", "model")]


@pytest.mark.parametrize("kind, stem", KINDS)
@pytest.mark.parametrize("as_folder", [True, False])
def test_sharded_checkpoints(tmp_path, kind, stem, as_folder):
    index = sharded(tmp_path, kind, stem)
    source = open_checkpoint(tmp_path if as_folder else index)
    assert same(loaded(source), small_state())
    assert source.nbytes == sum(f.stat().st_size for f in tmp_path.glob(f"{stem}-0*"))


def test_a_shard_that_is_absent(tmp_path):
    index = sharded(tmp_path, "bin", "pytorch_model")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"no such file: .*00002-of-00002\.bin"):
        open_checkpoint(index)


def test_shards_that_are_links_as_in_a_cache(tmp_path):
    folder, cache = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir(), cache.mkdir()
    sharded(folder, "safetensors", "model")
    for number, file in enumerate(folder.iterdir()):
        file.rename(cache / str(number))
        file.symlink_to(f"../blobs/{number}")
    assert same(loaded(open_checkpoint(folder)), small_state())


@pytest.mark.parametrize("target", ["absent", "/dev/zero", "."])
def test_links_to_what_is_no_file(tmp_path, target):
    (tmp_path / "model.safetensors").symlink_to(target)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match=r"no such file|is a directory with"):
            open_checkpoint(path)


def test_an_enormous_index(tmp_path):
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(InputError, match="too large to be the index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "names, taken",
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors"),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], "pytorch_model.bin"),
        (["last.ckpt", "config.json"], "last.ckpt"),
    ],
    ids=str,
)
def test_the_checkpoint_of_a_folder(tmp_path, names, taken):
    for name in names:
        (tmp_path / name).write_bytes(b"no checkpoint")
    write = save_file if taken.endswith("safetensors") else torch.save
    write(small_state(), tmp_path / taken)
    assert same(loaded(open_checkpoint(tmp_path)), small_state())


@pytest.mark.parametrize("names", [[], ["a.pt", "b.pt"], ["config.json", "readme.md"]], ids=str)
def test_folders_without_one_checkpoint(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    held = "a.pt, b.pt" if "a.pt" in names else "no checkpoint"
    with pytest.raises(InputError, match=f"is a directory with {held}; give the checkpoint file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("extra", ["gguf", "onnx"])
def test_a_package_that_is_missing(tmp_path, monkeypatch, extra):
    real = builtins.__import__

    def without(name, *args, **more):
        if name == extra:
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / f"model.{extra}").touch()
    with pytest.raises(MissingExtraError, match=rf"pip install 'tersor\[{extra}\]'"):
        open_checkpoint(tmp_path / f"model.{extra}")


def gguf_file(path):
    """A file of each kind of numbers; returns what they are."""
    gguf = pytest.importorskip("gguf")
    weight = torch.randn(64, 256, generator=generator()).numpy()
    writer = gguf.GGUFWriter(path, "test")
    writer.add_array("tokens", ["a", "b", "c"])
    given = {"a.weight": weight, "b": weight[0], "c": weight.astype(np.float16)}
    for name, values in given.items():
        writer.add_tensor(name, values)
    writer.add_tensor("d", np.arange(6, dtype=np.int32).reshape(2, 3))
    kinds = gguf.GGMLQuantizationType
    for kind in (kinds.Q8_0, kinds.Q4_0, kinds.BF16):
        packed = gguf.quants.quantize(weight, kind)
        writer.add_tensor(kind.name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(values) for name, values in given.items()}


def test_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    given = gguf_file(path)
    source = open_checkpoint(path)
    found = loaded(source)
    assert same({name: found[name] for name in given}, given)
    assert found["d"].dtype == torch.int32 and found["d"].tolist() == [[0, 1, 2], [3, 4, 5]]
    weight = given["a.weight"]
    for name, step, dtype in [
        ("Q8_0", 0.02, torch.float32),
        ("Q4_0", 0.3, torch.float32),
        ("BF16", 0.02, torch.bfloat16),
    ]:
        assert found[name].dtype == dtype and found[name].shape == weight.shape
        assert float((found[name].float() - weight).abs().max()) < step
    assert "quantized tensors (2, such as 'Q8_0') are read as the float32" in source.notes[0]
    assert source.nbytes == path.stat().st_size
    assert compress_source(source, ratio=4).is_factored("Q4_0")


def test_quantized_gguf_cannot_be_kept_exactly(tmp_path):
    gguf_file(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"'Q8_0' is quantized .*lossless is not possible"):
        open_checkpoint(tmp_path / "model.gguf", exact=True)


def test_damaged_gguf_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    gguf_file(path)
    data = path.read_bytes()
    for length in [0, 3, 8, 23, *range(24, 600, 37), len(data) - 1000]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="is not a valid GGUF file"):
            loaded(open_checkpoint(path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind, size", [(0, 1), (4, 4), (8, 8), (9, 12)], ids=str)
def test_gguf_that_claims_more_than_it_has(tmp_path, kind, size):
    """Counts of 2**60: tensors, keys, and elements of an array."""
    pytest.importorskip("gguf")
    key = struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", kind, 1 << 60)
    for counts, rest in [((1 << 60, 0), b""), ((0, 1 << 60), b""), ((0, 1), key)]:
        header = b"GGUF" + struct.pack("<IQQ", 3, *counts) + rest
        (tmp_path / "model.gguf").write_bytes(header + bytes(40 * size))
        with pytest.raises(InputError, match="is not a valid GGUF file"):
            open_checkpoint(tmp_path / "model.gguf")


def onnx_file(path, external=False, **changes):
    """A graph with initializers of several types; returns what they are."""
    onnx = pytest.importorskip("onnx")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = torch.randn(64, 48, generator=generator())
    given = {"fc.weight": weight, "half": weight.half(), "steps": torch.arange(5)}
    tensors = [onnx.numpy_helper.from_array(v.numpy(), name) for name, v in given.items()]
    for name, dtype in (("bf", torch.bfloat16), ("f8", torch.float8_e4m3fn)):
        given[name] = weight.to(dtype)
        bits = given[name].view(torch.uint16 if name == "bf" else torch.uint8).numpy()
        kind = ml_dtypes.bfloat16 if name == "bf" else ml_dtypes.float8_e4m3fn
        tensors.append(onnx.numpy_helper.from_array(bits.view(kind), name))
    given["constant"] = weight + 1
    value = onnx.numpy_helper.from_array(given["constant"].numpy())
    node = onnx.helper.make_node("Constant", [], ["constant"], value=value)
    graph = onnx.helper.make_graph([node], "graph", [], [], tensors)
    model = onnx.helper.make_model(graph)
    for field, value in changes.items():
        tensor = model.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(value) if field == "dims" else None
    where = {"location": "data.bin", "size_threshold": 0} if external else {}
    onnx.save(model, path, save_as_external_data=external, **where)
    return given


@pytest.mark.parametrize("external", [False, True])
def test_onnx(tmp_path, external):
    given = onnx_file(tmp_path / "model.onnx", external)
    source = open_checkpoint(tmp_path / "model.onnx")
    assert same(loaded(source), given)
    assert source.nbytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert compress_source(source, ratio=4).is_factored("fc.weight")


def test_damaged_onnx_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx_file(path)
    data = path.read_bytes()
    for length in [0, 1, 10, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"not a valid ONNX file|has no initializers"):
            open_checkpoint(path)


def test_onnx_that_claims_more_than_it_has(tmp_path):
    onnx_file(tmp_path / "model.onnx", dims=(1 << 30, 1 << 30))
    source = open_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"initializer 'fc.weight' cannot be read"):
        source.load("fc.weight")


@pytest.mark.parametrize("place", ["../data.bin", "/etc/passwd", "sub/data.bin", "absent.bin"])
def test_onnx_with_tensors_elsewhere(tmp_path, place):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "data.bin", folder / "sub" / "data.bin"):
        path.write_bytes(bytes(10_000_000))
    onnx_file(folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="must be there, in the same folder"):
        open_checkpoint(folder / "model.onnx")


def test_onnx_with_two_tensors_of_one_name(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "w")
    graph = onnx.helper.make_graph([], "graph", [], [], [tensor, tensor])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="two initializers or constants of one name"):
        open_checkpoint(tmp_path / "model.onnx")


def test_onnx_with_nodes_and_texts(tmp_path):
    """Only constants among the nodes are tensors, and a tensor of texts cannot be read."""
    onnx = pytest.importorskip("onnx")
    weight = torch.randn(8, 6, generator=generator())
    texts = onnx.helper.make_tensor("texts", onnx.TensorProto.STRING, [2], [b"a", b"b"])
    tensors = [onnx.numpy_helper.from_array(weight.numpy(), "w"), texts]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    source = open_checkpoint(tmp_path / "model.onnx")
    assert set(source.names) == {"w", "texts"} and torch.equal(source.load("w"), weight)
    with pytest.raises(InputError, match="initializer 'texts' cannot be read"):
        source.load("texts")


def test_gguf_of_a_type_that_the_package_cannot_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "test")
    kind = gguf.GGMLQuantizationType.Q8_K
    packed = np.zeros((2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    writer.add_tensor("w", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = open_checkpoint(tmp_path / "model.gguf")
    with pytest.raises(InputError, match="tensor 'w' cannot be dequantized"):
        source.load("w")


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch, kind):
    pytest.importorskip(kind)

    def no_memory(*_, **__):
        raise MemoryError

    reader = {"onnx": "onnx.load", "gguf": "numpy.memmap"}[kind]
    monkeypatch.setattr(reader, no_memory)
    (tmp_path / f"model.{kind}").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(MemoryError):
        open_checkpoint(tmp_path / f"model.{kind}")
