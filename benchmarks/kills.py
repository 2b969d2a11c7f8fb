"""What does a process leave that is killed while it saves? SIGKILL at random moments.

python benchmarks/kills.py [--kills 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import record

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "storage")]

from killing import kill_while_saving  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_while_saving(Path(folder), options.kills, options.seed)
    row = asdict(found)
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    record.write("kills", [row], seed=options.seed)


if __name__ == "__main__":
    main()
