import numpy as np
from numpy.typing import NDArray

def in_use() -> str: ...
def use(name: str, /) -> bool: ...
def pack(
    latent: NDArray[np.int16],
    codes: NDArray[np.uint8],
    rows: int,
    inputs: int,
    tile: int,
    signs: bool,
    threads: int,
    /,
) -> bool: ...
def linear(
    x: int,
    x_item: int,
    x_element: int,
    codes: int,
    codebook: int,
    rows: int,
    inputs: int,
    tile: int,
    pairs: int,
    signs: bool,
    y: int,
    batch: int,
    precise: bool,
    threads: int,
    /,
) -> None: ...
