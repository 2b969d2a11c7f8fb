# SPDX-License-Identifier: Apache-2.0
"""Define the configuration with which transformers compresses a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tersor.storage.model_folder import METHOD


class TersorConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed
    """Options for compressing a model while it is loaded, as ``quantization_config``.

    Exactly one of ``ratio``, ``target_size`` and ``bits_per_weight`` is needed. Models that are
    compressed already need no configuration.

    Parameters
    ----------
    ratio
        Bytes of all parameters and buffers, tied ones counted once, divided by bytes of the file.
    target_size
        Bytes of the file: a number, or a text such as ``"54kB"`` (1 kB is 1000 bytes).
    bits_per_weight
        Bits of the file divided by the number of weights.
    keep
        Patterns of names, such as ``"lm_head.*"``, of weights that stay as they are.
    bits
        Largest bits per weight by pattern of names: ``{"*.query.weight": 4}``.

    Examples
    --------
    >>> import tersor.transformers
    >>> from transformers import AutoModel, BertConfig, BertModel
    >>> size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = BertConfig(vocab_size=64, intermediate_size=64, **size)
    >>> BertModel(config).save_pretrained("dense")
    >>> options = tersor.transformers.TersorConfig(ratio=4)
    >>> model = AutoModel.from_pretrained("dense", quantization_config=options)
    >>> model.save_pretrained("small")
    >>> AutoModel.from_pretrained("small").num_parameters() == model.num_parameters()
    True
    """

    def __init__(
        self,
        ratio: float | None = None,
        target_size: str | int | None = None,
        bits_per_weight: float | None = None,
        keep: Sequence[str] = (),
        bits: Mapping[str, float] | None = None,
    ) -> None:
        self.quant_method = METHOD
        self.ratio = ratio
        self.target_size = target_size
        self.bits_per_weight = bits_per_weight
        self.keep = list(keep)
        self.bits = dict(bits or {})

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the configuration that a dictionary describes, without what is unknown here.

        Parameters
        ----------
        config_dict
            Options by name, as in ``config.json``.
        return_unused_kwargs
            Whether the other options are returned, too. Default False.
        **kwargs
            More options, which take precedence.

        Returns
        -------
        TersorConfig or tuple
            The configuration; with ``return_unused_kwargs`` also the options that it does not have.
        """
        known = vars(cls()).keys() - {"quant_method"}
        given = {**config_dict, **kwargs}
        config = cls(**{name: given[name] for name in known & given.keys()})
        unused = {name: value for name, value in kwargs.items() if name not in known}
        return (config, unused) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are set, for ``config.json``.

        Returns
        -------
        dict
            Options by name, and the name of the method.
        """
        return {name: value for name, value in vars(self).items() if value}

    def budget(self) -> dict[str, Any]:
        """Return the arguments for `tersor.compress`.

        Returns
        -------
        dict
            Arguments by name.
        """
        return {name: value for name, value in self.to_dict().items() if name != "quant_method"}
