"""Tiny random models of speech: a Whisper that hears one second, and a wav2vec 2.0 with a small alphabet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RATE = 16_000
START, END = "<|startoftranscript|>", "<|endoftext|>"


def tiny_speech(folder: Path, languages: bool = False) -> Path:
    """A Whisper of two layers on each side, with processor, in `folder`; with `languages` it is multilingual."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    tokenizer = _whisper_tokenizer()
    ids = tokenizer.get_vocab()
    special = {
        "decoder_start_token_id": ids[START],
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
        "pad_token_id": ids[END],
    }
    config = WhisperConfig(
        vocab_size=len(ids),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=96,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        dropout=0.0,
        **special,
    )

    def build() -> Any:
        model = WhisperForConditionalGeneration(config)
        model.generation_config = GenerationConfig(
            no_timestamps_token_id=ids["<|notimestamps|>"],
            is_multilingual=languages,
            return_timestamps=False,
            max_length=96,
            **({"lang_to_id": {"<|en|>": ids["<|en|>"], "<|de|>": ids["<|de|>"]}} if languages else {}),
            **({"task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}} if languages else {}),
            **special,
        )
        return model

    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=1), tokenizer)
    return _store(folder, build, processor)


def _whisper_tokenizer() -> Any:
    """Bytes, then the special tokens in the order of the published vocabularies, every language included."""
    from tokenizers import pre_tokenizers
    from transformers import AddedToken, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tasks = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    special = [END, START, *(f"<|{language}|>" for language in LANGUAGES), *tasks]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *special])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(token, special=True) for token in special]})
    return tokenizer


def tiny_ctc(folder: Path, norm: str = "layer") -> Path:
    """A wav2vec 2.0 of three layers that knows capital letters, with processor, in `folder`."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    config = Wav2Vec2Config(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(64, 64),
        conv_kernel=(10, 16),
        conv_stride=(10, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        do_stable_layer_norm=norm == "layer",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{f"{part}_dropout": 0.0 for part in ("hidden", "activation", "attention", "feat_proj", "final")},
        layerdrop=0.0,
    )
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=norm == "layer")
    processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary)))
    return _store(folder, lambda: Wav2Vec2ForCTC(config), processor, 2)


def _store(folder: Path, build: Callable[[], Any], processor: Any, scale: float = 4) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(scale)  # the usual 0.02 leaves outputs so small that wrong ones would look right
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
