"""Encoders: what classifies, tags and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from case_models.building import store, word_pieces


def bert_config(tokenizer: Any, **more: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        **more,
    )


def bert(folder: Path) -> None:
    from transformers import BertModel

    tokenizer = word_pieces()
    store(folder, BertModel(bert_config(tokenizer)), tokenizer)


def xlnet(folder: Path) -> None:
    """Its head for classes reads the last position."""
    from transformers import XLNetConfig, XLNetModel

    tokenizer = word_pieces()
    store(
        folder,
        XLNetModel(XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=48)),
        tokenizer,
    )


MAKERS = {"bert": bert, "xlnet": xlnet}
