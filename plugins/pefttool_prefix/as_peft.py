"""A prefix inside attention in peft's own files, where peft would compute the same: plain peft loads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttool import Facts
from pefttool.toolkit import peft_folder
from pefttool_prefix.options import TASK_TYPES
from pefttool_prefix.through_peft import flat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn


def fits(model: nn.Module, facts: Facts) -> bool:
    """Whether peft, given this prefix as a cache of every layer, would compute what is computed here."""
    known, config = facts.key_values, getattr(model, "config", None)
    if not (facts.key_value_cache and facts.counts_positions and facts.peft_task_type in TASK_TYPES and config):
        return False
    text: Any = config.get_text_config()
    one_shape = (
        len({(k.heads, k.key_size, k.value_size) for k in known}) == 1 and known[0].key_size == known[0].value_size
    )
    order = [getattr(model.get_submodule(k.module), "layer_idx", None) for k in known]
    # A window would move past peft's prefix; here every position sees it.
    windowed = getattr(text, "sliding_window", None) is not None
    return one_shape and not windowed and order == list(range(text.num_hidden_layers))


def save(model: nn.Module, layers: Sequence[tuple[Tensor, Tensor]], task_type: str, folder: Path) -> None:
    """Write keys and values [H_kv, P, D] of every layer as `peft_folder.save` writes those of peft's own prefix."""
    peft = peft_folder.load_peft()
    heads, count, size = layers[0][0].shape
    config = peft.PrefixTuningConfig(
        task_type=task_type,
        num_virtual_tokens=count,
        token_dim=heads * size,
        num_attention_heads=heads,
        num_layers=len(layers),
        num_transformer_submodules=1,
        encoder_hidden_size=heads * size,
        inference_mode=True,
        base_model_name_or_path=str(getattr(getattr(model, "config", None), "_name_or_path", "")),
    )
    folder.mkdir(parents=True, exist_ok=True)
    peft_folder.write_tensors(folder / peft_folder.WEIGHTS, {"prompt_embeddings": flat(layers)})
    config.save_pretrained(folder)
