"""Tiny random detectors of several architectures, each with a convolutional backbone of transformers' own (no timm)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from pefttool.testing.vision_models import tiny_vision

RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
STAGES = ["stage2", "stage3", "stage4"]
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
WIDTHS = {"d_model": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
PLAIN: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
SHARED: dict[str, Any] = {**HEADS, **WIDTHS, **PLAIN, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}


def resnet(stages: list[str]) -> Any:
    return transformers.ResNetConfig(**RESNET, out_features=stages)


def detr(folder: Path, **changes: Any) -> Path:
    config = transformers.DetrConfig(**SHARED, backbone_config=resnet(STAGES[-1:]), num_queries=5, **changes)
    return _store(folder, lambda: transformers.DetrForObjectDetection(config))


def conditional_detr(folder: Path) -> Path:
    config = transformers.ConditionalDetrConfig(**SHARED, backbone_config=resnet(STAGES[-1:]), num_queries=6)
    return _store(folder, lambda: transformers.ConditionalDetrForObjectDetection(config))


def deformable_detr(folder: Path) -> Path:
    config = transformers.DeformableDetrConfig(
        **SHARED, backbone_config=resnet(STAGES), num_queries=6, num_feature_levels=3, disable_custom_kernels=True
    )
    return _store(folder, lambda: transformers.DeformableDetrForObjectDetection(config))


def rt_detr(folder: Path) -> Path:
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(**RESNET, layer_type="basic", out_features=STAGES),
        **HEADS,
        **WIDTHS,
        encoder_hidden_dim=64,
        encoder_in_channels=[16, 16, 16],
        encoder_layers=1,
        decoder_in_channels=[64, 64, 64],
        decoder_layers=1,
        decoder_n_points=2,
        num_queries=6,
        num_feature_levels=3,
        num_denoising=0,
    )
    return _store(folder, lambda: transformers.RTDetrForObjectDetection(config))


def _store(folder: Path, build: Callable[[], Any]) -> Path:
    tiny_vision(folder)  # its image processor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        build().save_pretrained(folder)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "detr": detr,
    "conditional-detr": conditional_detr,
    "deformable-detr": deformable_detr,
    "rt-detr": rt_detr,
}
