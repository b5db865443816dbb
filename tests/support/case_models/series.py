"""A model of series."""

from __future__ import annotations

from pathlib import Path

from case_models.building import store


def patchtst(folder: Path) -> None:
    from transformers import PatchTSTConfig, PatchTSTForPretraining

    sizes = {"d_model": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 48}
    looks = {"num_input_channels": 1, "context_length": 32, "patch_length": 8, "patch_stride": 8}
    store(folder, PatchTSTForPretraining(PatchTSTConfig(**sizes, **looks, prediction_length=4)))


MAKERS = {"patchtst": patchtst}
