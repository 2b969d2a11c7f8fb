# SPDX-License-Identifier: Apache-2.0
"""Compressed models in transformers: loaded, saved, used, and refused without tersor."""

import copy
import json
import subprocess
import sys

import pytest
import torch

import tersor

transformers = pytest.importorskip("transformers", reason="pip install 'tersor[transformers]'")

from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tersor.nn import HeldWeight  # noqa: E402
from tersor.transformers import TersorConfig  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64}
WEIGHTS = "model.tersor.safetensors"


def bert(kind=BertModel, **more):
    return kind(BertConfig(vocab_size=96, max_position_embeddings=16, **SIZES, **more))


MODELS = {
    "bert": bert,
    "classifier": lambda: bert(BertForSequenceClassification, num_labels=3),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=96, tie_word_embeddings=False, **SIZES)
    ).bfloat16(),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SIZES)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with dense and with compressed weights of each model, made once."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(name):
        if name not in made:
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(root / name)
            model = type(MODELS[name]()).from_pretrained(
                root / name, quantization_config=TersorConfig(ratio=4)
            )
            model.save_pretrained(made.setdefault(name, root / f"{name}-small"))
        return made[name]

    return folder


def held(model):
    return [m for m in model.modules() if isinstance(m, HeldWeight)]


def same(a, b):
    x, y = a.state_dict(), b.state_dict()
    assert list(x) == list(y)
    return all(x[n].dtype == y[n].dtype and torch.equal(x[n], y[n]) for n in x)


@pytest.mark.parametrize("name", MODELS)
class TestEachArchitecture:
    def test_it_holds_what_tersor_loads(self, name, folders):
        model = type(MODELS[name]()).from_pretrained(folders(name))
        plain = MODELS[name]().to(model.config.dtype).eval()
        assert same(model, tersor.load(folders(name), plain))
        assert held(model) and not model.training

    def test_saving_it_gives_the_same_files(self, name, folders, tmp_path):
        model = type(MODELS[name]()).from_pretrained(folders(name))
        model.save_pretrained(tmp_path / "again")
        for file in (WEIGHTS, "config.json"):
            assert (tmp_path / "again" / file).read_bytes() == (folders(name) / file).read_bytes()

    def test_the_file_has_the_size_that_was_asked_for(self, name, folders):
        dense = (folders(name).with_name(name) / "model.safetensors").stat().st_size
        assert 0.9 * dense / 4 < tersor.inspect(folders(name)).nbytes <= dense / 4


def test_a_head_is_added_to_a_base_checkpoint(folders):
    model = AutoModelForSequenceClassification.from_pretrained(folders("bert"))
    base = AutoModel.from_pretrained(folders("bert"))
    assert same(model.bert, base)
    assert not isinstance(model.classifier, HeldWeight) and model.classifier.weight.std() > 0


def test_a_head_is_left_out(folders):
    model = BertForSequenceClassification.from_pretrained(folders("classifier"))
    base = AutoModel.from_pretrained(folders("classifier"))
    assert len(held(base)) and same(model.bert, base)


def test_a_model_with_a_new_head_is_saved_with_it(folders, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folders("bert"))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    assert torch.allclose(model(ids).logits, again(ids).logits, rtol=1e-2, atol=1e-2)
    assert same(model.bert.encoder, again.bert.encoder)


def test_tied_weights_stay_tied(folders):
    model = GPT2LMHeadModel.from_pretrained(folders("gpt2"))
    assert model.lm_head.weight_factors is model.transformer.wte.weight_factors


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_it_generates_what_the_dense_model_does(name, folders, tmp_path):
    model = type(MODELS[name]()).from_pretrained(folders(name))
    dense = copy.deepcopy(model).dequantize()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    if name == "t5":
        options["decoder_start_token_id"] = 0
    ids = torch.arange(3, 9)[None]
    expected = dense.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options), expected)
    assert not held(dense) and held(model)
    dense.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & config.keys()
    again = type(dense).from_pretrained(tmp_path)
    assert same(again, dense)


def test_a_pipeline_takes_it(folders):
    from transformers import pipeline

    model = ViTForImageClassification.from_pretrained(folders("vit"))
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    image = pytest.importorskip("PIL.Image").new("RGB", (16, 16), "red")
    found = pipeline("image-classification", model=model, image_processor=processor)(image)
    assert len(found) == 2 and sum(f["score"] for f in found) == pytest.approx(1)


def test_changed_weights_are_saved(folders, tmp_path):
    model = AutoModel.from_pretrained(folders("bert"))
    layer = model.encoder.layer[0].attention.self.query
    with torch.no_grad():
        layer.weight_factors.scale.mul_(2)
        layer.bias.fill_(0.5)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).encoder.layer[0].attention.self.query
    assert torch.equal(again.weight, layer.weight) and torch.equal(again.bias, layer.bias)


def test_it_is_saved_after_its_folder_is_gone(folders, tmp_path):
    AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path / "a")
    model = AutoModel.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).unlink()
    model.save_pretrained(tmp_path / "b")
    assert same(model, AutoModel.from_pretrained(tmp_path / "b"))


def test_metadata_stay(folders, tmp_path):
    from tersor.storage import model_folder

    model = AutoModel.from_pretrained(folders("bert"))
    said = {"licence": "MIT", "output-error": "0.1"}
    tersor.save(model, tmp_path / "m.tersor", metadata=said, content_hash=True)
    model_folder.write_compressed(folders("bert"), tmp_path / "a", tmp_path / "m.tersor", "float32")
    loaded = AutoModel.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "same")
    assert tersor.inspect(tmp_path / "same").metadata == said
    loaded.pooler.dense.bias.data.fill_(1)
    loaded.save_pretrained(tmp_path / "changed")
    with tersor.open(tmp_path / "changed") as file:
        assert file.metadata == {"licence": "MIT"} and file.content_hash


