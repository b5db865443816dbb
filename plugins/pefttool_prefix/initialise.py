"""Start a prefix from keys and values that the base itself computes, so that a decoder starts sane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def from_activations(base: Any, count: int) -> Tensor:
    """`[count, layers * 2 * heads * head_dim]`, float32: the layout of peft's prefix encoder.

    The tokens are the text's usual first one and then draws from the vocabulary (torch's generator); they stand at
    positions 0 to count-1, where the prefix will stand.
    """
    import torch
    from transformers import DynamicCache

    from pefttool import host_tables

    backbone = getattr(base, base.base_model_prefix, base)
    ids = torch.randint(base.config.get_text_config().vocab_size, (1, count))
    first = getattr(base.config, "bos_token_id", None)
    if isinstance(first, int):
        ids[0, 0] = first
    cache = DynamicCache()
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(input_ids=ids.to(host_tables.device(base)), past_key_values=cache)
    finally:
        backbone.train(training)
    # One layer: [1, heads, count, head_dim] -> [count, heads * head_dim], keys before values.
    parts = [kind[0].transpose(0, 1).flatten(1) for layer in cache.layers for kind in (layer.keys, layer.values)]
    return torch.cat(parts, dim=1).float()
