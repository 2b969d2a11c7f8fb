"""What do fuzzers find in the decoders? libFuzzer on that in C, Atheris on that in Python.

Both begin with tests/fuzz/corpus; inputs are explained in tests/fuzz/inputs.py. The C decoder runs
with AddressSanitizer and UndefinedBehaviorSanitizer; the Python reader may raise a FileFormatError
and nothing else, and the C decoder must agree with it on every input. What fails is kept in
.cache/fuzzing. Needs clang, and atheris in the environment that runs this.

    python benchmarks/fuzzing.py [--runs 1000000] [--seed 1] [--decoder C|Python] [--grow]

--grow adds what was found to reach new code to the corpus, if it is small.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).resolve().parents[1]
FUZZ, DECODER = ROOT / "tests" / "fuzz", ROOT / "csrc" / "decoder"
CORPUS, FAILED = FUZZ / "corpus", ROOT / ".cache" / "fuzzing"
SMALL = 100
"""Bytes of an input that may go into the corpus."""

FLAGS = ["-std=c99", "-g", "-O2", "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION", f"-I{DECODER}"]
SOURCES = [FUZZ / "fuzz_decoder.c"] + [p for p in DECODER.glob("*.c") if p.name != "example.c"]


def build(folder: Path) -> list[str | Path]:
    """The command that fuzzes the C decoder."""
    sanitizers = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    program = folder / "fuzz_decoder"
    subprocess.run(["clang", *FLAGS, *sanitizers, *SOURCES, "-o", program], check=True)
    return [program]


def fuzz(name: str, command: list[str | Path], found: Path, runs: int, seed: int) -> dict[str, Any]:
    """Run a fuzzer; new inputs go to a folder, failures to `FAILED`."""
    found.mkdir()
    FAILED.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", f"-seed={seed}", "-max_len=3072", "-print_final_stats=1"]
    prefix = f"-artifact_prefix={FAILED}/{name}-"
    lower = ["nice", "-n", "19"] if shutil.which("nice") else []
    log = subprocess.run(
        [*lower, *command, found, CORPUS, *options, prefix],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if log.returncode:
        print(log.stdout[-4000:])
    covered = re.findall(r"cov: (\d+)", log.stdout)
    executed = re.search(r"number_of_executed_units: (\d+)", log.stdout)
    return {
        "decoder": name,
        "executions": int(executed[1]) if executed else 0,
        "edges_covered": int(covered[-1]),
        "inputs_that_reach_new_code": len(list(found.iterdir())),
        "failures": int(log.returncode != 0),
    }


def lines_covered(folder: Path, inputs: Path) -> dict[str, Any]:
    """Lines and branches of the C decoder that the inputs reach."""
    program, raw, merged = folder / "replay", folder / "raw", folder / "merged"
    flags = [*FLAGS, "-fprofile-instr-generate", "-fcoverage-mapping"]
    subprocess.run(["clang", *flags, *SOURCES, FUZZ / "replay.c", "-o", program], check=True)
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


def grow(command: list[str | Path], found: Path, folder: Path) -> None:
    """Add small inputs to the corpus that reach what it does not."""
    small = folder / "small"
    small.mkdir()
    for path in found.iterdir():
        if path.stat().st_size <= SMALL:
            shutil.copy(path, small)
    subprocess.run([*command, "-merge=1", CORPUS, small], check=True, capture_output=True)


def run(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one of the decoders."""
    found = folder / f"found_{name}"
    if name == "Python":
        reader: list[str | Path] = [sys.executable, FUZZ / "fuzz_reader.py"]
        return fuzz(name, reader, found, options.runs, options.seed)
    command = build(folder)
    row = fuzz(name, command, found, options.runs, options.seed)
    row |= lines_covered(folder, found)
    if options.grow:
        grow(command, found, folder)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decoder", choices=["C", "Python"], action="append")
    parser.add_argument("--grow", action="store_true")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for decoder in options.decoder or ["C", "Python"]:
            rows[decoder] = run(decoder, Path(name), options)
    rows = {row["decoder"]: row for row in record.load("fuzzing")} | rows
    for row in rows.values():
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    record.write("fuzzing", list(rows.values()), seed=options.seed)


if __name__ == "__main__":
    main()
