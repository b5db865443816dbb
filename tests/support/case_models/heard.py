"""Models that hear: CTC on samples, with each of wav2vec 2.0's two norms."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from case_models.building import store


def wav2vec(folder: Path, norm: str) -> None:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "word_delimiter_token": "|"}
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **special)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer",
        pad_token_id=0,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    store(folder, Wav2Vec2ForCTC(config), Wav2Vec2Processor(extractor, tokenizer))


MAKERS = {"w2v": partial(wav2vec, norm="layer"), "w2v-group": partial(wav2vec, norm="group")}
