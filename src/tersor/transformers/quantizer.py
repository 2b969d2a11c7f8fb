# SPDX-License-Identifier: Apache-2.0
"""Define what transformers calls when it loads and saves compressed models."""

from __future__ import annotations

import functools
import hashlib
import inspect
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from tersor.compression.api import compress
from tersor.errors import InputError
from tersor.io import archive_of
from tersor.nn import state
from tersor.storage import container, label, model_folder
from tersor.storage.opened import open_file
from tersor.transformers.config import TersorConfig
from tersor.transformers.weights import (
    fingerprint,
    insert_factors,
    lazy_state_dict,
    make_dense,
)


@dataclass(frozen=True)
class Origin:
    """The file that a model was loaded from, and what the model held then.

    Parameters
    ----------
    path
        The weights file.
    content_hash
        SHA-256 of this file.
    fingerprint
        Checksums of the model's weights, if the model had all tensors of the file and no others;
        otherwise empty.
    """

    path: Path
    content_hash: bytes
    fingerprint: dict[str, int]


class TersorQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not typed
    """Loads compressed folders, compresses dense models, and saves both; for transformers.

    Parameters
    ----------
    quantization_config
        The configuration of the model.
    **kwargs
        What transformers adds: whether the model is compressed already.

    Examples
    --------
    >>> import tersor.transformers
    >>> config = tersor.transformers.TersorConfig(ratio=8)
    >>> tersor.transformers.TersorQuantizer(config, pre_quantized=False).is_serializable()
    True
    """

    requires_calibration = False
    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def __init__(self, quantization_config: TersorConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.origin: Origin | None = None
        self._loading: tuple[Path, Any] | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to offload weights to the disk, which factors do not support.

        Parameters
        ----------
        *args, **kwargs
            Arguments of ``from_pretrained``.

        Raises
        ------
        InputError
            If the device map names the disk.
        """
        devices = kwargs.get("device_map")
        _check_devices(devices if isinstance(devices, dict) else {})

    def update_attn_implementation(self, config: Any) -> Any:
        """Set the name of the weights file: the only call before transformers looks for it.

        Parameters
        ----------
        config
            Configuration of the model, which is changed.

        Returns
        -------
        PreTrainedConfig
            The same configuration.
        """
        if self.pre_quantized:
            config.transformers_weights = model_folder.WEIGHTS
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type for the model.

        Parameters
        ----------
        dtype
            Type that transformers has found. Without one in the configuration it is that of the
            only tensor in the file, uint8.

        Returns
        -------
        dtype
            The same, or float32.
        """
        return dtype if dtype.is_floating_point else torch.float32

    def is_serializable(self) -> bool:
        """Return whether models can be saved.

        Returns
        -------
        bool
            True.
        """
        return True

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Return what is saved of a model: its tersor file as one tensor.

        Parameters
        ----------
        model
            The model.

        Returns
        -------
        tuple
            The tensor by its name, and no metadata. Of a model with adapters None, so that
            transformers saves the adapters alone.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}
        data = bytearray(_file_of(model, self.origin))
        return {model_folder.KEY: torch.frombuffer(data, dtype=torch.uint8)}, {}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _check_devices(getattr(model, "hf_device_map", None) or {})
        # It is how the file was found; a dense model with this configuration has another one.
        vars(model.config).pop("transformers_weights", None)
        if self._loading is None:
            compress(model, **self.quantization_config.budget())
            return model
        (path, info), self._loading = self._loading, None
        with open_file(path) as file:
            insert_factors(model, file)
        missing = {*info.missing_keys} - model.all_tied_weights_keys.keys()
        whole = not (missing or info.unexpected_keys or info.mismatched_keys)
        hashed = hashlib.sha256(path.read_bytes()).digest()
        self.origin = Origin(path, hashed, fingerprint(model) if whole else {})
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        make_dense(model)
        return model


def _check_devices(device_map: dict[str, Any]) -> None:
    devices = {str(device) for device in device_map.values()}
    if "disk" in devices or ("cpu" in devices and len(devices) > 1):
        raise InputError(
            f"device_map places weights on {', '.join(sorted(devices))}, but weights that are "
            "factors cannot be offloaded; give device_map='cpu' or one that uses GPUs only, or "
            "decompress the folder first (tersor decompress)"
        )


