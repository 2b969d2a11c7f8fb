# SPDX-License-Identifier: Apache-2.0
"""The command that runs all benchmarks."""

import subprocess

import benchmarks.__main__ as runner
from benchmarks.lib.places import ROOT


def test_every_script_is_run_or_skipped_for_a_reason():
    scripts = {
        f"{path.parent.name}.{path.stem}"
        for folder in ("quality", "speed", "robustness")
        for path in (ROOT / "benchmarks" / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert scripts <= set(runner.BENCHMARKS)


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(runner, "BENCHMARKS", {"x": ([], [lambda: "no data", lambda: "no GPU"])})
    assert runner.outcome("x", run=True) == "skipped: no data; no GPU"


def test_what_fails_is_said(monkeypatch):
    monkeypatch.setattr(runner, "BENCHMARKS", {"x": (["--flag"], [lambda: None])})
    calls = []

    def run(command, cwd):
        calls.append(command[2:])
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert runner.outcome("x", run=True) == "failed with exit code 3"
    assert calls == [["benchmarks.x", "--flag"]]
