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
