"""Models whose projections are fused into one layer, or called otherwise than in most."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from case_models.building import chat_tokenizer, store
from case_models.chat import CHATML

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
#: The classes of transformers by their first name, and what their configs are given besides.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", {}),
    "gptneox": ("GPTNeoXForCausalLM", {}),
    "modernbertdecoder": ("ModernBertDecoderForCausalLM", {}),
    "mpt": ("MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "phi3fused": ("Phi3ForCausalLM", {}),
}


def fused(kind: str, folder: Path) -> None:
    """A decoder of this kind, its weights drawn widely."""
    import torch
    import transformers

    tokenizer = chat_tokenizer(["<pad>", "<|im_start|>", "<|im_end|>"], CHATML, None, "<|im_end|>", "<pad>")
    name, more = KINDS[kind]
    given = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(**given, **SIZES, **more)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    store(folder, model, tokenizer)


MAKERS = {kind: partial(fused, kind) for kind in KINDS}
