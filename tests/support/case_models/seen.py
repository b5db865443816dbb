"""Models that see pictures: a vision transformer, a ResNet and a detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from case_models.building import store


def _processor(folder: Path, kind: str, size: dict[str, int], **more: Any) -> None:
    described = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        **more,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))


def vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    store(folder, ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)))
    _processor(folder, "ViTImageProcessor", {"height": 32, "width": 32})


def resnet(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
    store(folder, ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=2)))
    _processor(folder, "ViTImageProcessor", {"height": 32, "width": 32})


def levit(folder: Path) -> None:
    from transformers import LevitConfig, LevitModel

    stages = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}
    ratios = {"mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2]}
    store(folder, LevitModel(LevitConfig(image_size=64, **stages, **ratios)))
    _processor(folder, "ViTImageProcessor", {"height": 64, "width": 64})


def yolos(folder: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    looks = {"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 10, "num_labels": 3}
    store(folder, YolosForObjectDetection(YolosConfig(**sizes, **looks)))
    edges = {"shortest_edge": 64, "longest_edge": 64}
    _processor(folder, "YolosImageProcessor", edges, do_pad=True, format="coco_detection")


MAKERS = {"vit": vit, "levit": levit, "resnet": resnet, "yolos": yolos}
