"""What the makers share: tokenizers that are trained on a few lines, and a small Llama."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What tokenizers are trained on: enough that words become several tokens, and few enough that it takes no time.
CORPUS = [
    "what is one and two? it is three, as you can count",
    "take four and five. taken. and their sum? nine",
    "answer like a pirate. be brief. are you sure? yes, quite sure",
    "a gem of a film, warm and funny",
    "dull, slow and far too long",
    "the plot is thin, and the acting is great",
    "Anna lives in Paris, and works for Acme in New York",
    "the adapter is a package, and the base stays as it is",
]


def byte_level(special: Sequence[str], size: int = 600) -> Any:
    """A byte-level BPE (GPT-2's kind) that knows these special tokens, in this order, from id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def chat_tokenizer(
    special: Sequence[str],
    template: str | None,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    writes_bos: bool = False,
) -> Any:
    """A byte-level tokenizer with a chat template; `writes_bos`: it puts BOS before a text, as Llama's does."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    inner = byte_level(special)
    if writes_bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        chat_template=template,
        model_max_length=512,
        **{name: token for name, token in names.items() if token},
    )


def word_pieces() -> Any:
    """A lower-casing WordPiece tokenizer, BERT's kind."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    inner = BertWordPieceTokenizer(lowercase=True)
    inner.train_from_iterator(CORPUS, vocab_size=600, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        cls_token="[CLS]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def llama(folder: Path, tokenizer: Any, end: Sequence[str] = (), **config: Any) -> None:
    """A Llama of two layers for this tokenizer; `end` are the tokens at which its generation stops."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )
    if end:
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.convert_tokens_to_ids(list(end)),
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    store(folder, model, tokenizer)


def store(folder: Path, model: Any, processor: Any = None) -> None:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
