# SPDX-License-Identifier: Apache-2.0
"""Resolve the user's decisions about single weights, which are given by patterns of names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Real

from tersor.errors import InputError

_SIMILAR = 3
"""Number of similar names in the error about a pattern without matches."""


@dataclass(frozen=True)
class Overrides:
    """Decisions of the user about single weights, by patterns of names.

    The patterns are those of shells: ``*`` matches any text, ``?`` one character, and ``[ab]`` one
    of the listed characters. They match whole names and are case-sensitive.

    Parameters
    ----------
    keep
        Patterns of the weights that are stored exactly instead of factored.
    bits
        Largest bits per weight of the weights that a pattern matches.
    lookup
        Patterns of the matrices that become binary sums, for look-up kernels.

    Raises
    ------
    InputError
        If a pattern is not a text, or if bits are not a positive number.
    """

    keep: Sequence[str] = ()
    bits: Mapping[str, float] = field(default_factory=dict)
    lookup: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option, patterns in (("keep", self.keep), ("lookup", self.lookup)):
            if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
                raise InputError(f"{option} must be a list of patterns of names, got {patterns!r}")
        if not isinstance(self.bits, Mapping) or not all(isinstance(p, str) for p in self.bits):
            raise InputError(f"bits must be a dict of patterns to numbers, got {self.bits!r}")
        for pattern, bits in self.bits.items():
            if not isinstance(bits, Real) or not 0 < bits < math.inf:
                raise InputError(
                    f"bits of {pattern!r} must be a positive number, got {bits!r}; use keep for "
                    "weights that are not to be changed"
                )

    def resolve(
        self, names: Mapping[str, Sequence[str]], matrices: Collection[str] = ()
    ) -> Resolved:
        """Return the names of the weights that the patterns match.

        Parameters
        ----------
        names
            All names of each weight that would be factored, by its first name. Tied weights have
            several names.
        matrices
            First names of the weights that are matrices.

        Returns
        -------
        Resolved
            First names of the weights to keep, of those with given bits, and of those for look-up
            kernels.

        Raises
        ------
        InputError
            If a pattern matches no weight, if a pattern of ``lookup`` matches no matrix, or if
            patterns contradict each other.
        """
        keep = {name for pattern in self.keep for name in _matches(pattern, names)}
        bits: dict[str, float] = {}
        for pattern, number in self.bits.items():
            for name in _matches(pattern, names):
                if name in keep or bits.setdefault(name, number) != number:
                    other = "to be kept" if name in keep else f"given {bits[name]:g} bits"
                    raise InputError(
                        f"{name!r} is {other} by one pattern, and given {number:g} bits by "
                        f"{pattern!r}; change one of them"
                    )
        lookup = {n for pattern in self.lookup for n in _matrices(pattern, names, matrices)}
        return Resolved(frozenset(keep), bits, frozenset(lookup - keep))


@dataclass(frozen=True)
class Resolved:
    """Names of the weights that patterns match.

    Parameters
    ----------
    keep
        Names of the weights that are not factored.
    bits
        Bits per weight by name.
    lookup
        Names of the matrices that become binary sums.
    """

    keep: frozenset[str]
    bits: Mapping[str, float]
    lookup: frozenset[str]


def parse_bits(options: Iterable[str]) -> dict[str, float]:
    """Parse texts such as ``conv1*=4``, and return the bits by pattern.

    Parameters
    ----------
    options
        Texts of the form ``PATTERN=NUMBER``.

    Returns
    -------
    dict
        Bits per weight by pattern.

    Raises
    ------
    InputError
        If a text is not of this form, or if a pattern is given two different numbers.
    """
    bits: dict[str, float] = {}
    for option in options:
        pattern, _, number = option.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not pattern or math.isnan(value):
            raise InputError(
                f"--bits {option!r} is not of the form PATTERN=NUMBER, such as 'conv1*=4'"
            )
        if bits.setdefault(pattern, value) != value:
            raise InputError(
                f"--bits gives {pattern!r} both {bits[pattern]:g} and {value:g}; leave out one"
            )
    return bits


def _matches(pattern: str, names: Mapping[str, Sequence[str]]) -> list[str]:
    found = [first for first, all_ in names.items() if any(fnmatchcase(n, pattern) for n in all_)]
    if found:
        return found
    known = [name for all_ in names.values() for name in all_]
    similar = get_close_matches(pattern.strip("*"), known, n=_SIMILAR, cutoff=0.0)
    raise InputError(
        f"the pattern {pattern!r} matches none of the {len(names)} weights that are to be factored"
        + (f"; similar names: {', '.join(similar)}" if similar else "")
    )


def _matrices(
    pattern: str, names: Mapping[str, Sequence[str]], matrices: Collection[str]
) -> list[str]:
    found = _matches(pattern, names)
    if fitting := [name for name in found if name in matrices]:
        return fitting
    raise InputError(
        f"the pattern {pattern!r} of weights for look-up kernels matches no matrix, but "
        f"{', '.join(found[:_SIMILAR])}; only weights of two axes, as of torch.nn.Linear, fit"
    )
