# SPDX-License-Identifier: Apache-2.0
"""Bytes and speed of ZipNN, in an environment of its own.

Needs zipnn only. Reads raw bytes of tensors; prints, as JSON, the compressed bytes, and the least
seconds of compression and decompression, both in memory.

    python benchmarks/lib/peers/zipnn_peer.py RAW float32|bfloat16 THREADS RUNS
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from zipnn import ZipNN


def main() -> None:
    path, dtype, threads, runs = sys.argv[1:]
    raw = Path(path).read_bytes()
    encode, decode, size = [], [], 0
    with contextlib.redirect_stdout(sys.stderr):
        for _ in range(int(runs)):
            coder = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=int(threads))
            data = bytearray(raw)  # compression works in place
            start = time.perf_counter()
            coded = coder.compress(data)
            middle = time.perf_counter()
            back = coder.decompress(coded)
            decode.append(time.perf_counter() - middle)
            encode.append(middle - start)
            size = len(coded)
            assert bytes(back) == raw
    print(json.dumps({"bytes": size, "encode": min(encode), "decode": min(decode)}))


if __name__ == "__main__":
    main()
