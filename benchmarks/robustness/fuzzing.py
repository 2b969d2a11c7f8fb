# SPDX-License-Identifier: Apache-2.0
"""What do fuzzers find? libFuzzer on C decoder and native code, Atheris on the Python reader.

Each decoder is fuzzed in two ways. Guided by coverage alone, checksums do not count; inputs are
explained in tests/fuzz/inputs.py. Guided by the structure of files too (tests/fuzz/mutate.cpp),
fields are changed one by one and checksums mended, and the decoders are as they are shipped. Native
code, of which the coder, the solver and the kernels of inference are fuzzed, runs with
AddressSanitizer and UndefinedBehaviorSanitizer; the Python reader may raise a
FileFormatError and nothing else, and the C decoder must agree with it on every input.

Inputs that reach new code, and what fails, are kept in .cache/fuzzing, from which a run that was
stopped goes on. Needs clang, and atheris in the environment that runs this.

    python -m benchmarks.robustness.fuzzing [--runs 1000000] [--seed 1]
        [--fuzzer "C by structure"] [--grow]

--grow adds what was found to reach new code to the corpus, if it is small.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib import parts, record
from benchmarks.lib.places import CACHE, ROOT, TESTS

FUZZ, CSRC = TESTS / "fuzz", ROOT / "csrc"
sys.path.append(str(FUZZ))

import kernel_sources  # noqa: E402

DECODER, HOME = CSRC / "decoder", CACHE / "fuzzing"
CORPUS = FUZZ / "corpus"
SMALL = 100
"""Bytes of an input that may go into the corpus."""

ROUND = 250_000
"""Executions after which what was done is noted."""

UNCHECKED = "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION"
SANITIZED = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
LIBRARY = [p for p in sorted(DECODER.glob("*.c")) if p.name != "example.c"]
FUZZERS = ("C", "C by structure", "native", "kernels", "Python", "Python by structure")
_C, _STRUCTURE, _NATIVE, _KERNELS, _, _ = FUZZERS
FILES = {_NATIVE: FUZZ / "native", _KERNELS: FUZZ / "kernels"}
"""Inputs to begin with, of the fuzzers that do not read files."""

Command = list[str | Path]


def compiled(sources: list[Path], folder: Path, *flags: str) -> list[Path]:
    """Objects of these sources, in C99 or C++17."""
    folder.mkdir()
    for source in sources:
        cxx = source.suffix == ".cpp"
        compiler = ["clang++", "-std=c++17"] if cxx else ["clang", "-std=c99"]
        options = ["-g", "-O2", *(f"-I{p}" for p in (DECODER, CSRC, FUZZ)), *flags, "-c", source]
        subprocess.run([*compiler, *options, "-o", folder / f"{source.name}.o"], check=True)
    return sorted(folder.iterdir())


def build(name: str, folder: Path) -> Command:
    """The command that fuzzes native code."""
    covered = [*SANITIZED, "-fsanitize=fuzzer-no-link"]
    if name == _C:
        objects = compiled([FUZZ / "fuzz_decoder.c", *LIBRARY], folder / "o", *covered, UNCHECKED)
    elif name == _STRUCTURE:
        objects = compiled([FUZZ / "fuzz_structure.cpp", *LIBRARY], folder / "o", *covered)
        objects += compiled([FUZZ / "mutate.cpp"], folder / "mutate")  # is not what is fuzzed
    elif name == _NATIVE:
        flags = [*covered, "-ffp-contract=off", *kernel_sources.SOLVER_FLAGS]
        sources = [FUZZ / "fuzz_native.cpp", CSRC / "solver" / "solver.cpp"]
        objects = compiled(sources, folder / "o", *flags)
    else:
        objects = compiled([FUZZ / "fuzz_kernels.cpp"], folder / "o", *covered, UNCHECKED)
        for target, flags in kernel_sources.TARGETS.items():
            sources = kernel_sources.of(CSRC)
            objects += compiled(sources, folder / target, *covered, UNCHECKED, *flags)
    program = folder / "fuzzer"
    command = ["clang++", *SANITIZED, "-fsanitize=fuzzer", "-pthread", *objects, "-o", program]
    subprocess.run(command, check=True)
    return [program]


def command_of(name: str, folder: Path) -> Command:
    """The command that runs a fuzzer, without options, and its inputs to begin with."""
    if not name.startswith("Python"):
        return build(name, folder)
    reader: Command = [sys.executable, FUZZ / "fuzz_reader.py"]
    return [*reader, "--structure"] if name.endswith("structure") else reader


def seeds(name: str, folder: Path) -> Path:
    """Folder of the inputs to begin with: for fuzzers that know files, files."""
    if not name.endswith("structure"):
        return FILES.get(name, CORPUS)
    files = folder / "files"
    files.mkdir()
    for path in (*CORPUS.glob("*.file"), *FUZZ.parent.glob("golden/*.tersor")):
        shutil.copy(path, files / path.name)
    return files


def fuzz(name: str, folder: Path, runs: int, seed: int) -> dict[str, Any]:
    """Run a fuzzer in rounds, on from where it was, until it has executed so many inputs."""
    home = HOME / name.replace(" ", "_")
    found, failed, noted = home / "found", home / "failed", home / "done.json"
    for path in (found, failed):
        path.mkdir(parents=True, exist_ok=True)
    empty = {"fuzzer": name, "executions": 0, "edges_covered": 0, "rounds": 0}
    row: dict[str, Any] = json.loads(noted.read_text()) if noted.exists() else empty
    command, start = command_of(name, folder), seeds(name, folder)
    while row["executions"] < runs and not any(failed.iterdir()):
        size = min(ROUND, runs - row["executions"])
        options = [f"-runs={size}", f"-seed={seed + row['rounds']}", "-print_final_stats=1"]
        options.append("-max_len=512" if name in FILES else "-max_len=4096")
        options += ["-timeout=1200", "-report_slow_units=1200"]  # others may take the processor
        prefix = f"-artifact_prefix={failed}/"
        log = home / "log"
        with log.open("w") as file:
            lower = ["nice", "-n", "19"] if shutil.which("nice") else []
            run = [*lower, *command, found, start, *options, prefix]
            subprocess.run(run, stdout=file, stderr=subprocess.STDOUT)
        text = log.read_text(errors="replace")
        executed = re.search(r"number_of_executed_units: (\d+)", text)
        done = re.search(r"Done (\d+) runs", text)
        if not (executed or done):
            print(text[-4000:])
            raise SystemExit(f"{name} was stopped, see {log}")
        row["executions"] += int((executed or done)[1])  # type: ignore[index]
        row["rounds"] += 1
        row["edges_covered"] = int(re.findall(r"cov: (\d+)", text)[-1])
        noted.write_text(json.dumps(row))
    row["inputs_that_reach_new_code"] = len(list(found.iterdir()))
    row["failures"] = len(list(failed.iterdir()))
    return row


def lines_covered(folder: Path, inputs: Path) -> dict[str, Any]:
    """Lines and branches of the C decoder that the inputs reach."""
    program, raw, merged = folder / "replay", folder / "raw", folder / "merged"
    flags = ["-fprofile-instr-generate", "-fcoverage-mapping"]
    sources = [FUZZ / "fuzz_decoder.c", FUZZ / "replay.c", *LIBRARY]
    objects = compiled(sources, folder / "covered", *flags, UNCHECKED)
    subprocess.run(["clang", *flags, *objects, "-o", program], check=True)
    files = [*CORPUS.iterdir(), *inputs.iterdir()]
    profile = os.environ | {"LLVM_PROFILE_FILE": str(raw)}
    subprocess.run([program, "0", *files], check=True, env=profile)
    subprocess.run(["llvm-profdata", "merge", "-sparse", raw, "-o", merged], check=True)
    command = ["llvm-cov", "report", program, f"-instr-profile={merged}", *DECODER.glob("*.c")]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = re.findall(r"(\d+) +(\d+) +[\d.]+%", report.splitlines()[-1])
    names = ("regions", "functions", "lines", "branches")
    return {f"{n}_covered": int(a) - int(b) for n, (a, b) in zip(names, numbers, strict=True)} | {
        n: int(a) for n, (a, _) in zip(names, numbers, strict=True)
    }


def grow(command: Command, corpus: Path, found: Path, folder: Path) -> None:
    """Add small inputs to a corpus that reach what it does not."""
    small = folder / "small"
    small.mkdir()
    for path in found.iterdir():
        if path.stat().st_size <= SMALL:
            shutil.copy(path, small)
    subprocess.run([*command, "-merge=1", corpus, small], check=True, capture_output=True)


def run(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one of the fuzzers."""
    row = fuzz(name, folder, options.runs, options.seed)
    found = HOME / name.replace(" ", "_") / "found"
    if name == _C:
        row |= lines_covered(folder, found)
    if options.grow and name in (_C, *FILES):
        grow([folder / "fuzzer"], FILES.get(name, CORPUS), found, folder)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fuzzer", choices=FUZZERS, action="append")
    parser.add_argument("--grow", action="store_true")
    options = parser.parse_args()
    for name in options.fuzzer or FUZZERS:
        with tempfile.TemporaryDirectory() as folder:
            row = run(name, Path(folder), options)
        print(", ".join(f"{key} {value}" for key, value in row.items()))
        rows = {row["fuzzer"]: row for row in record.load("fuzzing")} | {name: row}
        record.write(
            "fuzzing",
            [rows[n] for n in FUZZERS if n in rows],
            measures=parts.DECODERS,
            seed=options.seed,
        )


if __name__ == "__main__":
    main()
