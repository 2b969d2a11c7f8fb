# SPDX-License-Identifier: Apache-2.0
"""List the packings; a new one is a line here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tersor.errors import InputError
from tersor.kernels.direct import Direct
from tersor.kernels.integers import Integers
from tersor.kernels.listed import Listed
from tersor.kernels.lookup import Lookup
from tersor.kernels.packing import Packing
from tersor.kernels.panels import Panels

PACKINGS: dict[str, type[Packing]] = {
    kind.name: kind for kind in (Integers, Lookup, Panels, Listed, Direct)
}


def packing_of(name: str, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Packing:
    """Return what an operator got as a packed weight, checked.

    Parameters
    ----------
    name
        Name of the packing.
    tensors, sizes
        Its tensors and sizes in their order.

    Raises
    ------
    InputError
        If there is no such packing, or tensors and sizes are not those of one.
    """
    try:
        packing = PACKINGS[name].of(tensors, sizes)
    except (KeyError, TypeError):
        raise InputError(
            f"{len(tensors)} packed tensors and {len(sizes)} sizes of {name!r} are of no packed "
            "weight; take both from `pack`"
        ) from None
    packing.check()
    return packing
