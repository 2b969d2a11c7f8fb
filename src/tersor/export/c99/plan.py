# SPDX-License-Identifier: Apache-2.0
"""Describe a network as calls of the C runtime, before any C is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from torch import Tensor

Shape = tuple[int, int, int]
"""Height, width and channels: the order in which a tensor of one sample lies in memory."""


@dataclass(eq=False)
class Value:
    """A tensor that is computed at run time.

    Parameters
    ----------
    shape
        Its shape in memory.
    rank
        Number of its axes in torch: 4 (images), 3 (sequences) or 2 (vectors). A vector that was
        flattened from an image keeps the image's shape, and so its order in memory.
    of
        Another value that is in the same place of the memory, and of which this is a view.
    """

    shape: Shape
    rank: int
    of: Value | None = None

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        height, width, channels = self.shape
        return height * width * channels

    @property
    def root(self) -> Value:
        """Return the value that this is a view of, or itself."""
        return self if self.of is None else self.of.root

    @property
    def is_vector(self) -> bool:
        """Return whether it has one place only, so that memory has it in torch's order."""
        return self.shape[:2] == (1, 1)


@dataclass(eq=False)
class Weight:
    """A weight of rows.

    Parameters
    ----------
    name
        Its name in the file; None if it is computed from several tensors.
    rows
        Values of shape (output channels, channels of a group, height, width).
    """

    name: str | None
    rows: Tensor


@dataclass(eq=False)
class Operation:
    """A call of the runtime.

    Parameters
    ----------
    inputs
        What it reads.
    output
        What it writes.
    """

    inputs: list[Value]
    output: Value


@dataclass(eq=False)
class Convolution(Operation):
    """Convolution or linear layer, then a factor and a bias per channel, then limits.

    Parameters
    ----------
    weight
        The weight.
    gain, bias
        Factor of each output channel, and what is added; float64.
    stride, dilation, before
        For both axes; ``before`` are the zeros that are padded above and left.
    groups
        Number of groups of channels.
    limits
        Smallest and largest output.
    """

    weight: Weight
    gain: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    groups: int = 1
    limits: tuple[float, float] = (-inf, inf)

    @property
    def kernel(self) -> Shape:
        """Return height, width and channels of a row."""
        _, channels, height, width = self.weight.rows.shape
        return height, width, channels

    @property
    def multiplications(self) -> int:
        """Return the products that are summed up where nothing is padded."""
        height, width, channels = self.kernel
        return self.output.numel * height * width * channels


@dataclass(eq=False)
class Pool(Operation):
    """Largest value or mean of windows.

    Parameters
    ----------
    kind
        ``MAXIMUM`` or ``MEAN``.
    window, stride, before
        For both axes.
    whole_windows
        Whether a mean counts what is padded.
    """

    kind: str
    window: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int] = (0, 0)
    whole_windows: bool = True


@dataclass(eq=False)
class Add(Operation):
    """Sum of two tensors of one shape, then limits."""

    limits: tuple[float, float] = (-inf, inf)


@dataclass(eq=False)
class Clamp(Operation):
    """Limits of all elements."""

    limits: tuple[float, float] = (-inf, inf)


@dataclass(eq=False)
class Apply(Operation):
    """A function of each element.

    Parameters
    ----------
    function
        Its name in ``tersor_function``, such as ``SIGMOID``.
    """

    function: str


@dataclass(eq=False)
class Softmax(Operation):
    """Softmax of vectors.

    Parameters
    ----------
    channels
        Length of each vector.
    """

    channels: int


@dataclass(frozen=True)
class Grid:
    """A grid of blocks, in elements.

    Parameters
    ----------
    rows, columns, block
        Numbers of blocks, and elements of each.
    start, target
        Where the first block is in the input and in the output.
    steps
        From row to row and from column to column of the input, then of the output.
    """

    rows: int
    columns: int
    block: int
    start: int
    target: int
    steps: tuple[int, int, int, int]


@dataclass(eq=False)
class Move(Operation):
    """Copies of parts of the inputs: padding, subsampling, concatenation, other orders.

    Parameters
    ----------
    grids
        One for each input.
    fill
        What is written before, if the grids leave gaps.
    padding
        Places that are added above, left, below, right, if that is all it does.
    """

    grids: list[Grid]
    fill: float | None = None
    padding: tuple[int, int, int, int] | None = None


IN_PLACE = (Add, Clamp, Apply, Softmax)
"""Operations whose output may take the place of an input that nothing else needs."""


@dataclass(eq=False)
class Network:
    """All operations, in order.

    Parameters
    ----------
    inputs, outputs
        Tensors that the caller gives and gets, in torch's order.
    operations
        The calls.
    """

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
