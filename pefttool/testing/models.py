"""Tiny random models on disk, an encoder and a decoder, with a tokenizer of bytes: what the contract suite runs on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from pefttool.testing import vision_models
from pefttool.testing.speech_models import tiny_ctc, tiny_speech

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<s>")


def tiny_tokenizer() -> Any:
    """A fast tokenizer whose tokens are single bytes, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def _sizes() -> dict[str, Any]:
    # Hidden sizes are multiples of 64, the block that 4-bit quantizers scale by; no dropout, so that runs compare.
    return {
        "vocab_size": len(SPECIAL) + 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }


def tiny_encoder(folder: Path) -> Path:
    """A BERT of two layers, with tokenizer, in `folder`; returns it."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**_sizes(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return _store(folder, lambda: BertModel(config))


def tiny_decoder(folder: Path) -> Path:
    """A Llama of two layers whose output layer is its embedding, with tokenizer, in `folder`; returns it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_sizes(), num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=3, eos_token_id=2)
    return _store(folder, lambda: LlamaForCausalLM(config))


def tiny_masked(folder: Path) -> Path:
    """A BERT of two layers with its masked language model's output layers, and a tokenizer with a mask, in `folder`."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    sizes = {**_sizes(), "vocab_size": len(tokenizer)}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    _store(folder, lambda: BertForMaskedLM(config))
    tokenizer.save_pretrained(folder)
    return folder


def tiny_encoder_decoder(folder: Path) -> Path:
    """A T5 of two layers on each side, with tokenizer, in `folder`; returns it."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(SPECIAL) + 256,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=2,
    )
    return _store(folder, lambda: T5ForConditionalGeneration(config))


def _store(folder: Path, build: Callable[[], Any]) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)  # the usual 0.02 leaves outputs so small that wrong ones would look right
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_series(folder: Path) -> Path:
    """A PatchTST of two layers that looks at 32 values of two channels, with batch norms, in `folder`; returns it."""
    import torch
    from transformers import PatchTSTConfig, PatchTSTModel

    config = PatchTSTConfig(
        num_input_channels=2,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = PatchTSTModel(config)
        with torch.no_grad():
            for name, tensor in model.named_buffers():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.1)  # statistics that are not those of a fresh model: ignoring them shows
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


#: Makers of tiny models by kind: what the samples of a task name.
MAKERS: dict[str, Callable[[Path], Path]] = {
    "encoder": tiny_encoder,
    "decoder": tiny_decoder,
    "encoder-decoder": tiny_encoder_decoder,
    "masked": tiny_masked,
    "vision": vision_models.tiny_vision,
    "convolutional": vision_models.tiny_convolutional,
    "detector": vision_models.tiny_detector,
    "speech": tiny_speech,
    "ctc": tiny_ctc,
    "series": tiny_series,
}


@cache
def model_folder(kind: str) -> Path:
    """The folder of the tiny model of this kind, made once a process."""
    return MAKERS[kind](Path(tempfile.mkdtemp(prefix=f"pefttool-{kind}-")))
