"""One tiny random model of each family that transformers has, with an input for it: nothing is stored on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

V = 97
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BOTH = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "dropout": 0.0,
}
IDS = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MANY_LABELS = {"id2label": {i: str(i) for i in range(3)}, "label2id": {str(i): i for i in range(3)}}


@dataclass(frozen=True)
class Architecture:
    """`auto` is transformers' AutoModel class for a task that the family is tuned for."""

    config: Callable[[], Any]
    auto: str
    inputs: Callable[[], dict[str, Tensor]]

    @property
    def generates(self) -> bool:
        return self.auto.endswith(("CausalLM", "Seq2SeqLM", "Seq2Seq"))

    def build(self, seed: int = 0) -> Any:
        import transformers

        torch.manual_seed(seed)
        made = getattr(transformers, self.auto)
        model = made.from_config(self.config()) if self.auto.startswith("Auto") else made(self.config())
        with torch.no_grad():  # the usual 0.02 leaves outputs so small that wrong ones would look right
            for parameter in model.parameters():
                if parameter.ndim == 2 and not parameter.is_meta:
                    parameter.mul_(3)
        return model.eval()


def text(rows: int = 3, tokens: int = 11) -> dict[str, Tensor]:
    """Ids without special ones, padded on the right."""
    mask = torch.ones(rows, tokens, dtype=torch.long)
    for row in range(1, rows):
        mask[row, tokens - 3 * row :] = 0
    ids = torch.randint(5, V, (rows, tokens), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids * mask, "attention_mask": mask}


def pairs() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": text(tokens=8)["input_ids"] + 1}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def _of(name: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**more)

    return make


def _detr() -> Any:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 16, 16], depths=[1] * 4, out_features=["stage4"], layer_type="basic"
    )
    return transformers.DetrConfig(**BOTH, num_queries=5, use_timm_backbone=False, backbone_config=backbone)


_TEXT = {**SIZES, **IDS, "max_position_embeddings": 64}
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(_of("BertConfig", **_TEXT, **STILL), "AutoModelForSequenceClassification", text),
    "roberta": Architecture(_of("RobertaConfig", **_TEXT, **STILL), "AutoModelForTokenClassification", text),
    "albert": Architecture(
        _of("AlbertConfig", **_TEXT, **STILL, embedding_size=32), "AutoModelForSequenceClassification", text
    ),
    "distilbert": Architecture(
        _of(
            "DistilBertConfig",
            **IDS,
            dim=64,
            hidden_dim=96,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=64,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
        "AutoModelForSequenceClassification",
        text,
    ),
    "modernbert": Architecture(
        _of(
            "ModernBertConfig", **_TEXT, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4
        ),
        "AutoModelForSequenceClassification",
        text,
    ),
    "llama": Architecture(_of("LlamaConfig", **_TEXT, num_key_value_heads=2), "AutoModelForCausalLM", text),
    "mistral": Architecture(
        _of("MistralConfig", **_TEXT, num_key_value_heads=2, sliding_window=4), "AutoModelForCausalLM", text
    ),
    "gpt2": Architecture(
        _of(
            "GPT2Config",
            **IDS,
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=64,
            embd_pdrop=0,
            attn_pdrop=0,
            resid_pdrop=0,
        ),
        "AutoModelForCausalLM",
        text,
    ),
    "t5": Architecture(
        _of(
            "T5Config",
            **{**IDS, "bos_token_id": None},
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            num_decoder_layers=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        "AutoModelForSeq2SeqLM",
        pairs,
    ),
    "bart": Architecture(
        _of("BartConfig", **IDS, **BOTH, max_position_embeddings=64, decoder_start_token_id=2),
        "AutoModelForSeq2SeqLM",
        pairs,
    ),
    "whisper": Architecture(
        _of(
            "WhisperConfig",
            **IDS,
            **BOTH,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=32,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        "AutoModelForSpeechSeq2Seq",
        lambda: {"input_features": numbers(3, 8, 32), "decoder_input_ids": text(tokens=8)["input_ids"] + 1},
    ),
    "wav2vec2": Architecture(
        _of(
            "Wav2Vec2Config",
            **SIZES,
            **IDS,
            conv_dim=(16, 16),
            conv_stride=(4, 4),
            conv_kernel=(8, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            layerdrop=0.0,
            mask_time_prob=0.0,
        ),
        "AutoModelForCTC",
        lambda: {"input_values": numbers(3, 400)},
    ),
    "vit": Architecture(
        _of("ViTConfig", **SIZES, **STILL, image_size=28, patch_size=14, **MANY_LABELS),
        "AutoModelForImageClassification",
        lambda: {"pixel_values": numbers(3, 3, 28, 28)},
    ),
    "dinov2": Architecture(
        _of("Dinov2Config", **SIZES, **STILL, image_size=28, patch_size=14, **MANY_LABELS),
        "AutoModelForImageClassification",
        lambda: {"pixel_values": numbers(3, 3, 28, 28)},
    ),
    "detr": Architecture(_detr, "AutoModelForObjectDetection", lambda: {"pixel_values": numbers(2, 3, 64, 64)}),
    "yolos": Architecture(
        _of("YolosConfig", **SIZES, **STILL, image_size=[32, 32], patch_size=16, num_detection_tokens=5),
        "AutoModelForObjectDetection",
        lambda: {"pixel_values": numbers(2, 3, 32, 32)},
    ),
    "patchtst": Architecture(
        _of(
            "PatchTSTConfig",
            d_model=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=96,
            context_length=32,
            patch_length=8,
            patch_stride=8,
            num_input_channels=2,
            num_targets=3,
            attention_dropout=0.0,
            ff_dropout=0.0,
            path_dropout=0.0,
            positional_dropout=0.0,
            head_dropout=0.0,
            use_cls_token=False,
        ),
        "PatchTSTForClassification",
        lambda: {"past_values": numbers(3, 32, 2)},
    ),
}
#: Families that do not use transformers' AttentionInterface, or not as PyTorch's attention could compute it.
OTHERS: dict[str, Architecture] = {
    "deberta-v2": Architecture(_of("DebertaV2Config", **_TEXT, **STILL), "AutoModelForSequenceClassification", text),
    "gemma2": Architecture(
        _of("Gemma2Config", **_TEXT, num_key_value_heads=2, head_dim=16), "AutoModelForCausalLM", text
    ),
    "mpnet": Architecture(_of("MPNetConfig", **_TEXT, **STILL), "AutoModelForSequenceClassification", text),
}
