"""Models whose buffers training changes, or whose loaders need more than a name."""

from __future__ import annotations

import json
from pathlib import Path

from case_models.building import store


def resnet(folder: Path) -> None:
    """Two stages with batch norms, and pictures of 32 x 32."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=2)
    store(folder, ResNetForImageClassification(config))
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def patchtst(folder: Path) -> None:
    """As it comes from pretraining, without classes; one channel of 32 values."""
    from transformers import PatchTSTConfig, PatchTSTForPretraining

    config = PatchTSTConfig(
        num_input_channels=1,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=48,
    )
    store(folder, PatchTSTForPretraining(config))


MAKERS = {"resnet-bn": resnet, "patchtst-classes": patchtst}