def test_it_is_trained(folders, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folders("classifier")).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.bert.encoder.layer[0].output.dense.weight.clone()
    loss = model(torch.arange(8)[None], labels=torch.tensor([1])).loss
    loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.bert.encoder.layer[0].output.dense.weight)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    assert torch.allclose(model(ids).logits, again(ids).logits, rtol=1e-2, atol=1e-2)


def test_weights_as_half_of_the_type(folders):
    model = AutoModel.from_pretrained(folders("bert"), dtype=torch.float16)
    assert model.encoder.layer[0].output.dense.weight.dtype == torch.float16 and held(model)


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )


LOAD = """
import sys
from transformers import AutoModel
for folder in sys.argv[1:]:
    try:
        AutoModel.from_pretrained(folder)
    except OSError as error:
        print(error)
    else:
        print("loaded")
"""


def test_without_tersor_loading_fails(folders, tmp_path):
    """Even where somebody has removed from the configuration that the weights are compressed."""
    AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"], config["transformers_weights"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = python(LOAD, folders("bert"), tmp_path)
    first, second = done.stdout.splitlines()
    assert "needs-tersor-so-import-tersor.transformers-first" in first
    assert "no file named model.safetensors" in second


def test_importing_tersor_does_not_import_transformers():
    code = "import sys, tersor; tersor.compress; print('transformers' in sys.modules)"
    assert python(code).stdout == "False\n"


def test_without_transformers_the_error_names_the_extra():
    code = "import sys; sys.modules['transformers'] = None\nimport tersor.transformers"
    done = python(code)
    assert done.returncode == 1 and "pip install 'tersor[transformers]'" in done.stderr


class TestWhatIsRefused:
    def test_no_budget(self, folders):
        dense = folders("bert").with_name("bert")
        with pytest.raises(tersor.InputError, match="ratio"):
            AutoModel.from_pretrained(dense, quantization_config=TersorConfig())

    def test_offloading(self, folders):
        with pytest.raises(tersor.InputError, match="cannot be offloaded"):
            AutoModel.from_pretrained(folders("bert"), device_map={"": "disk"})

    def test_another_name_of_the_weights(self, folders, tmp_path):
        with pytest.raises(tersor.InputError, match="variant"):
            AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path, variant="fp16")

    def test_damage(self, folders, tmp_path):
        AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path)
        data = bytearray((tmp_path / WEIGHTS).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / WEIGHTS).write_bytes(data)
        with pytest.raises(tersor.FileFormatError):
            AutoModel.from_pretrained(tmp_path)

    def test_weights_of_another_shape(self, folders, tmp_path):
        AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 64}))
        with pytest.raises(RuntimeError, match="mismatch"):
            AutoModel.from_pretrained(tmp_path)

    def test_an_unknown_option(self):
        with pytest.raises(TypeError, match="ration"):
            TersorConfig(ration=8)


def test_the_configuration_survives_its_dictionary():
    config = TersorConfig(bits_per_weight=2, keep=["pooler.*"], bits={"*query*": 4})
    told = config.to_dict()
    assert told == {
        "quant_method": "tersor",
        "bits_per_weight": 2,
        "keep": ["pooler.*"],
        "bits": {"*query*": 4},
    }
    assert TersorConfig.from_dict({**told, "of a later release": 1}).to_dict() == told
    assert TersorConfig.from_dict({}, True, ratio=3, other=4)[1] == {"other": 4}


@pytest.mark.parametrize("shards", [False, True])
def test_the_command_line_compresses_folders(shards, folders, tmp_path):
    from typer.testing import CliRunner

    from tersor.cli import app

    dense = AutoModel.from_pretrained(folders("bert").with_name("bert"))
    dense.save_pretrained(tmp_path / "dense", max_shard_size="40kB" if shards else "1GB")
    assert len([*(tmp_path / "dense").glob("*.safetensors")]) == (2 if shards else 1)

    def run(*arguments):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output

    run("compress", tmp_path / "dense", "-o", tmp_path / "small", "--ratio", 4)
    model = AutoModel.from_pretrained(tmp_path / "small")
    assert held(model) and same(model, tersor.load(tmp_path / "small", bert().eval()))
    model.save_pretrained(tmp_path / "again")
    files = [(tmp_path / place / WEIGHTS).read_bytes() for place in ("small", "again")]
    assert files[0] == files[1]
    run("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert same(AutoModel.from_pretrained(tmp_path / "back"), copy.deepcopy(model).dequantize())


def test_a_configuration_without_a_type(folders, tmp_path):
    AutoModel.from_pretrained(folders("bert")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": None}))
    assert same(AutoModel.from_pretrained(tmp_path), AutoModel.from_pretrained(folders("bert")))


def test_kept_weights_stay(folders):
    dense = folders("bert").with_name("bert")
    options = TersorConfig(ratio=2, keep=["embeddings.*"])
    model = AutoModel.from_pretrained(dense, quantization_config=options)
    plain = AutoModel.from_pretrained(dense)
    names = [n for n in plain.state_dict() if n.startswith("embeddings.word")]
    assert names and all(torch.equal(plain.state_dict()[n], model.state_dict()[n]) for n in names)
    assert held(model)
