"""Translators whose tokenizers write the language beside a text: mBART behind it, mBART-50 and NLLB before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from case_models.building import CORPUS, store

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def _trained(model: Any, trainer: Any) -> dict[str, Any]:
    """The vocabulary of a tokenizer in which `en` and `de` are ordinary tokens, too."""
    from tokenizers import Tokenizer, pre_tokenizers

    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.train_from_iterator([*CORPUS, "en de en de en de"], trainer)
    found: dict[str, Any] = json.loads(inner.to_str())["model"]
    return found


def _unigrams(languages: list[str]) -> list[tuple[str, float]]:
    from tokenizers import models, trainers

    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")
    found = _trained(models.Unigram(), trainer)["vocab"]
    return [*((piece, score) for piece, score in found), *((language, 0.0) for language in languages)]


def _sizes(tokenizer: Any, start: int) -> dict[str, Any]:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": start}
    calm = dict.fromkeys(("dropout", "encoder_layerdrop", "decoder_layerdrop"), 0.0)
    return {
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "max_position_embeddings": 128,
        "init_std": 0.3,
        **sizes,
        **special,
        **calm,
    }


def mbart(folder: Path) -> None:
    """As facebook/mbart-large-en-ro: made for one target language, with which its decoder starts."""
    from transformers import MBartConfig, MBartForConditionalGeneration, MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    tokenizer = MBartTokenizer(vocab=[*_unigrams(FAIRSEQ_LANGUAGE_CODES), ("<mask>", 0.0)])
    start = tokenizer.convert_tokens_to_ids("de_DE")
    store(folder, MBartForConditionalGeneration(MBartConfig(**_sizes(tokenizer, start))), tokenizer)


def mbart50(folder: Path) -> None:
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    tokenizer = MBart50Tokenizer(vocab=_unigrams([]), src_lang="en_XX")
    store(folder, MBartForConditionalGeneration(MBartConfig(**_sizes(tokenizer, 2))), tokenizer)


def nllb(folder: Path) -> None:
    from tokenizers import models, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    found = _trained(models.BPE(), trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    tokenizer = NllbTokenizer(vocab=found["vocab"], merges=[tuple(pair) for pair in found["merges"]])
    store(folder, M2M100ForConditionalGeneration(M2M100Config(**_sizes(tokenizer, 2))), tokenizer)


MAKERS = {"mbart": mbart, "mbart50": mbart50, "nllb": nllb}
