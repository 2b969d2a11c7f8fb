# SPDX-License-Identifier: Apache-2.0
"""Hold weights of convolutions for inference only, in forms that `tersor.optimize` chooses from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from tersor.factors import Factors
from tersor.kernels import convolution, cpu, direct
from tersor.kernels.arguments import check_device, fits
from tersor.kernels.convolution import Place
from tersor.kernels.direct import Direct
from tersor.kernels.listed import Listed
from tersor.nn.frozen import DenseWeight, FrozenWeight, HoldsPacking, dense, gone

Convolution = nn.Conv1d | nn.Conv2d

_MOST_PLANS = 64
"""Most input shapes for which a plan is stored."""


def place_of(module: Convolution) -> Place:
    """Return the positions of a convolution's windows.

    A convolution of one dimension is treated as one of images with a single row.
    """
    if isinstance(module, nn.Conv1d):
        stride, dilation, kernel = (
            (1, *module.stride),
            (1, *module.dilation),
            (1, *module.kernel_size),
        )
    else:
        stride, dilation, kernel = module.stride, module.dilation, module.kernel_size
    if module.padding == "same":
        around = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        ends = [(total // 2, total - total // 2) for total in around]
    elif module.padding == "valid":
        ends = [(0, 0)] * 2
    else:
        amounts = cast(tuple[int, ...], module.padding)
        ends = [(amount, amount) for amount in (0,) * (2 - len(amounts)) + amounts]
    (top, bottom), (left, right) = ends
    return Place(stride[0], stride[1], top, bottom, left, right, dilation[0], dilation[1])


def is_plain(module: nn.Module) -> TypeGuard[Convolution]:
    """Return whether a module is a convolution that pads with zeros."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.padding_mode == "zeros"


class PackedConvolution(HoldsPacking):
    """Base of weights that compute the convolution themselves.

    Parameters
    ----------
    factors
        The weight as factors.
    dtype
        Data type of the weight.
    """

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans: dict[tuple[Any, ...], convolution.Plan] = {}
        self._places: list[int] = []

    @classmethod
    @abstractmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Return whether this form suits such a module and such factors."""
        return cls.suits(module)

    def convolve(self, module: Convolution, x: Tensor) -> Tensor:
        """Return the result of `nn.Conv1d` or `nn.Conv2d` with this weight, by ``tersor::conv2d``.

        In a small layer, the checks in Python take as long as the kernel. So a plan is stored for
        each shape of inputs, as long as the module's settings and the tensors stay the same.
        """
        bias: Tensor | None
        try:
            bias = module._parameters["bias"]  # faster than reading the attribute
        except KeyError:
            bias = module.bias
        rows, settings = self.layout.rows, (module.stride, module.padding, module.dilation)
        key = (module, x.shape, settings, module.padding_mode, module.groups)
        is_plain = cpu.is_plain(x, bias, rows)
        if is_plain:
            plan = self._planned(key)
            if plan is not None:
                return convolution.run(x, bias, plan)
        check_device(x.device, bias)  # with a bias elsewhere, torch reads arbitrary memory
        if not self.suits(module) or not fits(bias, rows, x):
            return super().convolve(module, x)  # torch pads, or raises a clear error
        spatial = 1 if isinstance(module, nn.Conv1d) else 2
        place, alone = place_of(module), (1,) * (2 - spatial)
        size, kernel = alone + x.shape[-spatial:], alone + module.kernel_size
        is_image = x.dim() - spatial in (1, 2) and x.shape[-spatial - 1] == module.in_channels
        if not is_image or not x.is_floating_point() or min(place.output(size, kernel)) < 1:
            return super().convolve(module, x)  # torch raises a clear error
        batch = x.shape[0] if x.dim() == spatial + 2 else 1
        shape = (batch, module.in_channels, *size)
        ends = place.output(size, kernel)[2 - spatial :]
        result = (*x.shape[: -spatial - 1], module.out_channels, *ends)
        if is_plain:
            plan = convolution.plan(shape, self.packed, place, result)
            if len(self._plans) < _MOST_PLANS:
                self._plans[key] = plan
            return convolution.run(x, bias, plan)
        y = convolution.conv2d(x.reshape(shape), self.packed, bias, place)
        return y.reshape(result)

    def _planned(self, key: tuple[Any, ...]) -> convolution.Plan | None:
        """Return the plan for such a call, or None if there is none or the tensors have moved."""
        places = cpu.places(self._buffers.values())  # type: ignore[arg-type]
        if places != self._places:
            self._forget_plans()
            self._places = places
        return self._plans.get(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_places": []}


class ListedWeight(PackedConvolution):
    """Integers of a convolution as lists of multiples, used without recomposing the weight.

    Parameters
    ----------
    factors, dtype
        As in `PackedConvolution`.
    """

    mode = "factored"
    packing = Listed

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self._hold(Listed.pack(factors))
        self.register_buffer("exact_codebook", factors.codebook.clone())
        self.scale = factors.scale

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""
        return is_plain(module) and module.groups == 1

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Return whether this form suits such a module and such factors."""
        return cls.suits(module) and Listed.packable(factors)

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``, made for each call."""
        return self.to_factors().recompose()

    def to_factors(self) -> Factors:
        """Return factors that recompose to exactly the result of `forward`."""
        latent = self.packed.latent()
        codebook = cast(Tensor, self.exact_codebook)
        return Factors(codebook, latent, self.scale, self.shape, self.dtype)


class DirectWeight(PackedConvolution, DenseWeight):
    """The dense weight, prepared for the kernels of convolutions.

    Parameters
    ----------
    factors, dtype
        As in `PackedConvolution`.
    gain
        Numbers by which the rows are multiplied; by default none.
    """

    size = 0
    packing = Direct

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        DenseWeight.__init__(self, factors, dtype, gain)
        self._forget_plans()
        weight = self.weight
        packed = Direct.pack(weight if weight.dim() == 4 else weight[:, :, None], self.size)
        self._hold(packed, [f"part{i}" for i in range(len(packed.tensors))])

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``."""
        return self.weight.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        return FrozenWeight._apply(self, fn, recurse)


