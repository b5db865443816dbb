"""Bases that do not fit as they are: parts that their files lack, other kinds of layers, more tokens than rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from case_models.building import byte_level, chat_tokenizer, llama, store, word_pieces
from case_models.chat import CHATML
from case_models.encoders import bert_config


def bert_mlm(folder: Path) -> None:
    """No pooler in its file, as `masked-lm --adapter full` leaves it."""
    from transformers import BertForMaskedLM

    tokenizer = word_pieces()
    store(folder, BertForMaskedLM(bert_config(tokenizer)), tokenizer)


def albert_mlm(folder: Path) -> None:
    """No pooler either; here it is one linear layer."""
    from transformers import AlbertConfig, AlbertForMaskedLM

    tokenizer = word_pieces()
    config = AlbertConfig(
        vocab_size=len(tokenizer),
        embedding_size=32,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    store(folder, AlbertForMaskedLM(config), tokenizer)


def distilbert_mlm(folder: Path) -> None:
    """Between backbone and classifier is a layer that no file has."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    tokenizer = word_pieces()
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=64, hidden_dim=96, n_layers=2, n_heads=4)
    store(folder, DistilBertForMaskedLM(config), tokenizer)


def bert_no_types(folder: Path) -> None:
    """Part of its embeddings is not in its file, as if that were cut out."""
    from transformers import BertModel

    tokenizer = word_pieces()
    store(folder, BertModel(bert_config(tokenizer)), tokenizer)
    _remove(folder, "embeddings.token_type_embeddings.weight")


def llama_no_output(folder: Path) -> None:
    """A Llama without its output layer, as `AutoModel` saves it."""
    tokenizer = _chat()
    llama(folder, tokenizer)
    _remove(folder, "lm_head.weight")


def _remove(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def bert_short(folder: Path) -> None:
    """An encoder with 48 positions."""
    from transformers import BertModel

    tokenizer = word_pieces()
    config = bert_config(tokenizer)
    config.max_position_embeddings = 48
    store(folder, BertModel(config), tokenizer)


def gpt2(folder: Path) -> None:
    """Its linear layers are transformers' Conv1D; its tokenizer has no padding token, and its config no id of one."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level([end]), bos_token=end, eos_token=end, unk_token=end, model_max_length=128
    )
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    store(folder, GPT2LMHeadModel(config), tokenizer)


def mixtral(folder: Path) -> None:
    """A mixture of experts, whose weights are tensors of three dimensions."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = _chat()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    store(folder, MixtralForCausalLM(config), tokenizer)


def toomany(folder: Path) -> None:
    """Two tokens were added to its tokenizer, and no row to its embeddings."""
    tokenizer = _chat()
    llama(folder, tokenizer)
    tokenizer.add_tokens(["<brand_new>", "<other_new>"])
    tokenizer.save_pretrained(folder)


def bert_toomany(folder: Path) -> None:
    from transformers import BertModel

    tokenizer = word_pieces()
    store(folder, BertModel(bert_config(tokenizer)))
    tokenizer.add_tokens(["<brand_new>", "<other_new>"])
    tokenizer.save_pretrained(folder)


def t5_toomany(folder: Path) -> None:
    """Two tokens more than rows, for a model that reads one text and writes another."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = chat_tokenizer(["<pad>", "</s>"], None, None, "</s>", "<pad>")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    store(folder, T5ForConditionalGeneration(config))
    tokenizer.add_tokens(["<brand_new>", "<other_new>"])
    tokenizer.save_pretrained(folder)


def gpt2_padded(folder: Path) -> None:
    """A padding token was added to the tokenizer alone, which many do."""
    from transformers import AutoTokenizer

    gpt2(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def llama_other_padding(folder: Path) -> None:
    """A Llama whose config names another padding token than its tokenizer."""
    tokenizer = _chat()
    llama(folder, tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)


def whisper(folder: Path) -> None:
    """A Whisper that has to be told the language."""
    from pefttool.testing.speech_models import tiny_speech

    tiny_speech(folder, languages=True)


def gemma3(folder: Path) -> None:
    """A Gemma 3 that reads pictures and text, and its tokenizer."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = _chat()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    pictures = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=pictures, mm_tokens_per_image=4)
    store(folder, Gemma3ForConditionalGeneration(config), tokenizer)


def _chat() -> Any:
    return chat_tokenizer(["<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"], CHATML, None, "<|im_end|>", "<pad>")


MAKERS = {
    "base-bert-mlm": bert_mlm,
    "base-albert-mlm": albert_mlm,
    "base-distilbert-mlm": distilbert_mlm,
    "base-bert-no-types": bert_no_types,
    "base-llama-no-output": llama_no_output,
    "base-bert-short": bert_short,
    "base-gpt2": gpt2,
    "base-mixtral": mixtral,
    "base-toomany": toomany,
    "base-bert-toomany": bert_toomany,
    "base-t5-toomany": t5_toomany,
    "base-gpt2-padded": gpt2_padded,
    "base-whisper": whisper,
    "base-gemma3": gemma3,
    "base-llama-other-padding": llama_other_padding,
}
