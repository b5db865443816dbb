"""The Python that loads a prefix of our own layout without pefttool: written beside prefix.safetensors."""

from __future__ import annotations

from typing import Any

from pefttool.toolkit import loader_code

LOADER = "load_prefix.py"
TEXT = '''"""Defines `model`, in eval mode, with transformers alone: base, head, and what stands before its keys."""
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

folder = Path(__file__).parent
model = {constructor}.eval()
if (folder / "head.safetensors").is_file():
    model.load_state_dict(load_file(folder / "head.safetensors"), strict=False)
stored = load_file(folder / "prefix.safetensors")
names = [name.removesuffix(".key") for name in stored if name.endswith(".key")]
prefixes = {{model.get_submodule(name): (stored[name + ".key"], stored[name + ".value"]) for name in names}}


def attention(module, query, key, value, mask, is_causal=None, position_bias=None, **options):
    if module in prefixes:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if mask is None:
            mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
            mask = mask.tril(key.shape[2] - query.shape[2]) if causal and query.shape[2] > 1 else mask
        key, value = (
            torch.cat([first.to(own).expand(len(own), -1, -1, -1), own], 2)
            for first, own in zip(prefixes[module], (key, value))
        )
        count = prefixes[module][0].shape[1]
        mask = torch.nn.functional.pad(mask, (count, 0), value=1 if mask.dtype == torch.bool else 0)
        if position_bias is not None:
            position_bias = torch.nn.functional.pad(position_bias, (count, 0))
    options.update(is_causal=is_causal, position_bias=position_bias)
    return sdpa_attention_forward(module, query, key, value, mask, **options)


transformers.AttentionInterface.register("prefix", attention)
transformers.AttentionMaskInterface.register("prefix", sdpa_mask)
model.set_attn_implementation("prefix")
'''
SHIFT = """

def shift(module, inputs, named):
    if named.get("position_ids") is None:
        tokens = named["input_ids"] if named.get("inputs_embeds") is None else named["inputs_embeds"][..., 0]
        cache = named.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        named["position_ids"] = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
    return inputs, {{**named, "position_ids": named["position_ids"] + {count}}}


model.get_submodule({counting!r}).register_forward_pre_hook(shift, with_kwargs=True)
"""


def source(model: Any, count: int, counting: str | None) -> str | None:
    """The loader's text, or None for a model that cannot be rebuilt without its own code.

    `counting` is the module whose positions begin behind the prefix of `count`.
    """
    made = loader_code.constructor(model)
    if made is None:
        return None
    return TEXT.format(constructor=made) + ("" if counting is None else SHIFT.format(count=count, counting=counting))
