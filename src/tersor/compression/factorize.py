# SPDX-License-Identifier: Apache-2.0
"""Factor one weight, within a budget or by any method."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from tersor.compression.search import FILL, MAX_TRIALS, finest_fit, guess_step_size
from tersor.errors import BudgetError, InputError
from tersor.factorization import methods, tiles
from tersor.factorization.decompose import Method, Solution, check, decompose
from tersor.factorization.projections import Projection
from tersor.factorization.weights import factorize_weight
from tersor.factors import Factors
from tersor.storage import classify
from tersor.storage.archive import Reason
from tersor.tiling import Tiling, as_float32, is_tileable, window_size

_SEGMENT = 32
"""Tile size in inputs for a method, if the weight has no kernel window."""


def factorize(
    weight: Tensor,
    *,
    bits_per_weight: float | None = None,
    method: Method | Projection | None = None,
    tile: int | None = None,
    moments: Tensor | None = None,
    seed: int = 0,
) -> Solution:
    """Factor one weight, with the least error within a budget or by a method of your choice.

    Parameters
    ----------
    weight
        Floating-point tensor of at least two axes, as in a layer: (out, in) or (out, in, *window).
    bits_per_weight
        Budget of the default method, which minimises error + λ * bits, where λ is the price of a
        bit. The result has 8 * `Factors.nbytes` / (number of weights) of at most this. Exactly one
        of ``bits_per_weight`` and ``method`` is needed.
    method
        One of `tersor.factorization.methods`, such as ``weight_svd(rank=4)``, or a callable that
        maps a (tile, n) matrix to the nearest latent in a set of your own. For a callable the
        latent is found by projected gradient descent, and the codebook is real and has up to
        ``tile`` columns. The descent starts once from tiles and once from their principal axes, and
        the better result is returned.
    tile
        Tile size d, from 1 to the length of a flattened row. The default is the tile size of least
        cost for ``bits_per_weight``, and for a method the kernel window, or 32 inputs of a matrix.
    moments
        Second moments ``E[x xᵀ]`` of the layer's inputs, for ``bits_per_weight`` only: (m, m),
        positive definite, where m is the length of a flattened row. The error of the layer's output
        is then minimised, instead of the error of the weight. See `tersor.calibrate` and
        `Calibration.regularized`.
    seed
        Seed of the generator from which a method draws random starting points; 0 by default.

    Returns
    -------
    Solution
        Factors, the reason why the search stopped, and a history. For ``bits_per_weight`` the
        history contains the squared error at each step size that was tried, that of the returned
        factors last; with ``moments`` it is the error of the output, ``tr(E H Eᵀ)``. "converged"
        then means that 99.7 % of the budget is used (99 % after eight step sizes), or that no step
        size nearby uses more. For a
        method the history contains the objective at the start and after each iteration.

    Raises
    ------
    InputError
        If the weight is not a matrix or kernel, or has NaN or infinite elements; if not exactly one
        of ``bits_per_weight`` and ``method`` is given; or if tile, moments or method do not suit
        the weight.
    BudgetError
        If the budget is too small for any factors.

    Examples
    --------
    >>> solution = tersor.factorize(torch.randn(64, 64), bits_per_weight=1.5)
    >>> solution.factors.recompose().shape
    torch.Size([64, 64])

    >>> from tersor.factorization import methods
    >>> tersor.factorize(torch.randn(64, 64), method=methods.weight_svd(rank=4)).factors.rank
    4

    Latents that are not negative:

    >>> tersor.factorize(torch.randn(64, 64), method=lambda y: y.clamp_min(0)).status
    'iteration limit'
    """
    if (bits_per_weight is None) == (method is None):
        raise InputError(
            "exactly one of bits_per_weight and method is needed, got "
            + ("neither" if method is None else "both")
        )
    if bits_per_weight is not None:
        return _within(weight, bits_per_weight, tile, moments)
    if moments is not None:
        raise InputError("moments are used with bits_per_weight only; leave them out for a method")
    return _by_method(weight, method, tile, seed)


def _by_method(weight: Tensor, method: object, tile: int | None, seed: int) -> Solution:
    if not (isinstance(method, Method) or callable(method)):
        raise InputError(
            "method must be one of tersor.factorization.methods or a callable that projects a "
            f"matrix, got a {type(method).__name__}"
        )
    _check_tensor(weight)
    shape = tuple(weight.shape)
    if not is_tileable(shape):
        raise InputError(f"a weight with two axes or more, none empty, is needed, got {shape}")
    if tile is None:
        window, row = window_size(shape), math.prod(shape[1:])
        tile = window if window > 1 else min(_SEGMENT, row)
    check(weight, tile)
    if isinstance(method, Method):
        return decompose(weight, method, tile=tile, seed=seed)
    project, columns = partial(_projected, method), min(tile, Tiling(shape, tile).count)
    attempts = [methods.projected_gradient(project, columns, axes=axes) for axes in (False, True)]
    solutions = [decompose(weight, attempt, tile=tile, seed=seed) for attempt in attempts]
    return min(solutions, key=lambda solution: min(solution.history))


def _projected(project: Projection, matrix: Tensor) -> Tensor:
    """Apply the user's callable to a matrix, and check the shape and the values of the result."""
    result: object = project(matrix)
    if not isinstance(result, Tensor) or result.shape != matrix.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise InputError(
            f"the projection was given a matrix of shape {tuple(matrix.shape)} and must return one "
            f"of that shape, got {got}"
        )
    if not bool(result.isfinite().all()):
        raise InputError("the projection returned NaN or infinite elements; all must be finite")
    return result.to(matrix)


