"""The trivial answer of a language model: each token as likely as it was in the training answers, whatever came before.

The mean loss of the held-out answers' tokens in nats, in the tokens of the model that is compared with it: what
`pefttool run` reports as `loss` for a task that generates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from experiment import Rows

NAME = "frequencies of tokens alone"


def chat_loss(model: str, train: Rows, held_out: Rows) -> float:
    """Of the assistant's tokens, in the model's own chat template."""
    from pefttool_text.chat import Chat

    return _task_loss(Chat(), model, train, held_out)


def target_loss(model: str, train: Rows, held_out: Rows) -> float:
    """Of the tokens to write, of a task that turns one text into another."""
    from pefttool_text.seq2seq import Seq2Seq

    return _task_loss(Seq2Seq(), model, train, held_out)


def _task_loss(task: Any, model: str, train: Rows, held_out: Rows) -> float:
    from pefttool.api.values import Row, Setting
    from pefttool_text.batching import IGNORE

    processor = _tokenizer(model)
    setting = Setting(task.Options(), sequence_length=10_000)

    def tokens(rows: Rows) -> Iterator[int]:
        for row in rows:
            yield from (label for label in task.encode(Row(row), processor, setting)["labels"] if label != IGNORE)

    return _loss(list(tokens(train)), list(tokens(held_out)), len(processor))


def _loss(train: list[int], held_out: list[int], vocabulary: int) -> float:
    """Witten and Bell's smoothing: a new token is as likely as new ones were, and then any of the vocabulary is."""
    counts = Counter(train)
    new, total = len(counts), len(train) + len(counts)
    return -sum(math.log((counts[token] + new / vocabulary) / total) for token in held_out) / len(held_out)


@cache
def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    from pefttool.config import registry
    from pefttool.models import hub

    return AutoTokenizer.from_pretrained(hub.resolve(model, registry.build(), weights=True).path)
