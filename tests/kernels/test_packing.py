# SPDX-License-Identifier: Apache-2.0
"""Packings: all are listed, and Python packs by the numbers that the native kernels have."""

import pytest

from tersor.kernels import cpu, direct, listed, lookup
from tersor.kernels.packing import Filters, Matrix
from tersor.kernels.registry import PACKINGS


def kinds(base):
    return {kind for sub in base.__subclasses__() for kind in (sub, *kinds(sub))}


def test_every_packing_is_listed_by_its_name():
    assert set(PACKINGS.values()) == kinds(Matrix) | kinds(Filters)
    assert all(name == kind.name for name, kind in PACKINGS.items())


@pytest.mark.skipif(not cpu.instructions(), reason="no native kernels here")
def test_python_packs_by_the_numbers_of_the_kernels():
    assert cpu.module().packing == {
        "lookup columns": lookup._COLUMNS,
        "lookup largest": lookup._LARGEST,
        "lookup pairs": lookup._MOST_PAIRS,
        "lookup panel": lookup._PANEL,
        "listed table": listed._TABLE,
        "direct panel": direct._PANEL,
    }
    assert all(hasattr(cpu.module(), kind.kernel) for kind in PACKINGS.values())
