"""A classifier on mean-pooled features, for backbones that stay frozen.

BERT's pooler reads the first token, which sentence encoders such as MiniLM never trained: frozen, it is a poor
feature, while the mean over tokens is what those models were trained for.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pefttool import ModelError
from pefttool.toolkit import loader_code

LOADER = '''"""Defines `model`, in eval mode, without pefttool: the base, mean pooling, and head.safetensors."""
from pathlib import Path
from types import SimpleNamespace
from safetensors.torch import load_file
from transformers import AutoModel

backbone = AutoModel.from_pretrained({base!r}, dtype="float32").eval()
{prepared}tensors = load_file(Path(__file__).with_name("head.safetensors"))
backbone.load_state_dict({{n[9:]: t for n, t in tensors.items() if n.startswith("backbone.")}}, strict=False)


def model(input_ids, attention_mask, **more):
    hidden, mask = backbone(input_ids, attention_mask, **more).last_hidden_state, attention_mask[..., None]
    features = (hidden * mask).sum(1) / mask.sum(1)
    return SimpleNamespace(logits=features @ tensors["classifier.weight"].T + tensors["classifier.bias"])
'''


@dataclass
class Classified:
    logits: Tensor


class MeanPooled(nn.Module):
    """`[B, T]` token ids to `[B, C]` logits: the mean of the last hidden states over real tokens, then one layer."""

    base_model_prefix = "backbone"

    def __init__(self, backbone: Any, classes: int) -> None:
        super().__init__()
        if getattr(backbone.config, "is_encoder_decoder", False):
            raise ModelError(
                f"task.pooling: the mean is over what an encoder makes of tokens, and {type(backbone).__name__} has a"
                " decoder behind it; use 'model'"
            )
        if "input_ids" not in inspect.signature(backbone.forward).parameters:
            raise ModelError(
                f"task 'text-classification': {type(backbone).__name__} ({backbone.config.model_type!r}) takes no"
                " tokens of text: use a text encoder such as example:all-minilm-l6-v2"
            )
        self.backbone = backbone
        self.config = backbone.config
        self.pool = MeanPool()
        self.classifier = nn.Linear(self.config.hidden_size, classes, device=next(backbone.parameters()).device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Classified:
        """`more` goes to the backbone: which of two texts a token belongs to."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        return Classified(self.classifier(self.pool(hidden, attention_mask)))

    def plain_loader(self, base: str) -> str:
        """Python that loads this model from the folder of `base` and a head.safetensors, without pefttool."""
        return LOADER.format(base=base, prepared=loader_code.as_trained(self.backbone, "backbone"))


class MeanPool(nn.Module):
    """A module of its own: while the backbone is frozen, its output is all that has to be known of a row."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B, T, D]` and `[B, T]` to `[B, D]`, float32: the mean over tokens whose mask is 1."""
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
