"""Models that read one text and write another, which differ in how their decoder is shown what to write."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from case_models.building import chat_tokenizer, store

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
}


def translator(kind: str, folder: Path, **more: Any) -> None:
    """A translator of this class of transformers; its weights are drawn widely, so that what it is shown matters."""
    import torch
    import transformers

    tokenizer = chat_tokenizer(["<pad>", "<s>", "</s>"], None, "<s>", "</s>", "<pad>")
    size = len(tokenizer)
    sizes = {"src_vocab_size": size, "tgt_vocab_size": size} if kind == "FSMT" else {"vocab_size": size}
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, **sizes, **more, pad_token_id=0, eos_token_id=2, decoder_start_token_id=2
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    store(folder, model, tokenizer)


MAKERS = {
    "m2m100": partial(translator, "M2M100"),
    "blenderbot": partial(translator, "Blenderbot"),
    "fsmt": partial(translator, "FSMT", langs=["en", "de"]),
}
