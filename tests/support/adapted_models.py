"""Tiny adapted models with dropout, in training mode, and their gradients under one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models as tiny
import torch
from torch import Tensor

from pefttool.nn import cpu
from pefttool_full.adapter import FullAdapter
from pefttool_full.options import FullOptions
from pefttool_head.adapter import HeadAdapter
from pefttool_head.options import HeadOptions
from pefttool_lora.adapter import LoraAdapter
from pefttool_lora.options import LoraOptions

ADAPTERS: dict[str, tuple[Any, Any]] = {
    "lora": (LoraAdapter(), LoraOptions(r=3, lora_dropout=0.3)),
    "full": (FullAdapter(), FullOptions()),
    "full-last": (FullAdapter(), FullOptions(train_last_layers=1)),
    "head-last": (HeadAdapter(), HeadOptions(train_last_layers=2)),
}


def adapted(stored: Path, adapter: str, kind: str, nf4: bool) -> Any:
    base = tiny.load_base(stored, kind, nf4)
    for module in base.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    method, options = ADAPTERS[adapter]
    torch.manual_seed(0)
    model = method.attach(base, options, tiny.known(base, kind)).model
    tiny.heads(model, kind)
    cpu.quicken(model)
    return model.train()


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    out = model(**inputs).logits.float()
    (out.square() * torch.linspace(0.5, 1.5, out.shape[-1])).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    model.zero_grad(set_to_none=True)
    return {n: gradient for n, gradient in found.items() if gradient is not None}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)
