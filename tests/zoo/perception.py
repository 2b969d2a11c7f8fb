# SPDX-License-Identifier: Apache-2.0
"""Families for images, sound and time series."""

from __future__ import annotations

from typing import Any

import torch
from constructs import STAYS
from family import Family, image, tokens
from hugging_face import ENCODER, diffusers, transformers
from language import BART, text
from torch import nn

VISION = {**ENCODER, "image_size": 32, "patch_size": 8}
TOWERS = {"text_config": {**ENCODER, "projection_size": 32}, "vision_config": VISION}
"""A text and a vision encoder side by side."""

SWIN = {
    **{"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4]},
    "window_size": 4,
}
CONVNEXT = {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
REGNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}
MOBILE = {"depth_multiplier": 0.1, "image_size": 32, "min_depth": 8}
SEGFORMER = {
    **{"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "sr_ratios": [2, 1]},
    **{"num_attention_heads": [2, 4], "patch_sizes": [7, 3], "strides": [4, 2]},
    **{"mlp_ratios": [2, 2], "decoder_hidden_size": 16},
}
WHISPER = {
    **BART,
    **{"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 24},
}
SPEECH = {
    **ENCODER,
    **{"conv_dim": (16, 16), "conv_kernel": (8, 4), "conv_stride": (4, 4)},
    **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8},
    "num_conv_pos_embedding_groups": 4,
}
"""Positions are told by a convolution with weight_norm."""

ENCODEC = {
    **{"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "upsampling_ratios": [4, 2]},
    **{"num_lstm_layers": 1, "target_bandwidths": [30.0]},
}
VOCODER = {
    **{"model_in_dim": 16, "upsample_initial_channel": 32, "upsample_rates": [4, 4]},
    **{"upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3]},
    "resblock_dilation_sizes": [[1, 3]],
}
SERIES = {
    **{"context_length": 32, "prediction_length": 8, "num_input_channels": 3, "patch_length": 8},
    **{"d_model": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}
SMALL = {"block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1}
UNET = {
    **{**SMALL, "sample_size": 16, "attention_head_dim": 8},
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONDITIONED = {
    **{**UNET, "in_channels": 3, "out_channels": 3, "cross_attention_dim": 16},
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
VAE = {
    **SMALL,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def pixels() -> dict[str, Any]:
    return {"pixel_values": image(32)}


def text_and_pixels() -> dict[str, Any]:
    return text() | pixels()


def spectrum_and_text() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(2, 7)}


def speech() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 400)}


def waveform() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 1, 128)}


def spectrogram() -> dict[str, Any]:
    return {"spectrogram": torch.randn(2, 9, 16)}


def series() -> dict[str, Any]:
    return {"past_values": torch.randn(2, 32, 3)}


def noisy() -> dict[str, Any]:
    return {"sample": image(16), "timestep": torch.tensor([3, 7])}


def noisy_and_text() -> dict[str, Any]:
    return noisy() | {"encoder_hidden_states": torch.randn(2, 5, 16)}


def picture() -> dict[str, Any]:
    return {"sample": image(16)}


def seeing(kind: str, sizes: dict[str, Any]) -> Family:
    """A class of transformers for images, whose configuration is called as it is."""
    configuration = kind.partition("For")[0].removesuffix("Model") + "Config"
    return transformers(kind, configuration, pixels, sizes)


def detector() -> Family:
    """DETR over the ResNet of transformers instead of that of timm."""

    def build() -> nn.Module:
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

        parts = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
        backbone = ResNetConfig(**{**RESNET, "out_features": ["stage2"]})
        configuration = DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=32,
            num_queries=5,
            num_labels=4,
            **{f"encoder_{part}": size for part, size in parts.items()},
            **{f"decoder_{part}": size for part, size in parts.items()},
        )
        return DetrForObjectDetection(configuration)

    return Family(build, pixels, "transformers", "DetrForObjectDetection")


PERCEPTION: dict[str, Family] = {
    "ViT": seeing("ViTForImageClassification", VISION),
    "DeiT": seeing("DeiTModel", VISION),
    "BEiT": seeing("BeitModel", VISION),
    "DINOv2": seeing("Dinov2Model", VISION),
    "Swin": seeing("SwinModel", SWIN),
    "ConvNeXt": seeing("ConvNextModel", CONVNEXT),
    "ResNet": seeing("ResNetForImageClassification", RESNET),
    "RegNet": seeing("RegNetModel", REGNET),
    "MobileNetV2": seeing("MobileNetV2Model", MOBILE),
    "SegFormer": seeing("SegformerForSemanticSegmentation", SEGFORMER),
    "DETR": detector(),
    "CLIP": transformers("CLIPModel", "CLIPConfig", text_and_pixels, TOWERS),
    "SigLIP": transformers("SiglipModel", "SiglipConfig", text_and_pixels, TOWERS),
    "Whisper": transformers(
        "WhisperForConditionalGeneration", "WhisperConfig", spectrum_and_text, WHISPER
    ),
    "wav2vec2 (weight_norm)": transformers(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", speech, SPEECH, warned=STAYS
    ),
    "HuBERT (weight_norm)": transformers(
        "HubertModel", "HubertConfig", speech, SPEECH, warned=STAYS
    ),
    "EnCodec (weight_norm)": transformers(
        "EncodecModel", "EncodecConfig", waveform, ENCODEC, warned=STAYS, ratio=1.5
    ),
    "SpeechT5 vocoder": transformers(
        "SpeechT5HifiGan", "SpeechT5HifiGanConfig", spectrogram, VOCODER
    ),
    "PatchTST": transformers("PatchTSTForPrediction", "PatchTSTConfig", series, SERIES),
    "UNet": diffusers("UNet2DModel", noisy, UNET),
    "UNet, conditioned": diffusers("UNet2DConditionModel", noisy_and_text, CONDITIONED),
    "VAE": diffusers("AutoencoderKL", picture, VAE),
}
"""By name."""
