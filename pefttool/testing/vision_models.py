"""Tiny random vision models on disk, with their image processors: what the contract suite runs vision tasks on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Pixels of both sides, and of a patch's.
SIZE, PATCH = 28, 7


def tiny_vision(folder: Path) -> Path:
    """A DINOv2 of two layers, whose pictures are 28 x 28 pixels in patches of 7, in `folder`; returns it."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(**_sizes(), mlp_ratio=2, image_size=SIZE, patch_size=PATCH)
    processor = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": _square(SIZE)}
    return _store(folder, lambda: Dinov2Model(config), {**processor, "size": {"shortest_edge": SIZE}})


def tiny_detector(folder: Path) -> Path:
    """A YOLOS of two layers and five detection tokens, in `folder`; returns it."""
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        **_sizes(),
        intermediate_size=128,
        image_size=[SIZE, SIZE],
        patch_size=PATCH,
        num_detection_tokens=5,
        num_labels=3,
        use_mid_position_embeddings=False,
    )
    processor = {"image_processor_type": "YolosImageProcessor", "size": _square(SIZE)}
    return _store(folder, lambda: YolosForObjectDetection(config), processor)


def tiny_convolutional(folder: Path) -> Path:
    """A ResNet of two stages, whose batch norms keep running statistics, in `folder`; returns it."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=2)
    processor = {"image_processor_type": "ViTImageProcessor", "size": _square(SIZE)}
    return _store(folder, lambda: ResNetForImageClassification(config), processor)


def _square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def _sizes() -> dict[str, Any]:
    # Hidden sizes are multiples of 64, the block that 4-bit quantizers scale by; no dropout, so that runs compare.
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_channels": 3, **none}


def _store(folder: Path, build: Callable[[], Any], processor: dict[str, Any]) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)  # the usual 0.02 leaves outputs so small that wrong ones would look right
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    shared = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255, "resample": 3}
    means = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    text = json.dumps({**shared, **means, **processor}, indent=1)
    (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
    return folder
