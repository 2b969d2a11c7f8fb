# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

target: str
packing: dict[str, int]

class Integers:
    def __init__(
        self,
        many: int,
        rows: int,
        inputs: int,
        tile: int,
        padded_rank: int,
        wide: int,
        narrow: int,
        middle: int,
        top: int,
        codebook: int,
        scale: int,
        codes: int,
        reach: int,
        starts: int,
        escapes: int,
    ) -> None: ...
    def __call__(self, x: int, bias: int, y: int, batch: int, threads: int) -> None: ...
    def rows(self, index: int, y: int, count: int, threads: int) -> None: ...

class Lookup:
    def __init__(
        self,
        many: int,
        rows: int,
        inputs: int,
        tile: int,
        pairs: int,
        binary: int,
        codebook: int,
        codes: int,
    ) -> None: ...
    def __call__(self, x: int, bias: int, y: int, batch: int, threads: int) -> None: ...

class Panels:
    def __init__(self, many: int, rows: int, inputs: int, numbers: int) -> None: ...
    def __call__(self, x: int, bias: int, y: int, batch: int, threads: int) -> None: ...

def convolve_listed(
    x: int,
    bias: int,
    y: int,
    threads: int,
    window: Sequence[int],
    rows: int,
    inputs: int,
    tile: int,
    rank: int,
    blocks: int,
    parts: int,
    codebook: int,
    block: int,
    needs: int,
    entries: int,
    runs: int,
    order: int,
    codes: int,
) -> None: ...
def convolve_direct(
    x: int,
    bias: int,
    y: int,
    threads: int,
    window: Sequence[int],
    rows: int,
    size: int,
    weight: int,
) -> None: ...
