"""Start a prefix from keys and values that the base itself computes, so that a decoder starts sane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def from_activations(base: Any, count: int) -> list[tuple[Tensor, Tensor] | None]:
    """Keys and values `[H_kv, count, D]` of every layer, float32; None for a layer that caches none.

    The tokens are the text's usual first one and then draws from the vocabulary (torch's generator); they stand at
    positions 0 to count-1, where the prefix will stand.
    """
    import torch
    from transformers import DynamicCache

    from pefttool.nn import embedding_offload

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
            backbone(input_ids=ids.to(embedding_offload.device_of(base)), past_key_values=cache)
    finally:
        backbone.train(training)
    return [
        None if getattr(layer, "keys", None) is None else (layer.keys[0].float(), layer.values[0].float())
        for layer in cache.layers
    ]
