# SPDX-License-Identifier: Apache-2.0
import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int16]
Reals = NDArray[np.float32]

LARGEST: int
BLOCK: int
CHUNK: int

class Analysis:
    @property
    def bits(self) -> list[float]: ...

def release_memory() -> None: ...
def reachable(z: Integers, outer: int, states: int, /) -> bool: ...
def encode(
    codebook: Integers,
    codebook_start: int,
    latent: Integers,
    outer: int,
    states: int,
    latent_start: int,
    /,
) -> bytes: ...
def decode(
    data: bytes,
    codebook: Integers,
    codebook_start: int,
    latent: Integers,
    outer: int,
    states: int,
    latent_start: int,
    /,
) -> int: ...
def analyse(z: Reals, outers: list[int], states: int, start: int, expected: int, /) -> Analysis: ...
def slopes(z: Reals, analysis: Analysis, states: int, /) -> None: ...
def search(
    target: Reals,
    gram: Reals,
    z: Reals,
    analysis: Analysis,
    offset: int,
    states: int,
    lagrangian: float,
    importance: Reals | None,
    threads: int,
    /,
) -> None: ...
def search_run(
    target: Reals,
    gram: Reals,
    z: Reals,
    analysis: Analysis,
    offset: int,
    carried: NDArray[np.int32],
    states: int,
    lagrangian: float,
    sweeps: int,
    /,
) -> None: ...
def search_fed_run(
    wanted: Reals,
    codebook: Reals,
    gram: Reals,
    z: Reals,
    analysis: Analysis,
    offset: int,
    carried: NDArray[np.int32],
    states: int,
    lagrangian: float,
    sweeps: int,
    importance: Reals,
    feedback: Reals,
    first: int,
    /,
) -> None: ...
def instructions() -> list[str]: ...
def use_instructions(name: str, /) -> None: ...
def avoided(target: Reals, gram: Reals, z: Reals, threads: int, /) -> list[float]: ...
def product(a: Reals, b: Reals, out: Reals, threads: int, /) -> None: ...
def inner(x: Reals, y: Reals, sums: NDArray[np.float64], threads: int, /) -> None: ...
def distortion(w: Reals, c: Reals, z: Reals, threads: int, /) -> float: ...
def search_binary(
    target: Reals, gram: Reals, z: Reals, orders: NDArray[np.int32], threads: int, /
) -> None: ...
