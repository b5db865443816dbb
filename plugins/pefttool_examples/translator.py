"""A small translation model from English to Spanish, pretrained here: no pretrained one is to be had without a hub.

A T5 of a million parameters, trained on the prose of the Bible alone, with a vocabulary learnt from it. It is no good
translator; it is a really pretrained model, which knows both languages a little, and none of the Psalms.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool_examples import verses

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 2_000
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SIZES = {"d_model": 128, "d_kv": 32, "d_ff": 384, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
EPOCHS, TOKENS, LEARNING_RATE, WARMUP = 12, 800, 3e-3, 200
SEED = 0


def make_translator(folder: Path) -> None:
    """Pretrain it: five minutes on one core. The same on every machine of one kind, bit by bit with one thread."""
    import torch

    pairs = verses.pairs(verses.prose())
    tokenizer = learn_vocabulary(text for pair in pairs for text in pair)
    rows = [tuple(tokenizer(text)["input_ids"] for text in pair) for pair in pairs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is not faster with more, and its sums are added up in one order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = build(tokenizer)
            train(model, rows, EPOCHS)
    finally:
        torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def learn_vocabulary(texts: Iterator[str]) -> Any:
    """Byte pairs of these texts; every text ends with `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    special = [PAD, END, UNKNOWN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    inner.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=512
    )


def build(tokenizer: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer),
        **SIZES,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def train(model: Any, rows: Sequence[Any], epochs: int) -> None:
    """Adam over batches of similar length, the rate rising and then falling to nothing."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    steps = [batch for epoch in range(epochs) for batch in _batches(rows, epoch)]
    model.train()
    for step, batch in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP, 1 - step / len(steps))
        sources, targets = ([row[i] for row in batch] for i in (0, 1))
        ids = _pad(sources, 0)
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=_pad(targets, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _batches(rows: Sequence[Any], epoch: int) -> list[list[Any]]:
    draws = random.Random(f"{SEED} {epoch}")
    order = sorted(rows, key=lambda row: (len(row[0]) + len(row[1]), draws.random()))
    batches: list[list[Any]] = [[]]
    for row in order:
        if (len(batches[-1]) + 1) * (len(row[0]) + len(row[1])) > TOKENS and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    draws.shuffle(batches)
    return batches


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