def _file_of(model: Any, origin: Origin | None) -> bytes:
    """Return the bytes of a model's file: those that it was loaded from, if it has not changed."""
    metadata, hashed = dict[str, str](), False
    if origin is not None and origin.path.is_file():
        loaded = origin.path.read_bytes()
        if hashlib.sha256(loaded).digest() == origin.content_hash:
            if origin.fingerprint and origin.fingerprint == fingerprint(model):
                start, size = model_folder.embedded(origin.path)
                return loaded[start : start + size]
            with open_file(origin.path) as file:
                metadata, hashed = file.metadata, file.content_hash is not None
    metadata.pop(label.OUTPUT_ERROR, None)  # it was measured with other weights
    archive = replace(archive_of(model), metadata=metadata, hashed=hashed)
    with tempfile.TemporaryDirectory() as folder:
        container.write(path := Path(folder, "model.tersor"), archive)
        return path.read_bytes()


def _quantizer_of(model: Any) -> TersorQuantizer | None:
    found = getattr(model, "hf_quantizer", None)
    return found if isinstance(found, TersorQuantizer) else None


def _loads(original: Any) -> Any:
    """Return ``PreTrainedModel._load_pretrained_model`` that also reads tersor files.

    It gives transformers the dense tensors as if they were in the file. So all that transformers
    does with names, heads, ties, types and devices is as with a dense checkpoint.
    """

    @functools.wraps(original)
    def load(
        model: Any,
        state_dict: Any,
        files: Any,
        load_config: Any,
        *rest: Any,
        **more: Any,
    ) -> Any:
        quantizer = load_config.hf_quantizer
        if not isinstance(quantizer, TersorQuantizer) or not quantizer.pre_quantized:
            return original(model, state_dict, files, load_config, *rest, **more)
        if state_dict is not None or not files:
            raise InputError(
                "a state_dict was given together with a configuration of a compressed model; "
                "load the folder without it"
            )
        path = Path(files[0])
        with open_file(path) as file:
            file.check_sections()
            dense = lazy_state_dict(model, file, load_config.weight_mapping or [])
            info, index = original(model, dense, files, load_config, *rest, **more)
        quantizer._loading = path, info
        return info, index

    return load


def _saves(original: Any) -> Any:
    """Return ``PreTrainedModel.save_pretrained`` that names the weights file of compressed models.

    transformers lets a quantizer choose what is saved, but not the name of the file.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        model, folder = given["self"], given["save_directory"]
        if _quantizer_of(model) is None or getattr(model, "_hf_peft_config_loaded", False):
            return original(*args, **kwargs)
        if given.get("variant") is not None:
            raise InputError(
                f"variant={given['variant']!r} names the weights file, but that of a compressed "
                f"model is always {model_folder.WEIGHTS}; leave variant out"
            )
        given |= given.pop("kwargs", {})
        given |= {"variant": model_folder.VARIANT, "save_original_format": False}
        result = original(**given)
        if given.get("is_main_process", True):
            # transformers saves the type of the first parameter, and those of factors are float32.
            dtype = _dtype_of(model)
            model.config.dtype = dtype
            model_folder.mark(Path(folder), dtype=str(dtype).partition(".")[2])
        return result

    return save


def _dtype_of(model: Any) -> torch.dtype:
    """Return the type of the first floating-point weight."""
    kinds = (value.dtype for value in state(model).values() if value.dtype.is_floating_point)
    return next(kinds, torch.float32)


def register() -> None:
    """Register tersor with transformers, once."""
    if model_folder.METHOD in AUTO_QUANTIZER_MAPPING:
        return
    register_quantization_config(model_folder.METHOD)(TersorConfig)
    register_quantizer(model_folder.METHOD)(TersorQuantizer)
    PreTrainedModel._load_pretrained_model = staticmethod(
        _loads(PreTrainedModel._load_pretrained_model)
    )
    PreTrainedModel.save_pretrained = _saves(PreTrainedModel.save_pretrained)