class DepthwiseWeight(DirectWeight):
    """The dense weight of a depthwise convolution."""

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""
        return is_plain(module) and module.groups == module.in_channels == module.out_channels


class TiledWeight(DirectWeight):
    """The dense weight of a 3 x 3 convolution, transformed for tiles of 2 x 2 pixels."""

    size = 2

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""
        return (
            is_plain(module)
            and module.groups == 1
            and module.kernel_size == (3, 3)
            and module.stride == module.dilation == (1, 1)
        )


class LargeTiledWeight(TiledWeight):
    """The dense weight of a 3 x 3 convolution, transformed for tiles of 4 x 4 pixels."""

    size = 4


class LastWeight(PackedConvolution):
    """The dense weight of a convolution of images in the memory format channels last.

    It is held only in the order of the kernels, in as many bytes as the dense weight.

    Parameters
    ----------
    factors, dtype, gain
        As in `DirectWeight`.
    """

    mode = "dense, packed"
    is_dense = True
    size = direct.LAST
    packing = Direct

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        super().__init__(factors, dtype)
        self._hold(Direct.pack(dense(factors, gain), self.size), ["part"])

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""
        return isinstance(module, nn.Conv2d) and is_plain(module) and module.groups == 1

    def forward(self) -> Tensor:
        """Return the dense weight, of shape ``shape`` and type ``dtype``, made for each call."""
        weight: Tensor = self.packed.recompose()
        return weight.to(self.dtype)

    def to_factors(self) -> Factors:
        """Raise an `InputError`, because the factors are deleted."""
        raise gone()

    def convolve(self, module: Convolution, x: Tensor) -> Tensor:
        """Return the result of `nn.Conv2d` with this weight."""
        if x.dim() == 3:  # a single image has no memory format
            return self.convolve(module, x[None])[0]
        return super().convolve(module, x)


class DepthwiseLastWeight(LastWeight):
    """The dense weight of a depthwise convolution of images in the memory format channels last."""

    size = direct.DEPTHWISE_LAST

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Return whether the kernels compute the same as such a module."""
        return isinstance(module, nn.Conv2d) and DepthwiseWeight.suits(module)


FORMS: tuple[type[PackedConvolution], ...] = (
    ListedWeight,
    DepthwiseWeight,
    TiledWeight,
    LargeTiledWeight,
    LastWeight,
    DepthwiseLastWeight,
)
