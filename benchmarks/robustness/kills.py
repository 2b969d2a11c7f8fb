# SPDX-License-Identifier: Apache-2.0
"""What do commands leave that are killed, and end with when they go on? SIGKILL at random moments.

python -m benchmarks.robustness.kills [--kills 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from benchmarks.lib import parts, record
from benchmarks.lib.places import TESTS

sys.path.insert(0, str(TESTS / "support"))

from killing import kill_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [asdict(found) for found in kill_all(options.kills, options.seed)]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    record.write("kills", rows, measures=parts.COMMANDS, seed=options.seed)


if __name__ == "__main__":
    main()
