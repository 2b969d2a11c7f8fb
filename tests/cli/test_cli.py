# SPDX-License-Identifier: Apache-2.0
"""The command line, as users meet it."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import generator, same, small_archive, small_state, write_small
from torch import nn
from typer.testing import CliRunner

from tersor.cli import app
from tersor.errors import FileFormatError
from tersor.storage import container, dtypes
from tersor.storage.opened import open_file
from tersor.version import __version__

TERSOR = Path(sys.executable).with_name("tersor")


def run(*arguments):
    """The command in this process: fast. Whatever it does not expect is raised here."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def start(*arguments, **options):
    """The installed command in a process of its own."""
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    usual["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job ignores it
    return subprocess.Popen([TERSOR, *map(str, arguments)], **usual | options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint, a compressed file and an output from before; the current folder."""
    monkeypatch.chdir(tmp_path)
    state = small_state() | {"big.weight": torch.randn(64, 64, generator=generator()) * 0.1}
    save_file(state, tmp_path / "model.safetensors")
    container.write(tmp_path / "model.tersor", small_archive())
    (tmp_path / "out.tersor").write_text("earlier")
    (tmp_path / "out.safetensors").write_text("earlier")
    return tmp_path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_what_a_file_says_of_itself(folder):
    said = ("--metadata", "name=a [b]", "--metadata", "licence=MIT\n", "--content-hash")
    result = run("compress", "model.safetensors", "-o", "m.tersor", "--ratio", 12, *said)
    assert result.exit_code == 0, result.stderr
    assert (folder / "m.tersor").stat().st_size <= (
        folder / "model.safetensors"
    ).stat().st_size / 12
    shown = run("inspect", "m.tersor").stdout
    assert "name: a [b]\n" in shown and "licence: MIT\\n" in shown
    data = json.loads(run("inspect", "m.tersor", "--json").stdout)
    assert data["metadata"] == {"name": "a [b]", "licence": "MIT\n"}
    assert f"content hash: {data['content_hash']}" in shown
    assert "is intact" in run("verify", "m.tersor").stdout
    assert run("report", "m.tersor", "-o", "r.html").exit_code == 0
    assert "<p>name: a [b]</p>" in (folder / "r.html").read_text()
    for wrong in ("name", "=x"):
        result = run("compress", "model.safetensors", "-o", "x", "--lossless", "--metadata", wrong)
        assert result.exit_code == 2


def test_the_whole_way(folder):
    result = run("compress", "model.safetensors", "-o", "small.tersor", "--ratio", 12)
    assert result.exit_code == 0, result.stderr
    size = (folder / "small.tersor").stat().st_size
    assert size <= (folder / "model.safetensors").stat().st_size / 12
    assert f"{size} bytes" in result.stdout and "wrote small.tersor" in result.stdout
    shown = run("inspect", "small.tersor")
    assert shown.stdout == result.stdout.partition("wrote small.tersor\n")[0]
    data = json.loads(run("inspect", "small.tersor", "--json").stdout)
    assert data["nbytes"] == size
    assert {t["name"] for t in data["tensors"]} == {*small_state(), "big.weight"}
    result = run("decompress", "small.tersor", "-o", "dense.safetensors")
    assert result.exit_code == 0 and "wrote dense.safetensors" in result.stdout
    dense, before = load_file("dense.safetensors"), load_file("model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in dense.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }


@pytest.mark.parametrize(
    "budget", [("--ratio", "10"), ("--target-size", "3kB"), ("--bits-per-weight", "3")]
)
def test_budgets(folder, budget):
    assert run("compress", "model.safetensors", "-o", "small.tersor", *budget).exit_code == 0
    assert (folder / "small.tersor").stat().st_size <= 3000


def test_single_weights_are_overridden(folder):
    options = ("--ratio", 3, "--keep", "head.*", "--bits", "big*=2", "--bits", "conv*=1.5")
    assert run("compress", "model.safetensors", "-o", "small.tersor", *options).exit_code == 0
    data = json.loads(run("inspect", "small.tersor", "--json").stdout)
    tensors = {t["name"]: t for t in data["tensors"]}
    assert 1.9 < tensors["big.weight"]["bits_per_weight"] <= 2
    assert tensors["conv.weight"]["bits_per_weight"] <= 1.5
    assert tensors["head.weight"]["note"] == "exact: left dense"


def test_matrices_are_made_fast(folder):
    options = ("--ratio", 10, "--lookup", "*")
    assert run("compress", "model.safetensors", "-o", "fast.tersor", *options).exit_code == 0
    with open_file(folder / "fast.tersor", max_bytes=10**9) as file:
        matrices = [n for n in file if len(file.shapes[n]) == 2 and file.is_factored(n)]
        assert matrices and all((file.factors(n).latent.abs() == 1).all() for n in matrices)
        assert not (file.factors("conv.weight").latent.abs() == 1).all()


def odd_state():
    """Tensors of every type, empty, without axes, tied, with NaN that tell something."""
    state = small_state() | {
        dtypes.NAMES[dtype]: random_bits(dtype, 40 + number)
        for number, dtype in enumerate(dtypes.NAMES)
    }
    state["large"] = torch.randn(300, 1000, generator=generator())
    state["transposed"] = state["large"][:20].T
    state["tied"] = state["large"]
    return state


def random_bits(dtype, seed):
    raw = torch.randint(256, (8 * 33,), dtype=torch.uint8, generator=generator(seed))
    return raw > 99 if dtype == torch.bool else raw.view(dtype)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_lossless(folder, name):
    state = odd_state()
    if name.endswith(".pt"):
        torch.save(state, name)
    else:
        state = {n: t.contiguous().clone() for n, t in state.items()}
        save_file(state, name)
    result = run("compress", name, "-o", "exact.tersor", "--lossless")
    assert result.exit_code == 0, result.stderr
    size = Path("exact.tersor").stat().st_size
    assert size < 0.92 * Path(name).stat().st_size
    total = " ".join(result.stdout.split())
    assert f"{size} bytes" in total and "lossless wrote exact.tersor next: " in total
    data = json.loads(run("inspect", "exact.tersor", "--json").stdout)
    assert data["lossless"] and data["nbytes"] == size
    kept = {"exact: lossless, as asked", *["same as large"] * name.endswith(".pt")}
    assert {t["note"] for t in data["tensors"]} == kept
    run("decompress", "exact.tersor", "-o", "back.safetensors")
    assert same(dict(sorted(load_file("back.safetensors").items())), dict(sorted(state.items())))


def test_torch_checkpoints_with_more_than_tensors(folder):
    content = {"model": small_state() | {"big.weight": torch.randn(64, 64)}, "[/b] epoch": 3}
    torch.save(content, "model.pt")
    result = run("compress", "model.pt", "-o", "small.tersor", "--ratio", 5)
    assert result.exit_code == 0, result.stderr
    assert "left out: [/b] epoch" in result.stdout


def test_names_that_look_like_markup(folder):
    save_file({"[/red]w:bomb:": torch.randn(64, 64)}, "[red]m.safetensors")
    result = run("compress", "[red]m.safetensors", "-o", "[red]m.tersor", "--ratio", 8)
    assert result.exit_code == 0, result.stderr
    assert "[/red]w:bomb:" in result.stdout and "wrote [red]m.tersor" in result.stdout


COMMANDS = ["compress", "decompress", "inspect", "verify", "info", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:.*tersor {command}", result.stdout, re.DOTALL)


def test_help_lists_the_commands():
    result = run("--help")
    assert all(command in result.stdout for command in COMMANDS)
    assert "tersor compress model.safetensors -o model.tersor --ratio 20" in result.stdout


def test_verify(folder):
    size = (folder / "model.tersor").stat().st_size
    result = run("verify", "model.tersor")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"model.tersor is intact: 4 tensors, {size} bytes\n"


def test_verify_tells_all_problems(folder):
    data = bytearray((folder / "model.tersor").read_bytes())
    for position in (-1, -60):  # in the last section, and in the one before
        data[position] ^= 1
    (folder / "[red]bad.tersor").write_bytes(data)
    result = run("verify", "[red]bad.tersor")
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout.splitlines() == [
        "[red]bad.tersor: layer.weight: section 0 is damaged (its checksum differs)",
        "[red]bad.tersor: layer.bias and 1 more: section 1 is damaged (its checksum differs)",
    ]
    (folder / "cut.tersor").write_bytes(data[:40])
    result = run("verify", "cut.tersor")
    assert (result.exit_code, result.stderr) == (2, "")
    assert result.stdout == (
        "cut.tersor: the header is damaged or cut off (its checksum differs)\n"
    )
    result = run("verify", "model.tersor", "--max-bytes", "100")
    assert result.exit_code == 2 and "at most 100 are allowed" in result.stdout


def test_version_and_info():
    assert run("--version").stdout == f"tersor {__version__}\n"
    result = run("info")
    assert result.exit_code == 0
    for part in ("torch", "python", "kernels", "threads", "safetensors"):
        assert part in result.stdout


def test_info_tells_what_gpus_compute_with(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Some GPU")
    for missing, told in (("", "kernels: Triton"), ("no triton", "kernels: PyTorch; no triton")):
        monkeypatch.setattr("tersor.report.info.missing_on", lambda device, why=missing: why)
        assert f"Some GPU ({told})" in run("info").stdout


class Harmful:
    def __reduce__(self):
        return (open, ("harm.txt", "w"))


def bad_state(value, name="big.weight"):
    state = {n: t.clone() for n, t in small_state().items()} | {"big.weight": torch.randn(64, 64)}
    state[name].view(-1)[5] = value
    return state


def make_inputs(folder):
    """Files that cannot be used."""
    state, checkpoint = small_state(), (folder / "model.safetensors").read_bytes()
    archive = (folder / "model.tersor").read_bytes()
    for name in ("text.safetensors", "text.pt", "text.tersor", "model.h5"):
        (folder / name).write_text("Just some text.\n" * 20)
    for name in ("empty.safetensors", "empty.pt", "empty.tersor"):
        (folder / name).write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(checkpoint[:-100])
    (folder / "cut.tersor").write_bytes(archive[:-1])
    (folder / "flipped.tersor").write_bytes(archive[:-9] + bytes([archive[-9] ^ 4]) + archive[-8:])
    torch.save(state, "cut.pt")
    (folder / "cut.pt").write_bytes((folder / "cut.pt").read_bytes()[:-100])
    torch.save(nn.Linear(4, 4), "whole.pt")
    torch.save(Harmful(), "harmful.pt")
    torch.save([torch.ones(2)], "list.pt")
    torch.save({"lr": 0.1}, "none.pt")
    torch.save({"t": torch.ones(3, dtype=torch.complex128)}, "complex.pt")
    torch.save({"t": torch.eye(3).to_sparse()}, "sparse.pt")
    save_file(bad_state(torch.nan), "nan.safetensors")
    save_file(bad_state(torch.inf), "inf.safetensors")
    save_file(bad_state(torch.nan, "conv.bias"), "nan_bias.safetensors")
    save_file({}, "nothing.safetensors")
    shards = {"a": {"w": "none.safetensors"}, "b": {"w": "../model.safetensors"}}
    shards["c"] = {"w": "model.safetensors"}
    for name, weight_map in shards.items():
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "d.index.json").write_text("{}")
    (folder / "sub").mkdir()


COMPRESS = [
    ("none.safetensors", "no such file: none.safetensors"),
    ("sub", "sub is a directory with no checkpoint; give the checkpoint file itself"),
    ("model.h5", "cannot read model.h5: a checkpoint ends in .safetensors"),
    ("model.tersor", "a checkpoint ends in"),
    ("text.safetensors", "text.safetensors is not a valid safetensors file"),
    ("empty.safetensors", "not a valid safetensors file"),
    ("cut.safetensors", "not a valid safetensors file"),
    ("nothing.safetensors", "nothing.safetensors holds no tensors"),
    ("text.pt", "text.pt: it is damaged, no PyTorch file, or holds more than tensors"),
    ("empty.pt", "is damaged"),
    ("cut.pt", "cut.pt: it is damaged: the archive ends early"),
    ("whole.pt", "save the weights: torch.save(model.state_dict(), path)"),
    ("harmful.pt", "could run code"),
    ("list.pt", "the checkpoint holds a list; a dictionary of tensors"),
    ("none.pt", "none.pt: the checkpoint holds no tensors that have names: lr (float)"),
    ("complex.pt", "tensor 't' has the data type torch.complex128, which cannot be stored"),
    ("sparse.pt", "tensor 't' is sparse"),
    ("nan.safetensors", "tensor 'big.weight' has 1 elements that are NaN or infinite, of 4096"),
    ("inf.safetensors", "tensor 'big.weight' has 1 elements"),
    ("nan_bias.safetensors", "tensor 'conv.bias' has 1 elements"),
    ("a.index.json", "no such file: none.safetensors"),
    ("b.index.json", "names '../model.safetensors'; the shards must be checkpoint files in the"),
    ("c.index.json", "model.safetensors lacks the tensor 'w' that c.index.json expects in it"),
    ("d.index.json", "is not the index of a checkpoint: it needs a 'weight_map'"),
]

BUDGETS = [
    (
        "",
        "give exactly one of ratio, target size, bits per weight, largest drop (--max-drop) "
        "and lossless (--lossless); got none",
    ),
    ("--ratio 6 --target-size 6kB", "got ratio and target size"),
    ("--lossless --ratio 6", "lossless keeps every bit, so that the size cannot be chosen"),
    ("--lossless --target-size 0", "give either lossless or one of ratio, target size"),
    ("--lossless --bits-per-weight 3 --ratio 2", "lossless keeps every bit"),
    ("--lossless --data none:none", "calibration has no use; leave it out"),
    ("--lossless --model none:none", "calibration has no use; leave it out"),
    ("--ratio 0", "ratio must be a positive number, got 0.0"),
    ("--ratio -3", "ratio must be a positive number, got -3.0"),
    ("--ratio nan", "ratio must be a positive number, got nan"),
    ("--ratio inf", "ratio must be a positive number, got inf"),
    ("--ratio 1", "but the input has only"),
    ("--ratio 1e-320", "ask for less"),
    ("--ratio 1e300", "0 bytes are too few: the smallest possible file has"),
    ("--bits-per-weight 0", "bits per weight must be a positive number"),
    ("--bits-per-weight 64", "ask for less"),
    ("--target-size 54apples", "not a size: '54apples'; give a number of bytes, or a number with"),
    ("--target-size 0", "not a size: '0'"),
    ("--target-size -5kB", "not a size: '-5kB'"),
    ("--target-size nan", "not a size: 'nan'"),
    ("--target-size 1GB", "the target size asks for 1000.00 MB, but the input has only"),
    (
        "--ratio 6 --keep hed.*",
        "'hed.*' matches none of the 3 weights that are to be",
    ),
    ("--ratio 6 --keep conv.bias", "similar names: conv.weight"),
    ("--ratio 6 --bits head.*=4 --keep head.*", "'head.weight' is to be kept by one pattern"),
    ("--ratio 6 --bits head.*=4 --bits *.weight=5", "is given 4 bits by one pattern, and given 5"),
    ("--ratio 6 --bits head.*", "--bits 'head.*' is not of the form PATTERN=NUMBER"),
    ("--ratio 6 --bits head.*=0", "bits of 'head.*' must be a positive number, got 0.0"),
    (
        "--ratio 6 --bits big*=99",
        "99 bits are asked for each weight of 'big.weight', which has only 32",
    ),
    ("--lossless --keep head.*", "patterns of weights to keep, of their bits, or of those for"),
    ("--lossless --lookup *", "have no use; leave them out"),
    ("--ratio 6 --lookup conv*", "'conv*' of weights for look-up kernels matches no matrix"),
    ("--target-size 100", "100 bytes are too few: the smallest possible file has"),
]

OUTPUTS = [
    ("sub", "sub is a directory; give the name of the file to write"),
    ("none/x.tersor", "the folder none does not exist; create it first"),
    ("/proc/x.tersor", "the folder /proc cannot be written to"),
    ("/dev/full", "/dev/full is not a regular file"),
    ("model.safetensors", "model.safetensors is the input itself"),
    ("x" * 300, "File name too long"),
]

READ = [
    ("none.tersor", "none.tersor is not there"),
    ("sub", "sub is a directory"),
    ("text.tersor", "text.tersor: not a tersor file"),
    ("empty.tersor", "empty.tersor: not a tersor file"),
    ("cut.tersor", "cut.tersor: the file has"),
    ("model.safetensors", "a safetensors file without a tersor file in it; give a .tersor"),
]
FLIPPED = ("flipped.tersor", "flipped.tersor: section 1 is damaged (its checksum differs)")

ERRORS = [
    *(("compress", i, "-o", "out.tersor", "--ratio", "6", m) for i, m in COMPRESS),
    *(("compress", "model.safetensors", "-o", "out.tersor", *b.split(), m) for b, m in BUDGETS),
    *(("compress", "model.safetensors", "-o", o, "--ratio", "6", m) for o, m in OUTPUTS),
    *(("compress", "model.safetensors", "-o", o, "--lossless", m) for o, m in OUTPUTS),
    ("compress", "complex.pt", "-o", "out.tersor", "--lossless", "torch.complex128, which cannot"),
    ("compress", "sparse.pt", "-o", "out.tersor", "--lossless", "tensor 't' is sparse"),
    *(("decompress", i, "-o", "out.safetensors", m) for i, m in (*READ, FLIPPED)),
    *(("inspect", i, m) for i, m in READ),
    ("verify", "none.tersor", "none.tersor is not there"),
    ("verify", "model.tersor", "--max-bytes", "-1", "not a size: '-1'"),
    ("decompress", "model.tersor", "-o", "x.safetensors", "--max-bytes", "9 apples", "not a size"),
    (
        "decompress",
        "model.tersor",
        "-o",
        "x.safetensors",
        "--max-bytes",
        "300B",
        "at most 300 are allowed: if you trust the file, give 644 as max_bytes",
    ),
    ("decompress", "model.tersor", "-o", "dense.pt", "give a name in .safetensors"),
    ("decompress", "model.tersor", "-o", "none/x.safetensors", "the folder none does not exist"),
    ("decompress", "model.tersor", "-o", "sub", "sub is a directory"),
    ("decompress", "model.tersor", "-o", "model.tersor", "is the input itself"),
    # What the parser of the command line finds:
    ("compress", "model.safetensors", "--ratio", "6", "Missing option '--output'"),
    (
        "compress",
        "model.safetensors",
        "-o",
        "x",
        "--ratio",
        "[/red]",
        "Invalid value for '--ratio'",
    ),
    ("compress", "Missing argument 'MODEL'"),
    ("squeeze", "No such command 'squeeze'"),
    ("inspect", "model.tersor", "--jsn", "No such option"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_small(folder)
        save_file(bad_state(0.0), "model.safetensors")
        container.write(folder / "model.tersor", small_archive())
        (folder / "out.tersor").write_text("earlier")
        (folder / "out.safetensors").write_text("earlier")
        make_inputs(folder)
    return folder


@pytest.mark.parametrize("arguments", ERRORS, ids=lambda a: " ".join(a[:-1])[:60])
def test_errors_of_users(inputs, monkeypatch, arguments):
    """A message, exit code 2, no traceback, and every file as it was."""
    monkeypatch.chdir(inputs)
    before = contents(inputs)
    *arguments, message = arguments
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert contents(inputs) == before


def test_the_smallest_size_is_named_and_works(folder):
    result = run("compress", "model.safetensors", "-o", "s.tersor", "--target-size", "100")
    least = re.search(r"smallest possible file has (\d+) bytes", result.stderr)[1]
    result = run("compress", "model.safetensors", "-o", "s.tersor", "--target-size", least)
    assert result.exit_code == 0, result.stderr
    assert (folder / "s.tersor").stat().st_size == int(least)


def test_an_earlier_file_is_replaced(folder):
    assert run("compress", "model.safetensors", "-o", "out.tersor", "--ratio", 6).exit_code == 0
    assert len(open_file("out.tersor")) > 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compress", "lossless", "decompress"])
def test_a_full_disk(folder, command):
    """The system refuses to write more than 2000 bytes, for real."""
    before = contents(folder)
    tail = (
        ["-o", "out.tersor", "--ratio", "6"] if command == "compress" else ["-o", "out.safetensors"]
    )
    name = "model.safetensors"
    if command == "lossless":
        command, tail = "compress", ["-o", "out.tersor", "--lossless"]
    if command == "decompress":
        name = "big.tersor"
        run("compress", "model.safetensors", "-o", name, "--ratio", 6)
        before = contents(folder)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    process = start(command, name, *tail, preexec_fn=limit)
    _, message = process.communicate()
    assert process.returncode == 2
    assert re.search(
        r"error: out\.\w+: .*[Ff]ile too large.*; earlier files are as they were", message
    )
    left = contents(folder)
    kept = left.pop("out.tersor.partial", None)
    assert bool(kept) == ("what is done is in out.tersor.partial" in message)
    assert left == before


def test_no_space_left(folder, monkeypatch):
    before = contents(folder)

    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    result = run("compress", "model.safetensors", "-o", "out.tersor", "--ratio", 6)
    assert result.exit_code == 2
    *_, message = result.stderr.splitlines()
    assert message == "error: out.tersor: No space left on device; earlier files are as they were"
    # The journal gave its space to the output, and said so.
    assert "out.tersor.partial: No space left on device" in result.stderr
    assert contents(folder) == before


def test_no_memory_left(folder, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr("tersor.io.open_file", fail)
    result = run("inspect", "model.tersor")
    assert result.exit_code == 2 and "not enough memory" in result.stderr


def test_no_memory_left_for_pytorch(folder, monkeypatch):
    monkeypatch.setattr("tersor.io.open_file", lambda *_, **__: torch.empty(1 << 55))
    result = run("inspect", "model.tersor")
    assert result.exit_code == 2 and result.stderr == (
        "error: there is not enough memory for 144115188075855872 bytes more; earlier files are as "
        "they were. Close other programs, or use a machine with more\n"
    )


@pytest.mark.slow
def test_a_full_disk_behind_the_standard_output(folder):
    for command in (["inspect", "model.tersor", "--json"], ["verify", "model.tersor"], ["--help"]):
        with Path("/dev/full").open("w") as full:
            process = start(*command, stdout=full)
            _, message = process.communicate()
        assert process.returncode == 2
        assert message == "error: No space left on device; earlier files are as they were\n"


def test_an_interrupt_while_libraries_start(folder):
    """One of them takes long."""
    (folder / "typer.py").write_text("import time; print(flush=True); time.sleep(60)")
    paths = {**os.environ, "PYTHONPATH": str(folder)}
    process = start("-m", "tersor", "info", env=paths, executable=sys.executable)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, message = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert message == "interrupted; earlier files are as they were\n"


def test_an_interrupt_in_the_middle(folder):
    """Ctrl-C while a model is compressed that takes much longer."""
    save_file({str(i): torch.randn(1500, 1500) for i in range(3)}, folder / "large.safetensors")
    before = contents(folder)
    process = start("compress", "large.safetensors", "-o", "out.tersor", "--ratio", "8")
    while not (folder / "out.tersor.partial").exists():  # until the first result is there
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, message = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, message = message.splitlines()
    assert message == "interrupted; earlier files are as they were" and output == ""
    left = contents(folder)
    left.pop("out.tersor.partial", None)
    assert left == before


def test_who_stops_reading_is_no_error(folder):
    process = start("inspect", "model.tersor", "--json")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait()


def test_names_that_cannot_be_printed(folder):
    save_file({"重み": torch.randn(64, 64)}, "名.safetensors")
    run("compress", "名.safetensors", "-o", "名.tersor", "--ratio", 8)
    process = start("inspect", "名.tersor", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    output, message = process.communicate()
    assert process.returncode == 0, message
    assert r"\u91cd\u307f" in output


def test_bugs_are_not_hidden(folder, monkeypatch):
    """What is no fault of the user keeps its traceback."""

    def fail(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("tersor.io.open_file", fail)
    with pytest.raises(ZeroDivisionError):
        run("inspect", "model.tersor")


def test_errors_of_files_are_errors_of_users():
    assert issubclass(FileFormatError, ValueError)


# --- calibration

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3)
        self.big = nn.Linear(64, width, bias=False)
        self.head = nn.Linear(40, 10, bias=False)
        self.twin = nn.Linear(64, width, bias=False)
        self.twin.weight = self.big.weight
        self.register_buffer("positions", torch.arange(5))  # not in the checkpoint

    def forward(self, x):
        return self.conv(x), self.big(x.flatten(1)[:, :64]), self.twin(x.flatten(1)[:, 1:65])

class Space:
    net = Net

batches = [(torch.randn(40, 6, 5, 5), torch.zeros(40))]
text = "text"

def make(): return batches
def few(): return [torch.randn(2, 6, 5, 5)]
def wide(): return Net(65)
def other(): return nn.Linear(20, 20)
def nothing(): return []
def number(): return 5
def wrong(): return [torch.randn(4, 9)]
def fails(): raise KeyError("some [red]key")
def breaks(): yield fails()
def leaves(): raise SystemExit(3)
def needs(width): return Net(width)
"""


@pytest.fixture
def project(folder, monkeypatch):
    """A checkpoint, and code for it in the current folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("some_code", "broken_code"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    state = load_file("model.safetensors") | {"extra.weight": torch.randn(20, 20)}
    save_file(state, "model.safetensors")
    (folder / "some_code.py").write_text(USER_CODE)
    (folder / "broken_code.py").write_text("import no_such_thing_at_all")
    return folder


def calibrated(model, loader, checkpoint="model.safetensors"):
    options = [("--model", model), ("--data", loader)]
    given = [word for option in options if option[1] is not None for word in option]
    return run("compress", checkpoint, "-o", "out.tersor", "--ratio", 8, *given)


@pytest.mark.parametrize(
    "model", ["some_code:Net", "some_code:Space.net", "some_code.py:Net", "./some_code.py:Net"]
)
def test_calibration(project, model):
    result = calibrated(model, "some_code:make")
    assert result.exit_code == 0, result.stderr
    size = (project / "out.tersor").stat().st_size
    assert size <= (project / "model.safetensors").stat().st_size / 8
    notes = " ".join(result.stderr.split())
    assert "note: extra.weight is compressed without calibration: the model has no such" in notes
    assert "note: calibration says nothing about 'head.weight' (no input reached it" in notes
    assert notes.count("note:") == 2 and "Traceback" not in notes


def test_tied_weights_under_any_of_their_names(project):
    from tersor.calibration.calibrate import calibrate
    from tersor.cli.user_code import batches_of, for_checkpoint, model_of
    from tersor.storage.checkpoint import open_checkpoint

    state = load_file("model.safetensors")
    weight = state.pop("big.weight")
    found = []
    for names in (["big.weight"], ["twin.weight"], ["big.weight", "twin.weight"]):
        save_file(state | {name: weight.clone() for name in names}, "m.safetensors")
        source = open_checkpoint("m.safetensors")
        batches = batches_of("some_code:make")
        model = model_of(source, "some_code:Net")
        calibration = for_checkpoint(calibrate(model, batches), model, source)
        assert {*names} < {*calibration.moments} <= {*source.names}
        assert calibration.rows.keys() == calibration.moments.keys()
        found += [calibration.moments[name] for name in names]
    assert len(found) == 4 and all(torch.equal(moments, found[0]) for moments in found)


def test_calibration_with_few_samples_says_so(project):
    result = calibrated("some_code:Net", "some_code:few")
    assert result.exit_code == 0, result.stderr
    assert "saw fewer input vectors than they have inputs" in result.stderr


@pytest.mark.parametrize(
    "model, loader, messages",
    [
        ("some_code:Net", None, ["--model is given without --data"]),
        (None, "some_code:make", ["--data is given without --model"]),
        ("some_code", "some_code:make", ["--model 'some_code' is not of the form module:callable"]),
        ("some_code:Net", ":make", ["--data ':make' is not of the form"]),
        ("no_code.py:Net", "some_code:make", ["import of 'no_code.py'", "there is no file"]),
        ("broken_code.py:Net", "some_code:make", ["no_such_thing_at_all"]),
        ("no_code:Net", "some_code:make", ["import of 'no_code'", "No module named 'no_code'"]),
        ("broken_code:Net", "some_code:make", ["import of 'broken_code'", "no_such_thing_at_all"]),
        ("some_code:Nt", "some_code:make", ["--model some_code:Nt: there is no 'Nt' in"]),
        ("some_code:Net", "some_code:text", ["some_code:text is a str", "without arguments"]),
        ("some_code:fails", "some_code:make", ["raised KeyError: 'some [red]key'"]),
        ("some_code:leaves", "some_code:make", ["raised SystemExit: 3"]),
        ("some_code:needs", "some_code:make", ["TypeError", "called without arguments"]),
        ("some_code:make", "some_code:make", ["returned a list; an nn.Module is needed"]),
        ("some_code:Net", "some_code:number", ["returned a int; an iterable of batches"]),
        ("some_code:Net", "some_code:fails", ["--data some_code:fails raised KeyError"]),
        ("some_code:Net", "some_code:breaks", ["the loader raised KeyError"]),
        ("some_code:Net", "some_code:nothing", ["the loader is empty"]),
        ("some_code:Net", "some_code:wrong", ["called with batch 1", "RuntimeError"]),
        ("some_code:wide", "some_code:make", ["does not fit", "[64, 64]", "[65, 64]"]),
        ("some_code:other", "some_code:make", ["does not fit a Linear", "lacks weight, bias"]),
    ],
)
def test_calibration_that_cannot_be(project, model, loader, messages):
    before = contents(project)
    result = calibrated(model, loader)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert all(message in result.stderr for message in messages), result.stderr
    assert contents(project) == before


def test_calibration_in_a_process_of_its_own(project):
    """The folder of an installed command's script, not the current one, is where imports start."""
    options = ("--model", "some_code:Net", "--data", "some_code:make")
    command = start("compress", "model.safetensors", "-o", "new.tersor", "--ratio", 8, *options)
    _, stderr = command.communicate(timeout=120)
    assert command.returncode == 0, stderr
    assert (project / "new.tersor").is_file()


def test_report(folder):
    result = run("report", "model.tersor", "-o", "page.html")
    page = folder / "page.html"
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"wrote page.html: {page.stat().st_size} bytes\n"
    assert "layer.weight" in page.read_text("utf-8")


def test_report_measures_against_a_checkpoint_and_shows_a_curve(folder):
    save_file({"layer.weight": torch.ones(6, 10)}, "dense.safetensors")
    points = [{"bytes": 300, "predicted_drop": 1.5, "measured": None}]
    curve = {"points": points, "metric": None, "dense": None, "dense_bytes": 600}
    (folder / "curve.json").write_text(json.dumps(curve))
    options = ("--dense", "dense.safetensors", "--curve", "curve.json")
    result = run("report", "model.tersor", "-o", "page.html", *options)
    assert result.exit_code == 0, result.stderr
    text = (folder / "page.html").read_text("utf-8")
    assert "dense.safetensors" in text and "Size and accuracy" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.tersor", "-o", "page.html"), "none.tersor is not there"),
        (("model.safetensors", "-o", "page.html"), "a safetensors file without a tersor file"),
        (("model.tersor", "-o", "model.tersor"), "is the input itself"),
        (("model.tersor", "-o", "none/page.html"), "does not exist"),
        (("model.tersor", "-o", "p.html", "--dense", "none.safetensors"), "no such file"),
        (("model.tersor", "-o", "p.html", "--dense", "model.tersor"), "cannot read"),
        (("model.tersor", "-o", "p.html", "--dense", "model.safetensors"), "has no tensor"),
        (("model.tersor", "-o", "p.html", "--curve", "none.json"), "no such file"),
        (("model.tersor", "-o", "p.html", "--curve", "model.tersor"), "is not what"),
    ],
)
def test_report_of_bad_input(folder, arguments, message):
    before = contents(folder)
    result = run("report", *arguments)
    assert result.exit_code == 2 and message in result.stderr and not result.stdout
    assert contents(folder) == before
