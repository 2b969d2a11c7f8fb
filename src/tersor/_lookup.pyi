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
    threads: int,
    /,
) -> bool: ...
def linear(
    x: NDArray[np.float32],
    codes: NDArray[np.uint8],
    codebook: NDArray[np.float32],
    y: NDArray[np.float32],
    rows: int,
    threads: int,
    batched: bool,
    /,
) -> None: ...
