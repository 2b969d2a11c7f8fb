from collections.abc import Sequence

target: str

def linear_integers(
    x: int,
    batch: int,
    bias: int,
    y: int,
    threads: int,
    many: int,
    rows: int,
    inputs: int,
    tile: int,
    padded_rank: int,
    wide: int,
    narrow: int,
    codebook: int,
    codes: int,
    reach: int,
    starts: int,
    escapes: int,
) -> None: ...
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
