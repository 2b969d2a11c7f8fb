"""Weights of convolutions for inference only, in the forms that `tersor.optimize` chooses from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from tersor.factors import Factors
from tersor.kernels import convolution, direct, listed, product
from tersor.kernels.convolution import DIRECT, LISTED, PLAIN, Place, Weight
from tersor.nn.frozen import DenseWeight, FrozenWeight, dense, gone

Convolution = nn.Conv1d | nn.Conv2d

_MOST_PLANS = 64
"""Shapes of inputs that are remembered."""


def place_of(module: Convolution) -> Place:
    """Where the windows of a module are; of images of one row in one dimension."""
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
    """Whether a module is a convolution that pads with zeros."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.padding_mode == "zeros"


class PackedConvolution(FrozenWeight):
    """Mixin of weights that compute the convolution themselves."""

    _names: tuple[str, ...]
    _layout: tuple[int, ...]
    _way: int

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans: dict[tuple[Any, ...], convolution.Plan] = {}
        self._places: list[int] = []

    @classmethod
    @abstractmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Whether this form is one for such a module."""
        return cls.suits(module)

    @property
    def packed(self) -> Weight:
        """What the kernels take."""
        return self._way, [getattr(self, name) for name in self._names], self._layout

    def convolve(self, module: Convolution, x: Tensor) -> Tensor:
        """What `nn.Conv1d` and `nn.Conv2d` compute with this weight, by ``tersor::conv2d``.

        Of a small layer the look-ups in Python take as long as the kernel: what is known of an
        input's shape is kept, for as long as the module's settings and the tensors stay.
        """
        bias: Tensor | None
        try:
            bias = module._parameters["bias"]  # faster than the attribute
        except KeyError:
            bias = module.bias
        rows, settings = self._layout[0], (module.stride, module.padding, module.dilation)
        key = (module, x.shape, settings, module.padding_mode, module.groups)
        is_plain = product.is_plain(x, bias, rows)
        if is_plain:
            plan = self._planned(key)
            if plan is not None:
                return convolution.run(x, bias, plan)
        product.check_place(x.device, bias)  # of a bias elsewhere torch gives what memory held
        if not self.suits(module) or not product.fits(bias, rows, x):
            return super().convolve(module, x)  # torch pads, or says what is wrong
        spatial = 1 if isinstance(module, nn.Conv1d) else 2
        place, alone = place_of(module), (1,) * (2 - spatial)
        size, kernel = alone + x.shape[-spatial:], alone + module.kernel_size
        fits = x.dim() - spatial in (1, 2) and x.shape[-spatial - 1] == module.in_channels
        if not fits or not x.is_floating_point() or min(place.output(size, kernel)) < 1:
            return super().convolve(module, x)  # torch says what is wrong
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
        """The plan for such a call, if the tensors are where they were."""
        places = product.places(self._buffers.values())  # type: ignore[arg-type]
        if places != self._places:
            self._forget_plans()
            self._places = places
        return self._plans.get(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_places": []}


class ListedWeight(PackedConvolution):
    """Integers of a convolution, as lists of multiples: never multiplied out."""

    mode = "factored"
    _way, _names = LISTED, listed.Packed._fields

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        super().__init__(factors, dtype)
        packed, layout = listed.pack(factors)
        self._layout = tuple(layout)
        for name, part in packed._asdict().items():
            self.register_buffer(name, part)
        self.register_buffer("exact_codebook", factors.codebook.clone())
        self.scale = factors.scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given = (state_dict.get(prefix + name, getattr(self, name)) for name in self._names)
        listed.verify(listed.Packed(*given), listed.Layout(*self._layout))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""
        return is_plain(module) and module.groups == 1

    @classmethod
    def takes(cls, module: nn.Module, factors: Factors) -> bool:
        """Whether this form is one for such a module."""
        return cls.suits(module) and listed.packable(factors)

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        return self.to_factors().recompose()

    def to_factors(self) -> Factors:
        """Factors that recompose to exactly what `forward` returns."""
        _, packed, layout = self.packed
        latent = listed.latent_of(listed.Packed(*packed), listed.Layout(*layout))
        codebook = cast(Tensor, self.exact_codebook)
        return Factors(codebook, latent, self.scale, self.shape, self.dtype)


class DirectWeight(PackedConvolution, DenseWeight):
    """The dense weight, prepared for kernels of the convolution's own."""

    size = 0
    _way = DIRECT

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        DenseWeight.__init__(self, factors, dtype, gain)
        self._forget_plans()
        weight = self.weight
        tensors, layout = direct.pack(
            weight if weight.dim() == 4 else weight[:, :, None], self.size
        )
        self._layout, self._names = tuple(layout), tuple(f"part{i}" for i in range(len(tensors)))
        for name, part in zip(self._names, tensors, strict=True):
            self.register_buffer(name, part)

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``."""
        return self.weight.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeight:
        return FrozenWeight._apply(self, fn, recurse)


class DepthwiseWeight(DirectWeight):
    """The dense weight of a depthwise convolution."""

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""
        return is_plain(module) and module.groups == module.in_channels == module.out_channels


class TiledWeight(DirectWeight):
    """The dense weight of a 3 x 3 convolution, transformed for tiles of 2 x 2 pixels."""

    size = 2

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""
        return (
            is_plain(module)
            and module.groups == 1
            and module.kernel_size == (3, 3)
            and module.stride == module.dilation == (1, 1)
        )


class LargeTiledWeight(TiledWeight):
    """The same for tiles of 4 x 4 pixels."""

    size = 4


class LastWeight(PackedConvolution):
    """The dense weight of a convolution of images that lie channels last.

    It is held in the order of the kernels only, in as many bytes as the dense weight.
    """

    mode = "dense, packed"
    is_dense = True
    size = direct.LAST
    _way = DIRECT
    part: Tensor
    _names = ("part",)

    def __init__(self, factors: Factors, dtype: torch.dtype, gain: Tensor | None = None) -> None:
        super().__init__(factors, dtype)
        (part,), layout = direct.pack(dense(factors, gain), self.size)
        self._layout = tuple(layout)
        self.register_buffer("part", part)

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""
        return isinstance(module, nn.Conv2d) and is_plain(module) and module.groups == 1

    def forward(self) -> Tensor:
        """The dense weight, of shape ``shape`` and type ``dtype``: made for whoever reads it."""
        return convolution.dense(self.packed).to(self.dtype)

    def to_factors(self) -> Factors:
        """Not possible."""
        raise gone()

    def convolve(self, module: Convolution, x: Tensor) -> Tensor:
        """What `nn.Conv2d` computes with this weight."""
        if x.dim() == 3:  # an image alone has no order of its own
            return self.convolve(module, x[None])[0]
        return super().convolve(module, x)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        part = state_dict.get(prefix + "part", self.part)
        direct.check([part], direct.Layout(*self._layout), PLAIN)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class DepthwiseLastWeight(LastWeight):
    """The same of a depthwise convolution."""

    size = direct.DEPTHWISE_LAST

    @classmethod
    def suits(cls, module: nn.Module) -> bool:
        """Whether the kernels compute what such a module does."""
        return isinstance(module, nn.Conv2d) and DepthwiseWeight.suits(module)


FORMS: tuple[type[PackedConvolution], ...] = (
    ListedWeight,
    DepthwiseWeight,
    TiledWeight,
    LargeTiledWeight,
    LastWeight,
    DepthwiseLastWeight,
)
