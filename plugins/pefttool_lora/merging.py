"""Fold LoRA's update into the base's weights.

A 4-bit base is dequantised first and stays so: putting the sum back into 4 bits, as peft does, would round the
update away. An 8-bit base is refused: its matmul rounds the activations too, so no merged weight gives its outputs.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from pefttool import NotMergeable
from pefttool.toolkit import peft_folder
from pefttool.toolkit.model_parts import transformers_part


def merge(model: Any) -> Any:
    """The plain model whose outputs equal the adapted `model`'s, or NotMergeable(reason). `model` is used up."""
    kinds = {type(p).__name__ for p in model.parameters()}
    if "Int8Params" in kinds:
        raise NotMergeable(
            "adapter 'lora' on an int8 base cannot be merged: int8 multiplication also rounds the activations; load"
            " the base without --quantize, put the adapter on it, and merge that"
        )
    if "Params4bit" in kinds:
        model = _on_dequantised(model)
    try:
        return model.merge_and_unload(safe_merge=True, adapter_names=[peft_folder.NAME])
    except ValueError as error:
        raise NotMergeable(f"adapter 'lora': {' '.join(str(error).split())}") from error


def _on_dequantised(model: Any) -> Any:
    """The same adapter on the base's dequantised weights (in the dtype that the base was loaded in)."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=peft_folder.NAME, save_embedding_layers=False)
    config = copy.copy(model.peft_config[peft_folder.NAME])
    config.task_type = None
    base = model.unload()
    part = transformers_part(base)
    if part is None or getattr(part, "hf_quantizer", None) is None:
        raise NotMergeable(
            "adapter 'lora': this base does not say how it was quantised; merge onto an unquantised base"
        )
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would warn of exactly what is wanted here
    try:
        part.dequantize()
    finally:
        logger.setLevel(level)
    again = peft_folder.wrap(base, config)
    set_peft_model_state_dict(again, tensors, adapter_name=peft_folder.NAME)
    return again
