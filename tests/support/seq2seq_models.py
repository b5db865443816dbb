"""Tiny random encoder-decoders of four architectures, with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pefttool.testing.models import SPECIAL, _store, tiny_encoder_decoder, tiny_tokenizer

VOCABULARY = len(SPECIAL) + 256
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 256,
    "dropout": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


def _bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(**SIZES, bos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None)
    )


def _marian() -> Any:
    from transformers import MarianConfig, MarianMTModel

    return MarianMTModel(MarianConfig(**SIZES, decoder_start_token_id=0, forced_eos_token_id=None))


def _two_berts() -> Any:
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    encoder, decoder = BertConfig(**sizes), BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    return EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def _maker(build: Callable[[], Any]) -> Callable[[Path], Path]:
    return lambda folder: _store(folder, build)


def store_untrained(folder: Path) -> Path:
    """A T5 as transformers initialises it (no dropout): one that learns in a few steps, all of it trained."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        T5ForConditionalGeneration(T5Config(**sizes, **special, dropout_rate=0.0)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


SEQ2SEQ: dict[str, Callable[[Path], Path]] = {
    "t5": tiny_encoder_decoder,
    "bart": _maker(_bart),
    "marian": _maker(_marian),
    "two-berts": _maker(_two_berts),
}
