# SPDX-License-Identifier: Apache-2.0
"""Every family of the zoo gives back, in a model with other weights, what was compressed."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from examine import FAMILIES, everything, examine, is_unlike, keep_all, loaded, tensors_of
from family import arguments, make

import tersor
from tersor.errors import InputError

WORKING = [name for name, family in FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]

CALIBRATED = [
    *("BERT", "ALBERT (shared layers)", "GPT-2 (Conv1D)", "Llama", "Qwen2 (tied)"),
    *("Mixtral (experts)", "Mamba", "DINOv2", "ConvNeXt", "RegNet", "wav2vec2 (weight_norm)"),
    *("weight_norm, parametrization", "parameters of the model itself", "channels_last"),
    *("tied weights of two kinds of layers", "DataParallel", "torch.fx"),
]
"""Of each kind some: calibrated, others take minutes. benchmarks/robustness does them all."""

WRITING = ["GPT-2 (Conv1D)", "Llama", "Qwen2 (tied)", "Mamba", "T5"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:a weight stays as it is",
        "ignore:.*saw fewer input vectors",
        "ignore:.*weight_norm. is deprecated:FutureWarning",
    ),
]


def each(names):
    return pytest.mark.parametrize("name", names)


def family_of(name):
    family = FAMILIES[name]
    if not family.is_installed():
        pytest.skip(f"needs {family.library}: pip install {family.library}")
    return family


@pytest.fixture(scope="session")
def other_process():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        yield lambda name, path: pool.submit(loaded, name, path).result()


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as in the other process: sums may depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@each(WORKING)
def test_compressed(name, tmp_path, other_process):
    family = family_of(name)
    found = examine(name, tmp_path, other_process)
    assert bool(found["warning"]) == bool(family.warned)


@each(CALIBRATED)
def test_calibrated(name, tmp_path):
    family_of(name)
    examine(name, tmp_path, calibrated=True)


@each(FAMILIES)
def test_lossless(name, tmp_path):
    family_of(name)
    is_unlike(name)
    keep_all(name, tmp_path)


@each([name for name in WORKING if FAMILIES[name].warned])
def test_what_stays_dense_is_told(name):
    family = family_of(name)
    with pytest.warns(UserWarning, match=family.warned):
        tersor.compress(make(family, 0), ratio=family.ratio)


@each(REFUSED)
def test_refused(name):
    family = family_of(name)
    model, inputs = make(family, 0), arguments(family)
    before = everything(model, inputs)
    with pytest.raises(InputError, match=family.refused):
        tersor.compress(model, ratio=2)
    assert everything(model, inputs) == before


@each(WRITING)
def test_the_same_text_is_written(name, tmp_path):
    family = family_of(name)
    model = make(family, 0)
    tersor.compress(model, ratio=family.ratio)
    tersor.save(model, tmp_path / "model.tersor")
    prompt = {"input_ids": arguments(family)["input_ids"], "max_new_tokens": 6, "min_new_tokens": 6}
    written = model.generate(**prompt, do_sample=False)
    back = tersor.load(tmp_path / "model.tersor", make(family, 1))
    assert torch.equal(back.generate(**prompt, do_sample=False), written)


@each(["BERT", "GPT-2 (Conv1D)", "Gemma 3", "Mixtral (experts)", "T5", "Swin", "ResNet"])
def test_a_model_without_memory_is_filled(name, tmp_path):
    """As Hugging Face makes them: parameters on the meta device, tables with their values."""
    accelerate = pytest.importorskip("accelerate", reason="pip install 'tersor[finetune]'")
    family = family_of(name)
    model, inputs = make(family, 0), arguments(family)
    tersor.compress(model, ratio=family.ratio)
    tersor.save(model, tmp_path / "model.tersor")
    with accelerate.init_empty_weights(include_buffers=False):
        empty = family.build().eval()
    tersor.load(tmp_path / "model.tersor", empty)
    assert everything(empty, inputs) == everything(model, inputs)


@each(["wav2vec2 (weight_norm)", "weight_norm, parametrization", "Qwen2 (tied)", "ResNet"])
def test_a_checkpoint_compressed_without_the_model_is_loaded(name, tmp_path):
    """The command line knows neither modules nor buffers."""
    from tersor.compression.driver import compress_source
    from tersor.storage import container
    from tersor.storage.checkpoint import open_checkpoint

    family = family_of(name)
    torch.save(make(family, 0).state_dict(), tmp_path / "model.pt")
    archive = compress_source(open_checkpoint(tmp_path / "model.pt"), ratio=family.ratio)
    container.write(tmp_path / "model.tersor", archive)
    model = tersor.load(tmp_path / "model.tersor", make(family, 1))
    weights = tersor.load_state_dict(tmp_path / "model.tersor")
    plain = make(family, 2)
    plain.load_state_dict(weights)
    assert tensors_of(model) == tensors_of(plain)
    inputs = arguments(family)
    assert everything(model, inputs) == everything(plain, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tersor.save(model, tmp_path / "again.tersor")