def _within(
    weight: Tensor, bits_per_weight: float, tile: int | None, moments: Tensor | None
) -> Solution:
    _check_weight(weight)
    if not 0 < bits_per_weight < math.inf:
        raise InputError(f"bits per weight must be a positive number, got {bits_per_weight!r}")
    if tile is not None:
        check(weight, tile)
    if moments is not None:
        moments = _check_moments(weight, moments)
    target = int(bits_per_weight * weight.numel() / 8)
    nothing = factorize_weight(torch.zeros_like(weight), 1, 1.0)
    if target < nothing.nbytes:
        raise BudgetError(
            f"{target} bytes are too few: at least {nothing.nbytes} are needed, "
            f"{nothing.bits_per_weight:.3g} bits per weight"
        )
    variance = float((weight.detach().double() ** 2).mean())
    size, errors = tile, list[float]()
    stack = tiles.is_stack("weight", tuple(weight.shape))

    def attempt(step_size: float) -> tuple[int, tuple[int, int, Factors]]:
        nonlocal size
        size = size or tiles.choose(as_float32(weight), step_size, stack=stack).tile
        factors = factorize_weight(weight, size, step_size, moments=moments)
        errors.append(_error(weight, factors, moments))
        nbytes = factors.nbytes
        return nbytes, (nbytes, len(errors) - 1, factors)

    try:
        guess = guess_step_size([(weight.numel(), variance)], 8 * target)
        nbytes, place, factors = finest_fit(attempt, target, guess)[1]
    except BudgetError:
        return Solution(nothing, "iteration limit", (*errors, _error(weight, nothing, moments)))
    exhausted = len(errors) == MAX_TRIALS and nbytes < FILL * target
    history = (*errors[:place], *errors[place + 1 :], errors[place])
    return Solution(factors, "iteration limit" if exhausted else "converged", history)


def _error(weight: Tensor, factors: Factors, moments: Tensor | None) -> float:
    """Return the squared error of the weight, or with moments that of its outputs."""
    error = (as_float32(weight) - as_float32(factors.recompose())).reshape(len(weight), -1)
    return float(((error if moments is None else error @ moments) * error).sum(dtype=torch.float64))


def _check_moments(weight: Tensor, moments: Tensor) -> Tensor:
    """Return the moments in float32, or raise an error if they do not suit the weight."""
    m = math.prod(weight.shape[1:])
    if not isinstance(moments, Tensor) or tuple(moments.shape) != (m, m):
        got = tuple(moments.shape) if isinstance(moments, Tensor) else f"a {type(moments).__name__}"
        raise InputError(
            f"moments of shape {(m, m)} are needed, as rows of the weight have {m} elements; "
            f"got {got}"
        )
    moments = as_float32(moments)
    if not _is_positive(moments.double()):
        raise InputError(
            "moments must be finite, symmetric and positive definite; add a small multiple of the "
            "identity (0.01 of the mean of their diagonal, as Calibration.regularized does)"
        )
    return moments


def _is_positive(matrix: Tensor) -> bool:
    """Return whether a matrix is symmetric, and positive definite to the precision of float32."""
    largest = float(matrix.abs().amax())
    if not math.isfinite(largest) or float((matrix - matrix.T).abs().amax()) > 1e-4 * largest:
        return False
    margin = torch.finfo(torch.float32).eps * largest * torch.eye(len(matrix), dtype=matrix.dtype)
    return int(torch.linalg.cholesky_ex(matrix - margin).info) == 0


def _check_tensor(weight: object) -> None:
    if not isinstance(weight, Tensor):
        raise InputError(f"a weight tensor is needed, got a {type(weight).__name__}")


def _check_weight(weight: Tensor) -> None:
    """Raise an error if the default method cannot factor the weight."""
    _check_tensor(weight)
    if classify.reason_to_keep("weight", weight) not in (None, Reason.SMALL):
        raise InputError(
            "a weight of 16 floating-point bits or more with two axes or more and of moderate size "
            f"is needed, got {weight.dtype} {tuple(weight.shape)}"
        )
